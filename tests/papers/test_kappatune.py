"""How the KappaTune experiment compares runs at equal loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tersor.papers.kappatune import ADAPTERS, OURS, Curve, Plan, Texts, _adapted, _tuned

CURVE = Curve(new=(3.0, 2.0, 2.2, 1.0), forgotten=(0.0, 0.4, 0.5, 1.0), trained=1, seconds=1.0)


@pytest.mark.parametrize(("loss", "expected"), [(3.0, 0.0), (2.5, 0.2), (2.0, 0.4), (1.6, 0.75), (1.0, 1.0), (0.5, 1.0)])
def test_forgotten_at_a_loss_is_read_at_its_first_crossing(loss, expected):
    assert CURVE.forgotten_at(loss) == pytest.approx(expected)


def test_adapters_take_the_largest_rank_within_the_budget():
    pytest.importorskip("peft")
    models = [nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 12)) for _ in range(2)]
    state = torch.get_rng_state()
    first, second = (_adapted(model, ["0.weight", "1.weight"], 130, seed=1) for model in models)
    assert torch.equal(state, torch.get_rng_state())
    trained = [parameter for parameter in first.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == 3 * 40
    again = [parameter for parameter in second.parameters() if parameter.requires_grad]
    assert all(torch.equal(one, other) for one, other in zip(trained, again, strict=True))


@pytest.mark.parametrize("method", [OURS, ADAPTERS])
def test_the_original_is_left_alone_and_every_run_starts_from_it(method):
    from transformers import LlamaConfig, LlamaForCausalLM

    from tersor.models import Model

    pytest.importorskip("peft")
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(LlamaForCausalLM(config))
    windows = torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(0))
    before = {name: parameter.clone() for name, parameter in model.module.named_parameters()}
    names = [name for name in before if name.endswith(("q_proj.weight", "v_proj.weight"))]
    texts, plan = Texts(windows, windows, windows, windows.flip(0)), Plan(4, 2, 8)
    first, second = (_tuned(model, 200, method, names, texts, plan, 1e-2, seed) for seed in (0, 1))
    assert first.new[0] == second.new[0] > max(first.new[-1], second.new[-1])
    assert all(torch.equal(before[name], parameter) for name, parameter in model.module.named_parameters())
