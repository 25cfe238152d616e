"""One contract for every compressor, and what is particular to each."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import scipy.stats
import torch

from tersor.distributed import COMPRESSORS, Context, Identity, LowRank, RandK, ScaledSign, TopK, UniformQuant, parse_compressor
from tersor.distributed.compressors import Compressor, describe_compressor
from tersor.distributed.compressors.randk import sample
from tersor.errors import InvalidArgument

EVERY = [
    Identity(), TopK(ratio=0.1), TopK(k=3), RandK(ratio=0.1), ScaledSign(), UniformQuant(bits=1), UniformQuant(bits=4, bucket=64),
    UniformQuant(bits=3, stochastic=True), UniformQuant(bits=8), LowRank(rank=2), LowRank(rank=50),
]  # fmt: skip
SHAPES = [(1,), (1, 1), (7,), (12, 10), (3, 5, 4), (1030,)]


def inputs(shape: tuple[int, ...], workers: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(workers, math.prod(shape), generator=generator, dtype=dtype).exp() - 1


def sent(compressor: Compressor, x: torch.Tensor, context: Context) -> torch.Tensor:
    """What the messages of all rows stand for."""
    sketch = compressor.sketch(x, context)
    shared = None if sketch is None else compressor.agree(sketch.sum(0), context)
    return compressor.decompress(compressor.compress(x, context, shared), context, shared)


def test_every_family_is_under_contract():
    assert {compressor.kind for compressor in EVERY} == set(COMPRESSORS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_contract(compressor: Compressor, shape: tuple[int, ...]):
    context = Context("layer", shape, step=5)
    x = inputs(shape)
    before = x.clone()
    result = sent(compressor, x, context)
    assert torch.equal(x, before)
    assert torch.equal(result, sent(compressor, x, context))  # randomness comes from the context alone
    # Never larger than it was, and as near as promised.
    error = (result - x).square().sum(1)
    assert bool((error <= (1 - compressor.delta(shape) * (compressor.kind != "lowrank")) * x.square().sum(1) * (1 + 1e-5)).all()) or (
        compressor.kind == "randk"  # in expectation: see below
    )
    # The message has the size that was promised, whatever is in it.
    sketch = compressor.sketch(x, context)
    for values in (x, torch.zeros_like(x)):
        message = compressor.compress(values, context, None if sketch is None else compressor.agree(sketch.sum(0), context))
        promised = compressor.layout(shape, torch.float32)
        assert [(tuple(part.shape[1:]), part.dtype) for part in message] == promised
    on_wire = sum(part.numel() * part.element_size() for part in message) + (0 if sketch is None else sketch.numel() * 4)
    assert on_wire == 3 * compressor.nbytes(shape)
    assert compressor.nbits(shape) <= 8 * compressor.nbytes(shape)


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_zero_stays_zero(compressor: Compressor):
    assert float(sent(compressor, torch.zeros(2, 30), Context("layer", (6, 5))).abs().max()) == 0


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_totals_and_linear_messages_are_sums(compressor: Compressor):
    context, x = Context("layer", (12, 10)), inputs((12, 10), workers=4, dtype=torch.float64)
    sketch = compressor.sketch(x, context)
    shared = None if sketch is None else compressor.agree(sketch.sum(0), context)
    message = compressor.compress(x, context, shared)
    dense = compressor.decompress(message, context, shared).sum(0)
    if compressor.reduces:
        summed = tuple(part.sum(0, keepdim=True) for part in message)
        torch.testing.assert_close(compressor.decompress(summed, context, shared)[0], dense)
    else:
        torch.testing.assert_close(compressor.total(message, context), dense)


def test_topk_is_the_best_of_its_size():
    x = inputs((40,), workers=1)
    best = sent(TopK(k=4), x, Context("x", (40,)))
    kept = set(best[0].nonzero().flatten().tolist())
    assert kept == set(x[0].abs().argsort(descending=True)[:4].tolist())
    assert torch.equal(best[best != 0], x[best != 0])


@pytest.mark.parametrize(("ratio", "expected"), [(1e-9, 1), (0.01, 11), (0.5, 515), (1.0, 1030)])
def test_a_ratio_is_rounded_up(ratio: float, expected: int):
    assert TopK(ratio=ratio).count(1030) == expected


def test_every_set_of_indices_is_drawn_alike():
    """Chi-squared of 66 sets over 6,600 draws, by the 99.99 % point of 65 degrees of freedom; large draws have no index twice."""
    generator = torch.Generator().manual_seed(0)
    counts = Counter(tuple(sample(12, 2, generator).sort().values.tolist()) for _ in range(6600))
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) + 100 * (66 - len(counts)) < scipy.stats.chi2.ppf(0.9999, 65)
    for numel, count in ((1, 1), (7, 7), (1000, 249), (1000, 251), (10**6, 10**5)):
        drawn = sample(numel, count, generator)
        assert len(drawn.unique()) == count == len(drawn)
        assert 0 <= int(drawn.min()) <= int(drawn.max()) < numel


def test_randk_contracts_in_expectation_and_its_rescaled_form_is_unbiased():
    x, shape = inputs((50,), workers=1), (50,)
    plain = torch.cat([sent(RandK(ratio=0.2), x, Context("x", shape, step)) for step in range(4000)])
    scaled = torch.cat([sent(RandK(ratio=0.2, rescale=True), x, Context("x", shape, step)) for step in range(4000)])
    kept = 1 - float((plain - x).square().sum(1).mean() / x.square().sum())
    assert kept == pytest.approx(RandK(ratio=0.2).delta(shape), abs=0.03)
    assert float((scaled.mean(0) - x).norm() / x.norm()) < 0.1
    assert not RandK(rescale=True).contractive


def test_scaled_sign_keeps_what_the_formula_says():
    x = inputs((64,), workers=1, dtype=torch.float64)
    kept = 1 - (sent(ScaledSign(), x, Context("x", (64,))) - x).square().sum() / x.square().sum()
    assert float(kept) == pytest.approx(float(x.abs().sum() ** 2 / (64 * x.square().sum())))


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantisation_is_within_half_a_unit_and_projecting_only_helps(bits: int):
    x, context = inputs((3000,), workers=1), Context("x", (3000,))
    plain, projected = (sent(UniformQuant(bits=bits, project=project), x, context) for project in (False, True))
    unit = (x.max() - x.min()) / (2**bits - 1)
    assert float((plain - x).abs().max()) <= float(unit) / 2 * (1 + 1e-4)
    assert float((projected - x).norm()) <= float((plain - x).norm()) * (1 + 1e-6)


def test_plain_one_bit_rounding_blows_up_where_the_projected_one_does_not():
    x = torch.zeros(1, 1000)
    x[0, 0], x[0, 1] = 1.0, -1.0
    plain, projected = (sent(UniformQuant(bits=1, project=project), x, Context("x", (1000,))) for project in (False, True))
    assert float((plain - x).norm()) > 20 * float(x.norm())
    assert float((projected - x).norm()) <= float(x.norm())


def test_stochastic_rounding_is_unbiased():
    x = inputs((100,), workers=1)
    quant = UniformQuant(bits=2, stochastic=True, project=False)
    mean = torch.cat([sent(quant, x, Context("x", (100,), step)) for step in range(3000)]).mean(0)
    unit = float(x.max() - x.min()) / 3
    assert float((mean - x).abs().max()) < 5 * unit / 2 / 3000**0.5
    assert not torch.equal(sent(quant, x, Context("x", (100,), rank=0)), sent(quant, x, Context("x", (100,), rank=1)))


def test_low_rank_with_a_warm_start_finds_the_best_basis():
    generator = torch.Generator().manual_seed(0)
    spectrum = 0.7 ** torch.arange(16, dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(n, 16, generator=generator, dtype=torch.float64)).Q for n in (30, 20))
    x, compressor, warm = ((left * spectrum) @ right.T).reshape(1, -1), LowRank(rank=3), None
    losses = []
    for step in range(12):
        context = Context("x", (30, 20), step, warm=warm)
        shared = compressor.agree(compressor.sketch(x, context).sum(0), context)
        message = compressor.compress(x, context, shared)
        losses.append(float((compressor.decompress(message, context, shared) - x).norm()))
        warm = compressor.remember(message, context)
    best = float(spectrum[3:].norm())
    assert losses[0] > 1.01 * best
    assert losses[-1] == pytest.approx(best, rel=1e-6)


def test_low_rank_keeps_its_leading_columns_when_the_rank_changes():
    generator = torch.Generator().manual_seed(0)
    x, warm = inputs((12, 10), workers=1), torch.randn(10, 3, generator=generator)
    for rank in (1, 3, 6):
        sketch = LowRank(rank=rank).sketch(x, Context("x", (12, 10), warm=warm)).reshape(12, rank)
        lead = x.reshape(12, 10) @ torch.linalg.qr(warm[:, :rank]).Q
        torch.testing.assert_close(sketch[:, : min(rank, 3)].abs(), lead.abs(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compressor", [c for c in EVERY if c not in (TopK(k=3), LowRank(rank=50))], ids=repr)
def test_descriptions_tell_compressors_apart(compressor: Compressor):
    same = [other for other in EVERY if describe_compressor(other) == describe_compressor(compressor)]
    assert same == [compressor]


def test_names_are_parsed():
    names = ["topk:0.01", "randk:0.5", "sign", "quant:4", "lowrank:2", "identity"]
    expected = [TopK(ratio=0.01), RandK(ratio=0.5), ScaledSign(), UniformQuant(bits=4), LowRank(rank=2), Identity()]
    assert [parse_compressor(name) for name in names] == expected
    assert parse_compressor(expected[0]) is expected[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("topk:0", "ratio of topk must be above 0 and at most 1, got 0.0"), ("topk:1.5", "above 0 and at most 1"),
        ("randk:nan", "above 0 and at most 1"), ("topk", "needs a number"), ("quant:9", "bits of quant must be an integer from 1 to 8"),
        ("lowrank:0", "rank of lowrank must be an integer of at least 1"), ("lowrank:1.5", "whole number"), ("lowrank:inf", "whole number"),
        ("sign:3", "takes no number"), ("gzip", "unknown compressor 'gzip'; choose one like topk:0.01"),
    ],
)  # fmt: skip
def test_bad_names_are_refused(name: str, message: str):
    with pytest.raises(InvalidArgument, match=message):
        parse_compressor(name)


def test_topk_wants_one_size():
    for options in ({}, {"ratio": 0.1, "k": 2}, {"k": 0}, {"k": 1.5}):
        with pytest.raises(InvalidArgument):
            TopK(**options)
