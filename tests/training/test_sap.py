"""Rounds of pruning against the formula, the bound on what may go, and each other."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import training_cases as cases
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.information import kept_at_least, pq_index
from tersor.training import SAP, Compression, LotteryTicket
from tersor.training.rounds import PruningRounds

SCOPES = ["global", "layer", "neuron"]


def train(model: nn.Module, method: PruningRounds, epochs: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Train three steps an epoch; the weights right before every end of an epoch."""
    compression = Compression(model, [method], seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    compression.attach(optimizer)
    pixels, labels = cases.batch()
    seen = []
    for _ in range(epochs):
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model.train()(pixels), labels).backward()
            optimizer.step()
        seen.append({key: value.detach().clone() for key, value in model.state_dict().items()})
        compression.epoch_end()
    return seen


def rows(weight: Tensor, scope: str) -> list[Tensor]:
    return list(weight.flatten(1)) if scope == "neuron" else [weight.flatten()]


@pytest.mark.parametrize(("p", "q"), [(0.5, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("scope", ["layer", "neuron"])
def test_a_round_removes_what_the_formula_says_and_the_smallest_of_it(scope, p, q):
    model, method = cases.SmallNet(), SAP(rounds=1, scope=scope, p=p, q=q, eta=0.01, gamma=3.0, beta=0.6)
    (before,) = train(model, method, 1)
    for name, mask in method.masks.items():
        for weights, kept in zip(rows(before[name], scope), rows(mask, scope), strict=True):
            d = len(weights)
            least = math.ceil(float(kept_at_least(pq_index(weights, p, q), d, p, q, 0.01)))
            assert int((~kept).sum()) == math.floor(d * min(max(3.0 * (1 - least / d), 0.0), 0.6) + 1e-9)
            if not kept.all():
                assert weights[~kept].abs().max() <= weights[kept].abs().min()


def test_the_global_scope_takes_all_weights_as_one():
    model, method = cases.SmallNet(), SAP(rounds=1)
    (before,) = train(model, method, 1)
    weights = torch.cat([before[name].flatten() for name in method.masks])
    kept = torch.cat([mask.flatten() for mask in method.masks.values()])
    least = math.ceil(float(kept_at_least(pq_index(weights), len(weights))))
    assert int(kept.sum()) == max(least, len(weights) - math.floor(0.9 * len(weights)))
    assert weights[~kept].abs().max() <= weights[kept].abs().min()


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_left_begins_again_and_what_is_gone_stays_gone(scope):
    model, method = cases.SmallNet(), SAP(rounds=2, scope=scope, p=1.0, q=2.0)
    initial = {key: value.detach().clone() for key, value in model.state_dict().items()}
    train(model, method, 1)
    for key, value in model.state_dict().items():
        expected = initial[key] * method.masks[key] if key in method.masks else initial[key]
        assert torch.equal(value, expected), key
    model, method = cases.SmallNet(), SAP(rounds=2, scope=scope, p=1.0, q=2.0)
    seen = train(model, method, 4)
    for name, mask in method.masks.items():
        assert not seen[-1][name][~mask].any()
        assert seen[-1][name][mask].all()
    assert 1 > method.report()["kept"][0] > method.report()["kept"][1] > 0


def test_a_round_is_trained_as_if_it_were_the_first():
    # New optimizer, initial values, the mask from the start: the same bits as a second training by hand.
    model, method = cases.SmallNet(), SAP(rounds=1)
    seen = train(model, method, 2)
    by_hand = cases.SmallNet()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9)
    parameters = dict(by_hand.named_parameters())
    pixels, labels = cases.batch()

    def cut() -> None:
        with torch.no_grad():
            for name, mask in method.masks.items():
                parameters[name].mul_(mask)

    cut()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(by_hand.train()(pixels), labels).backward()
        optimizer.step()
        cut()
    assert all(torch.equal(seen[1][key], value) for key, value in by_hand.state_dict().items())


def test_without_rewinding_training_goes_on():
    model, method = cases.SmallNet(), SAP(rounds=1, rewind=False)
    (before,) = train(model, method, 1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] * method.masks[key] if key in method.masks else before[key])
    assert not any(key.startswith("initial") for key in method.state_dict())


@pytest.mark.parametrize("scope", SCOPES)
def test_extreme_options_never_empty_a_group(scope):
    model, method = cases.SmallNet(), SAP(rounds=12, scope=scope, gamma=1e6, beta=0.9)
    train(model, method, 12)
    for mask in method.masks.values():
        groups = [mask] if scope == "layer" else rows(mask, "neuron") if scope == "neuron" else []
        assert all(group.any() for group in groups)
    assert sum(int(mask.sum()) for mask in method.masks.values()) > 0


def test_equal_magnitudes_lose_nothing():
    model = nn.Linear(8, 8)
    model.weight.data.fill_(0.5).view(-1)[::2] *= -1
    method = SAP(rounds=1)
    compression = Compression(model, [method])
    compression.epoch_end()
    assert method.report()["kept"] == [1.0]


def test_a_lottery_removes_its_share_and_stops():
    model, method = cases.SmallNet(), LotteryTicket(rounds=3, fraction=0.25)
    train(model, method, 5)
    total = method.report()["numel"]
    left, expected = total, []
    for _ in range(3):
        left -= left // 4
        expected.append(left / total)
    assert method.report()["kept"] == expected


def test_ranking_by_the_first_training_needs_no_other():
    model, method = cases.SmallNet(), LotteryTicket(rounds=3, ranking="first")
    first, *_ = train(model, method, 4)
    weights = torch.cat([first[name].abs().flatten() for name in method.masks])
    kept = torch.cat([mask.flatten() for mask in method.masks.values()])
    assert weights[~kept].max() <= weights[kept].min()
    other_model, other = cases.SmallNet(), LotteryTicket(rounds=3)
    train(other_model, other, 4)
    assert any(not torch.equal(mask, other.masks[name]) for name, mask in method.masks.items())


def test_pruning_slows_down_as_equality_grows():
    # The share that a round removes falls as the rest becomes equal: on the same vector, without training between.
    model = nn.Linear(200, 50)
    model.weight.data = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    method = SAP(rounds=5, rewind=False)
    compression = Compression(model, [method])
    for _ in range(5):
        compression.epoch_end()
    kept = [1.0, *method.report()["kept"]]
    shares = [1 - after / before for before, after in pairwise(kept)]
    assert all(after < before for before, after in pairwise(shares))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SAP(p=1.0, q=1.0), "below q"),
        (lambda: SAP(beta=1.0), "beta"),
        (lambda: SAP(gamma=0.0), "gamma"),
        (lambda: SAP(eta=-1.0), "eta"),
        (lambda: SAP(scope="filter"), "scope"),
        (lambda: SAP(rounds=0), "rounds"),
        (lambda: SAP(epochs=0), "epochs"),
        (lambda: LotteryTicket(fraction=1.0), "fraction"),
        (lambda: LotteryTicket(ranking="second"), "ranking"),
        (lambda: Compression(cases.SmallNet(), [SAP(targets=["conv9"])]), "conv9"),
    ],
)
def test_bad_options_are_refused_by_name(make, said):
    with pytest.raises(InvalidArgument, match=said):
        make()
