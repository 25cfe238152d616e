"""Tensor attention: the exact form against the definition, the polynomial within its certificate, and what it can solve."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from tersor.attention import (
    TensorAttention,
    certify,
    feature_count,
    higher_order_attention,
    match_three,
    poly_features,
    required_degree,
    taylor_coefficients,
    tensor_attention,
    truncation_error,
)
from tersor.errors import InvalidArgument


def draw(seed: int, *shape: int, bound: float = 1.0) -> torch.Tensor:
    """Uniform between plus and minus ``bound``, float64."""
    return bound * (2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1)


def problem(seed: int, n: int = 12, d: int = 3, width: int = 2, order: int = 2, bound: float = 1.0, batch: tuple[int, ...] = ()):
    """Queries, keys and values."""
    keys = [draw(100 * seed + i + 1, *batch, n, d, bound=bound) for i in range(order)]
    values = [draw(100 * seed + i + 50, *batch, n, width) for i in range(order)]
    return draw(100 * seed, *batch, n, d, bound=bound), keys, values


def definition(q, keys, values, scale, shown=None):
    """The sum over all tuples, one by one; ``shown[i]`` lists the keys that query ``i`` may see."""
    n = q.shape[0]
    rows = []
    for i in range(n):
        seen = range(keys[0].shape[0]) if shown is None else shown[i]
        tuples = list(itertools.product(seen, repeat=len(keys)))
        logits = torch.stack([scale * torch.stack([q[i], *(key[j] for key, j in zip(keys, t, strict=True))]).prod(0).sum() for t in tuples])
        outputs = torch.stack([torch.stack([value[j] for value, j in zip(values, t, strict=True)]).prod(0) for t in tuples])
        rows.append(logits.softmax(0) @ outputs)
    return torch.stack(rows)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("memory", [1 << 30, 1000])
def test_exact_is_the_definition(memory, order):
    q, keys, values = problem(order, n=6, order=order, bound=3.0)
    if order == 3 and memory == 1000:
        pytest.skip("a query of three keys takes more")
    made = higher_order_attention(q, keys, values, scale=0.7, method="exact", memory_limit=memory)
    torch.testing.assert_close(made, definition(q, keys, values, 0.7))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_polynomial_of_high_degree_is_exact(order):
    q, keys, values = problem(order, n=9, order=order)
    made = higher_order_attention(q, keys, values, method="poly", degree=16)
    torch.testing.assert_close(made, definition(q, keys, values, 1 / 3), rtol=0, atol=1e-12)


def test_one_key_is_ordinary_attention_and_so_are_two_if_one_is_constant():
    q, (k, _), (v, _) = problem(0)
    expected = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=0.5)[0]
    torch.testing.assert_close(higher_order_attention(q, [k], [v], scale=0.5, method="exact"), expected)
    one = torch.ones_like(k), torch.ones_like(v)
    for method in ("exact", "poly"):
        made = tensor_attention(q, k, one[0], v, one[1], scale=0.5, method=method, eps=1e-9)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["exact", "poly"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_causal_and_padding_masks(order, method):
    q, keys, values = problem(1, n=7, order=order)
    options = {"method": method, "eps": 1e-10} if method == "poly" else {"method": method}
    mask = torch.tensor([True, True, False, True, False, True, True])
    kept = [j for j in range(7) if mask[j]]
    cases = {
        (False, True): [kept] * 7,
        (True, False): [range(i + 1) for i in range(7)],
        (True, True): [[j for j in kept if j <= i] for i in range(7)],
    }
    for (causal, masked), shown in cases.items():
        made = higher_order_attention(q, keys, values, mask=mask if masked else None, causal=causal, memory_limit=1 << 20, **options)
        torch.testing.assert_close(made, definition(q, keys, values, 1 / 3, shown), rtol=0, atol=1e-9)


def test_pieces_give_what_the_whole_gives():
    q, keys, values = problem(2, n=40, batch=(2, 3))
    mask = draw(9, 2, 3, 40) > -0.5
    mask[..., 0] = True
    for causal in (False, True):
        options = {"method": "poly", "degree": 6, "mask": mask, "causal": causal}
        whole = higher_order_attention(q, keys, values, **options)
        pieces = higher_order_attention(q, keys, values, memory_limit=80_000, **options)
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)
        plain = {"method": "exact", "mask": mask, "causal": causal}
        exact = [higher_order_attention(q, keys, values, **plain, memory_limit=size) for size in (1 << 30, 1)]
        torch.testing.assert_close(exact[0], exact[1])
        torch.testing.assert_close(whole, exact[0], rtol=0, atol=1e-4)


def test_symmetries():
    q, (k1, k2), (v1, v2) = problem(3)
    made = tensor_attention(q, k1, k2, v1, v2)
    order, other = torch.randperm(12, generator=torch.Generator().manual_seed(0)), torch.arange(11, -1, -1)
    torch.testing.assert_close(tensor_attention(q[order], k1, k2, v1, v2), made[order])
    torch.testing.assert_close(tensor_attention(q, k1[order], k2[other], v1[order], v2[other]), made)
    torch.testing.assert_close(tensor_attention(q, k2, k1, v2, v1), made)


def adversarial(seed: int, n: int, d: int, bound: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Entries of largest size whose signs agree, or as good as: logits reach the bound."""
    signs = torch.sign(draw(seed, 3, n, d) + (2.0 if seed % 2 else 0.0))
    rank_one = torch.sign(draw(seed, 3, n, 1)) * torch.sign(draw(seed + 1, 1, 1, d))
    q, k1, k2 = bound * (rank_one if seed % 3 else signs)
    return q, k1, k2


@pytest.mark.parametrize("degree", [2, 4, 6, 10, 20])
@pytest.mark.parametrize("bound", [0.3, 0.7, 1.0, 1.4])
def test_errors_stay_under_their_certificate(bound, degree):
    checked = 0
    for seed in range(60):
        q, keys, values = problem(seed, n=10, bound=bound)
        if seed % 2:
            q, *keys = adversarial(seed, 10, 3, bound)
        try:
            certificate = certify(q, keys, values, degree=degree)
        except InvalidArgument:
            continue
        checked += 1
        polynomial = higher_order_attention(q, keys, values, method="poly", degree=degree)
        exact = higher_order_attention(q, keys, values, method="exact")
        assert float((polynomial - exact).abs().max()) <= certificate.error
    # At degree 2 nothing is promised for the largest entries.
    assert checked == 60 or (degree <= 6 and bound >= 1.0)


def test_the_certificate_is_within_reach_of_the_worst_case():
    # All logits at plus the bound but those of one key at minus: the polynomial is worst there.
    n, bound = 2, 1.0
    q, k2 = torch.ones(n, 1, dtype=torch.float64), torch.ones(n, 1, dtype=torch.float64)
    k1 = torch.tensor([[bound], [-bound]], dtype=torch.float64)
    v1, v2 = k1.clone(), torch.ones(n, 1, dtype=torch.float64)
    for degree in (4, 6, 8):
        inputs = q, k1, k2, v1, v2
        error = (tensor_attention(*inputs, method="poly", degree=degree) - tensor_attention(*inputs, method="exact")).abs()
        certificate = certify(q, (k1, k2), (v1, v2), degree=degree)
        assert certificate.error / 20 < float(error.max()) <= certificate.error


def test_features_are_all_monomials_and_make_the_taylor_polynomial():
    assert [feature_count(4, degree) for degree in (2, 4, 6, 8)] == [15, 70, 210, 495]
    x, y, z = draw(0, 5, 4), draw(1, 5, 4), draw(2, 5, 4)
    features = poly_features(x, 6)
    assert features.shape == (5, 210)
    inner = (features * taylor_coefficients(4, 6) * poly_features(y, 6) * poly_features(z, 6)).sum(-1)
    logit = (x * y * z).sum(-1)
    torch.testing.assert_close(inner, sum(logit**t / math.factorial(t) for t in range(7)))
    exponents = {tuple(round(float(e), 6) for e in row) for row in poly_features(torch.tensor([[2.0, 3.0, 5.0]]), 3).T}
    expected = {(float(2**a * 3**b * 5**c),) for a in range(4) for b in range(4 - a) for c in range(4 - a - b)}
    assert exponents == expected


def test_the_degree_is_the_least_even_one_that_will_do():
    for bound, eps in ((0.5, 1e-3), (1.0, 1e-6), (3.0, 1e-2)):
        degree = required_degree(bound, eps)
        assert degree % 2 == 0
        assert truncation_error(bound, degree) <= eps < truncation_error(bound, degree - 2)
    remainder = math.e * (math.e - sum(1 / math.factorial(t) for t in range(7)))
    assert truncation_error(1.0, 6) == pytest.approx(2 * remainder / (1 - remainder), rel=1e-6)
    assert truncation_error(0.0, 2) == 0
    assert math.isinf(truncation_error(5.0, 2))


def test_auto_keeps_to_eps_and_takes_the_cheaper_form():
    q, keys, values = problem(4, n=256, d=2, bound=0.5)
    exact = higher_order_attention(q, keys, values, method="exact")
    automatic = higher_order_attention(q, keys, values, eps=1e-5)
    assert 0 < float((automatic - exact).abs().max()) <= 1e-5
    few = problem(4, n=4, d=2, bound=0.5)
    assert torch.equal(higher_order_attention(*few, eps=1e-5), higher_order_attention(*few, method="exact"))
    large = problem(4, n=16, d=2, bound=20.0)
    assert torch.equal(higher_order_attention(*large), higher_order_attention(*large, method="exact"))


@pytest.mark.parametrize("options", [{"method": "exact"}, {"method": "poly", "degree": 4}, {"method": "poly", "degree": 4, "causal": True},
                                     {"method": "exact", "causal": True, "memory_limit": 400}], ids=str)  # fmt: skip
def test_gradients(options):
    q, (k1, k2), (v1, v2) = problem(5, n=4, d=2)
    tensors = [tensor.requires_grad_() for tensor in (q, k1, k2, v1, v2)]
    assert torch.autograd.gradcheck(lambda *t: tensor_attention(*t, **options), tensors)


@pytest.mark.parametrize("seed", range(3))
def test_match_three_is_brute_force(seed):
    random = torch.Generator().manual_seed(seed)
    for modulus, n in ((31, 30), (31, 8), (7, 3), (64, 12), (2, 2)):
        for _ in range(10):
            x = torch.randint(modulus, (n,), generator=random)
            sums = (x[:, None, None] + x[:, None] + x) % modulus
            assert torch.equal(match_three(x, modulus), (sums == 0).flatten(1).any(1))


def test_the_logits_of_match_three_are_out_of_reach_of_the_polynomial():
    from tersor.attention import match_head

    head = match_head(torch.arange(30) % 31, 31)
    with pytest.raises(InvalidArgument, match="use method='exact'"):
        certify(head.q, (head.k1, head.k2), (head.v1, head.v2), scale=head.scale)


def test_the_layer_mixes_heads_and_learns():
    layer = TensorAttention(8, heads=2, generator=torch.Generator().manual_seed(0))
    x, target = draw(0, 4, 6, 8).float(), draw(1, 4, 6, 8).float()
    with torch.no_grad():
        q, k1, k2, v1, v2 = (part(x)[..., 4:] for part in (layer.query, *layer.keys, *layer.values))
        expected = tensor_attention(q, k1, k2, v1, v2)
        mixed = torch.linalg.solve(layer.output.weight, (layer(x) - layer.output.bias).mT).mT
    torch.testing.assert_close(mixed[..., 4:], expected, rtol=1e-3, atol=1e-4)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[:, 4:] = False
    torch.testing.assert_close(layer(x, mask=mask)[:, :4], layer(x[:, :4]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x, causal=True)[:, :3], layer(x[:, :3], causal=True), rtol=1e-4, atol=1e-5)
    optimizer, losses = torch.optim.Adam(layer.parameters(), 1e-2), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_half_precision_inputs_come_back_in_their_type():
    q, keys, values = problem(0)
    half = [tensor.bfloat16() for tensor in (q, *keys, *values)]
    made = tensor_attention(*half, method="poly", degree=4)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.double(), higher_order_attention(q, keys, values), rtol=0, atol=0.02)


GOOD = problem(0, n=5)
NAN = torch.full((5, 3), math.nan, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda q, k, v: higher_order_attention(q, k, v[:1]), "as many values as keys"),
        (lambda q, k, v: higher_order_attention(q, (k[0], k[1][:4]), v), "all keys must be of shape"),
        (lambda q, k, v: higher_order_attention(q, k, (v[0], v[1][:, :1])), "all values must be of shape"),
        (lambda q, k, v: higher_order_attention(q[0], k, v), "queries of shape"),
        (lambda q, k, v: higher_order_attention(q, (k[0], NAN), v), "the keys hold NaN or Inf"),
        (lambda q, k, v: higher_order_attention(q, k, v, method="fast"), "method must be one of"),
        (lambda q, k, v: higher_order_attention(q, k, v, mask=torch.zeros(5, dtype=torch.bool)), "leave a key to see"),
        (lambda q, k, v: higher_order_attention(q[:3], k, v, causal=True), "as many queries as keys"),
        (lambda q, k, v: higher_order_attention(q, k, v, method="poly", degree=3), "degree 3 is odd, .* use 4"),
        (lambda q, k, v: higher_order_attention(9 * q, k, v, method="poly", degree=2), "promises nothing; use degree"),
        (lambda q, k, v: higher_order_attention(q, k, v, method="poly", degree=2, eps=1e-9), "not 1e-09; raise the degree"),
        (lambda q, k, v: higher_order_attention(q, k, v, method="poly", degree=60, memory_limit=1 << 20), "monomials, which take .* GB"),
        (lambda q, k, v: higher_order_attention(q, k * 2, v * 2, method="exact", memory_limit=100), "all tuples of 4 keys"),
        (lambda q, k, v: higher_order_attention(q, k, v, eps=0.0, method="poly"), "eps must be above 0"),
        (lambda q, k, v: match_three(torch.tensor([1, 9]), 5), "integers from 0 to 4"),
        (lambda q, k, v: TensorAttention(9, heads=2), "heads 2 does not divide"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call(GOOD[0], tuple(GOOD[1]), tuple(GOOD[2]))
