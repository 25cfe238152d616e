"""Compresso: gates follow their distribution, what is cut computes what was masked, and sizes are those that were asked for."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

from tersor.errors import CorruptFile, InvalidArgument
from tersor.training import Compression, Compresso, Decoder, Masks, Schedule, compresso, magnitude_scores, masks_of, slice_decoder
from tersor.training.decoder import KNOWN, Shape
from tersor.training.l0_gates import ASCENT, BETA, GAMMA, LOGIT_BOUND, STIFFNESS, ZETA, Gates, expected_share, open_probability, sample_gate

LAYERS, HEADS, GROUPS, UNITS, WIDTH, VOCABULARY = 2, 6, 3, 20, 24, 40


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decoder(kind: str = "llama", tied: bool = True, seed: int = 0, **options: Any) -> nn.Module:
    """A small decoder with weights of order one everywhere, norms and biases too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=UNITS, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=GROUPS, head_dim=4, max_position_embeddings=64, tie_word_embeddings=tied, rms_norm_eps=0.05, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, **options,
    )  # fmt: skip
    with torch.random.fork_rng():
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    generator = random(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator) + (1.0 if parameter.ndim == 1 else 0.0))
    return model.eval()


def tokens(seed: int, count: int = 6, length: int = 10) -> Tensor:
    return torch.randint(VOCABULARY, (count, length), generator=random(seed))


def masks(seed: int, soft: bool, uniform: bool = True) -> Masks:
    generator = random(seed)
    sizes = (2, 13) if uniform else (None, None)
    parts = []
    for rows, columns, kept in ((LAYERS, GROUPS, sizes[0]), (LAYERS, UNITS, sizes[1])):
        scores = torch.rand(rows, columns, generator=generator)
        counts = [kept or int(torch.randint(1, columns + 1, (), generator=generator)) for _ in range(rows)]
        parts.append(torch.stack([(row.argsort().argsort() < count).float() for row, count in zip(scores, counts, strict=True)]))
    width = (torch.rand(WIDTH, generator=generator).argsort().argsort() < (16 if uniform else 18)).float()
    values = [part * (0.3 + 0.7 * torch.rand(part.shape, generator=generator)) if soft else part for part in (*parts, width)]
    return Masks(*values)


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=inputs, use_cache=False).logits
    return found


def masked_logits(model: nn.Module, chosen: Masks, inputs: Tensor) -> Tensor:
    """By the hooks, with adapters of zero."""
    model = copy.deepcopy(model)
    Compression(model, [Compresso(masks=chosen)])
    return logits(model, inputs)


@pytest.mark.parametrize("logit", [-4.6, -1.0, 0.0, 0.7, 3.0, 4.6])
def test_gates_are_open_and_large_as_often_as_the_closed_form_says(logit: float):
    n = 200_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    gates = sample_gate(torch.full((n,), logit, dtype=torch.float64), uniform)
    assert float((gates > 0).double().mean()) == pytest.approx(float(open_probability(torch.tensor(logit))), abs=2e-5)

    def survival(t: float) -> float:
        """P(gate > t), from the logistic distribution of the noise."""
        inner = (t - GAMMA) / (ZETA - GAMMA)
        return 1 / (1 + math.exp(BETA * math.log(inner / (1 - inner)) - logit))

    mean, _ = integrate.quad(survival, 0, 1)
    assert float(gates.mean()) == pytest.approx(mean, abs=1e-4)


def test_gates_let_gradients_through_only_while_undecided():
    logit = torch.zeros(3, requires_grad=True)
    sample_gate(logit, torch.tensor([0.01, 0.5, 0.99])).sum().backward()
    assert logit.grad is not None
    assert logit.grad[0] == 0
    assert logit.grad[1] > 0
    assert logit.grad[2] == 0


def test_decided_gates_count_as_what_they_are():
    share = expected_share(torch.tensor([-LOGIT_BOUND, 0.0, LOGIT_BOUND]))
    assert float(share[0]) == pytest.approx(0, abs=1e-6)
    assert float(share[2]) == pytest.approx(1, abs=1e-6)
    assert 0.5 < float(share[1]) < 1


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_what_is_cut_computes_what_was_masked(kind: str, tied: bool, soft: bool):
    for seed in range(3):
        model, chosen, inputs = decoder(kind, tied, seed), masks(seed, soft), tokens(seed)
        expected = masked_logits(model, chosen, inputs)
        assert not torch.allclose(expected, logits(model, inputs), atol=0.1)
        sliced = slice_decoder(copy.deepcopy(model), chosen)
        torch.testing.assert_close(logits(sliced, inputs), expected, atol=1e-4, rtol=1e-4)
        assert sum(parameter.numel() for parameter in sliced.parameters()) == Decoder(model).count_of(chosen.shape)


@pytest.mark.parametrize("biases", [{"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True}], ids=str)
def test_biases_are_cut_and_counted_too(biases: dict[str, bool]):
    model, chosen, inputs = decoder("llama", **biases), masks(1, soft=True), tokens(1)
    expected = masked_logits(model, chosen, inputs)
    count = Decoder(model).count_of(chosen.shape)
    sliced = slice_decoder(model, chosen)
    torch.testing.assert_close(logits(sliced, inputs), expected, atol=1e-4, rtol=1e-4)
    assert sum(parameter.numel() for parameter in sliced.parameters()) == count


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_layers_may_keep_different_sizes(kind: str):
    for seed in range(4):
        model, chosen, inputs = decoder(kind), masks(seed, soft=True, uniform=False), tokens(seed)
        expected = masked_logits(model, chosen, inputs)
        sliced = slice_decoder(model, chosen)
        torch.testing.assert_close(logits(sliced, inputs), expected, atol=1e-4, rtol=1e-4)


def test_without_its_correction_the_norm_would_change_the_outputs():
    model, chosen, inputs = decoder(), masks(0, soft=False), tokens(0)
    expected = masked_logits(model, chosen, inputs)
    sliced = slice_decoder(model, chosen)
    with torch.no_grad():
        for name, parameter in sliced.named_parameters():
            if "norm" in name:
                parameter.mul_(math.sqrt(16 / WIDTH))
    assert not torch.allclose(logits(sliced, inputs), expected, atol=1e-2)


def test_sliced_models_load_and_generate_without_tersor(tmp_path: Path):
    inputs, expected = tokens(3), []
    for kind in KNOWN:
        sliced = slice_decoder(decoder(kind), masks(3, soft=True))
        sliced.save_pretrained(tmp_path / kind)
        written = sliced.generate(inputs[:1], max_new_tokens=4, do_sample=False)[0].tolist()
        expected.append((type(sliced).__name__, written, float(logits(sliced, inputs).double().sum())))
    code = f"""
import json, sys, torch
sys.modules["tersor"] = None
from transformers import AutoModelForCausalLM
inputs = torch.tensor({inputs.tolist()!r})
for kind in {KNOWN!r}:
    model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r} + "/" + kind)
    written = model.generate(inputs[:1], max_new_tokens=4, do_sample=False)[0].tolist()
    print(json.dumps([type(model).__name__, written, model(inputs).logits.double().sum().item()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line, (name, written, total) in zip(done.stdout.strip().splitlines()[-len(KNOWN) :], expected, strict=True):
        assert json.loads(line)[:2] == [name, written]
        assert json.loads(line)[2] == pytest.approx(total, rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("per_layer", [False, True], ids=["uniform", "per layer"])
def test_the_expected_size_is_the_mean_size_of_drawn_gates(per_layer: bool):
    model = decoder("qwen2")
    parts = Decoder(model)
    gates = Gates(parts, ("groups", "units", "width"), per_layer, random(0))
    for logit in gates.logits.values():
        logit.data = 2 * torch.randn(logit.shape, generator=random(1))
    gates.project(1.0)
    generator, drawn = random(2), []
    for _ in range(3000):
        kept = [torch.rand(size, generator=generator) < expected_share(gates.logits[kind]) for kind, size in gates.sizes.items()]
        drawn.append(parts.count(*(mask.sum(-1) for mask in kept)))
    sizes = torch.stack(drawn).double() / parts.parameters
    assert float(gates.expected_keep().detach()) == pytest.approx(float(sizes.mean()), abs=4 * float(sizes.std()) / 3000**0.5)
    if not per_layer:
        counts = expected_share(gates.logits["units"]).sum(1)
        torch.testing.assert_close(counts, counts.mean().expand(LAYERS), atol=1e-3, rtol=0)


@pytest.mark.parametrize("per_layer", [False, True], ids=["uniform", "per layer"])
@pytest.mark.parametrize("kinds", [("groups", "units", "width"), ("groups", "units"), ("units",)], ids=str)
def test_settled_sizes_are_at_most_the_target_and_near_it(per_layer: bool, kinds: Any):
    parts = Decoder(decoder())
    unit = 3 * WIDTH * (1 if per_layer else LAYERS) / parts.parameters
    for seed in range(4):
        gates = Gates(parts, kinds, per_layer, random(seed))
        for logit in gates.logits.values():
            logit.data = 3 * torch.randn(logit.shape, generator=random(seed))
        for keep in (0.85, 0.7):
            share = parts.count_of(gates.settle(keep, 1).shape) / parts.parameters
            assert keep - unit <= share <= keep or gates.settle(keep, 1).shape.units[0] in (1, UNITS)


def test_settled_gates_are_the_ones_of_highest_logit():
    parts = Decoder(decoder())
    gates = Gates(parts, ("units",), True, random(0))
    gates.logits["units"].data = torch.linspace(-4, 4, LAYERS * UNITS).reshape(LAYERS, UNITS).flip(1)
    chosen = gates.settle(0.85, 1).units != 0
    count = int(chosen.sum())
    assert UNITS < count < LAYERS * UNITS - 1
    assert torch.equal(chosen.flatten(), gates.logits["units"].flatten().argsort(descending=True).argsort() < count)


def test_no_layer_is_left_without_units_and_the_size_is_kept():
    parts = Decoder(decoder())
    gates = Gates(parts, ("units",), True, random(0))
    gates.logits["units"].data = torch.linspace(-4, 4, LAYERS * UNITS).reshape(LAYERS, UNITS)
    shape = gates.settle(0.75, 1).shape
    assert shape.units[0] == 1
    assert parts.count_of(shape) <= 0.75 * parts.parameters


def test_the_lagrangian_finds_the_known_optimum_at_the_target():
    """512 gates of importance u^3: what goes must be what matters least, and as much of it as was asked for."""
    for seed in range(3):
        importance = torch.rand(512, generator=random(seed)) ** 3
        logit = nn.Parameter(LOGIT_BOUND - 0.01 * torch.rand(512, generator=random(seed + 10)))
        optimizer = torch.optim.AdamW([logit], lr=0.3, weight_decay=0.0)
        generator, steps, keep, multiplier = random(seed + 20), 300, 0.7, 0.0
        for step in range(steps):
            gate = sample_gate(logit, torch.rand(512, generator=generator))
            excess = expected_share(logit).mean() - (1 - (1 - keep) * min(step / (0.8 * steps), 1.0))
            optimizer.zero_grad()
            (5 * ((1 - gate) * importance).mean() + multiplier * excess + STIFFNESS * excess**2).backward()
            optimizer.step()
            multiplier += ASCENT * float(excess.detach())
            logit.data.clamp_(-LOGIT_BOUND, LOGIT_BOUND)
        assert float(expected_share(logit.detach()).mean()) == pytest.approx(keep, abs=0.01)
        count = round(512 * (1 - keep))
        gone, best = logit.argsort()[:count], importance.argsort()[:count]
        assert len(set(gone.tolist()) & set(best.tolist())) >= 0.9 * count
        assert importance[gone].sum() < 1.3 * importance[best].sum()


SCHEDULE = Schedule(steps=60, batch=4, learning_rate=1e-2, check_every=10)


def prune(seed: int = 0, keep: float = 0.7, schedule: Schedule = SCHEDULE, **options: Any) -> Any:
    method = Compresso(keep=keep, rank=2, rate=0.3, **options)
    return compresso(decoder(), tokens(seed, 32), method, schedule, held_out=tokens(seed + 100, 8))


@pytest.mark.parametrize("per_layer", [False, True], ids=["uniform", "per layer"])
def test_training_ends_at_the_size_that_was_asked_for(per_layer: bool):
    for seed in range(3):
        schedule = Schedule(steps=200, batch=4, learning_rate=1e-2, check_every=50, seed=seed)
        pruned = prune(seed, schedule=schedule, per_layer=per_layer, begin=10, end=80, fix=150)
        fixed = 150
        assert pruned.expected_keep[fixed - 2] == pytest.approx(0.7, abs=0.05)
        assert pruned.parameters <= 0.7 * pruned.original_parameters
        assert pruned.parameters == sum(parameter.numel() for parameter in pruned.model.parameters())
        assert pruned.parameters == Decoder(decoder()).count_of(pruned.masks.shape)
        assert pruned.sliced_loss == pytest.approx(pruned.masked_loss, abs=1e-4)
        assert pruned.masked_loss == min(loss for step, loss in pruned.held_out if step >= fixed)


def test_pruning_leaves_a_plain_model_and_the_original_alone():
    model = decoder()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    pruned = compresso(model, tokens(0, 16), Compresso(keep=0.8, rank=2), Schedule(steps=20, batch=2))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert [name for name, _ in pruned.model.named_parameters()] == list(before)
    assert all(parameter.requires_grad for parameter in pruned.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pruned.model.modules())


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("at", [13, 31, 47])
def test_a_killed_run_goes_on_to_the_same_model(at: int, tmp_path: Path):
    model, train, unseen = decoder(), tokens(0, 32), tokens(1, 8)

    def run(**options: Any) -> Any:
        return compresso(model, train, Compresso(keep=0.7, rank=2, rate=0.3), SCHEDULE, held_out=unseen, **options)

    def kill(step: int, steps: int, loss: float) -> None:
        if step == at:
            raise Killed

    whole = run()
    with pytest.raises(Killed):
        run(checkpoint=tmp_path / "state.safetensors", progress=kill)
    seen: list[int] = []
    resumed = run(checkpoint=tmp_path / "state.safetensors", progress=lambda step, steps, loss: seen.append(step))
    assert seen[0] == at // 10 * 10 + 1
    assert resumed.losses == whole.losses
    assert resumed.expected_keep == whole.expected_keep
    assert resumed.held_out == whole.held_out
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_checkpoint_of_another_job_or_a_damaged_one_is_refused(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    short = Schedule(steps=10, batch=2, check_every=5)
    compresso(decoder(), tokens(0), Compresso(rank=2), short, checkpoint=path)
    for model, windows, method in (
        (decoder(), tokens(1), Compresso(rank=2)), (decoder(), tokens(0), Compresso(rank=2, keep=0.7)),
        (decoder(seed=1), tokens(0), Compresso(rank=2)),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match="another job"):
            compresso(model, windows, method, short, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptFile, match="cannot be read"):
        compresso(decoder(), tokens(0), Compresso(rank=2), short, checkpoint=path)


def test_without_adapters_nothing_but_the_cut_changes_the_weights():
    model = decoder()
    pruned = compresso(model, tokens(0), Compresso(keep=0.7, adapted=(), kinds=("units",)), SCHEDULE, held_out=tokens(1))
    assert torch.equal(pruned.model.model.embed_tokens.weight, model.model.embed_tokens.weight)
    kept = pruned.masks.units[0].bool()
    assert torch.equal(pruned.model.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight[kept])


def test_without_the_lagrangian_the_size_does_not_press_on_the_gates():
    free, pressed = (
        compresso(decoder(), tokens(0), Compresso(keep=0.5, rank=2, lagrangian=lagrangian), SCHEDULE) for lagrangian in (False, True)
    )
    before_the_cut = round(0.6 * SCHEDULE.steps) - 2
    assert free.expected_keep[before_the_cut] > 0.9 > pressed.expected_keep[before_the_cut]
    assert free.parameters <= 0.5 * free.original_parameters


def test_parts_chosen_elsewhere_are_cut_and_healed():
    model = decoder()
    scores = magnitude_scores(Decoder(model))
    shape = Shape((2,) * LAYERS, (12,) * LAYERS, 20)
    chosen = masks_of(shape, **scores)
    pruned = compresso(model, tokens(0, 32), Compresso(masks=chosen, rank=2), SCHEDULE, held_out=tokens(1, 8))
    assert pruned.masks.shape == shape
    assert pruned.sliced_loss is not None
    assert pruned.sliced_loss < pruned.held_out[0][1]


def test_magnitude_is_the_length_of_all_that_goes_with_a_part():
    model = decoder()
    parts, scores = Decoder(model), magnitude_scores(Decoder(model))
    total = sum(parameter.detach().square().sum() for name, parameter in model.named_parameters() if "proj" in name)
    assert float(scores["groups"].sum() + scores["units"].sum()) == pytest.approx(float(total), rel=1e-4)
    chosen = masks_of(Shape((GROUPS, GROUPS), (UNITS, UNITS - 1), WIDTH), **scores)
    gone = int((chosen.units[1] == 0).nonzero())
    mlp: Any = parts.layers[1].mlp
    lengths = (mlp.gate_proj.weight**2).sum(1) + (mlp.up_proj.weight**2).sum(1) + (mlp.down_proj.weight**2).sum(0)
    assert gone == int(lengths.argmin())


def test_the_prompt_is_read_but_not_scored():
    from tersor.training.compresso import language_loss

    model, windows, prompt = decoder(), tokens(0), tokens(5, 1, 7)[0]
    with torch.no_grad():
        found = language_loss(model, windows, prompt)
        scores = logits(model, torch.cat([prompt.expand(6, -1), windows], 1))[:, 7:-1].log_softmax(-1)
    expected = -scores.gather(2, windows[:, 1:, None]).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("keep", [0.0, 1.0, -0.2, 1.5, float("nan"), "half", True])
def test_a_size_outside_zero_and_one_is_refused(keep: Any):
    with pytest.raises(InvalidArgument, match="between 0 and 1"):
        Compresso(keep=keep)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("heads",)}, "groups, units, width"), ({"kinds": ()}, "kinds is empty"), ({"rank": 0}, "rank"),
        ({"adapted": ("query",)}, "adapted"), ({"keep": 0.1, "kinds": ("groups",)}, "cannot be reached"),
        ({"begin": 0.5, "end": 0.2}, "before begin"), ({"fix": 5, "begin": 5, "end": 5}, "no step is left"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(options: Any, message: str):
    with pytest.raises(InvalidArgument, match=message):
        compresso(decoder(), tokens(0), Compresso(**options), Schedule(steps=10))


def test_models_that_cannot_be_sliced_are_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        other = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(InvalidArgument, match="GPT2LMHeadModel of type gpt2 cannot be sliced"):
        compresso(other, tokens(0))
    with pytest.raises(InvalidArgument, match="Linear cannot be sliced"):
        Decoder(nn.Linear(2, 2))
    broken = decoder()
    broken.get_parameter("model.layers.1.mlp.up_proj.weight").data[0, 0] = float("nan")
    with pytest.raises(InvalidArgument, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        compresso(broken, tokens(0))
    extended = decoder()
    extended.get_submodule("model").register_parameter("extra", nn.Parameter(torch.ones(3)))
    with pytest.raises(InvalidArgument, match="take adapters"):
        compresso(extended, tokens(0))


def test_tokens_and_masks_that_do_not_fit_are_refused():
    with pytest.raises(InvalidArgument, match="the model knows 0 to 39"):
        compresso(decoder(), tokens(0) + 30)
    with pytest.raises(InvalidArgument, match="token ids"):
        compresso(decoder(), torch.ones(2, 5))
    good = masks(0, soft=False)
    for bad, message in (
        (Masks(good.groups[:1], good.units, good.width), "groups has shape"),
        (Masks(good.groups, good.units * 0, good.width), "everything"),
        (Masks(good.groups, good.units, good.width / 0), "NaN or Inf"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match=message):
            slice_decoder(decoder(), bad)
        with pytest.raises(InvalidArgument, match=message):
            compresso(decoder(), tokens(0), Compresso(masks=bad))


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_and_accelerate_do_what_a_plain_loop_does(tmp_path: Path):
    from accelerate import Accelerator
    from transformers import Trainer, TrainingArguments

    data, steps = tokens(0, 24), 12

    def method() -> Compresso:
        return Compresso(keep=0.7, rank=2, begin=2, end=6, fix=9)

    def by_hand(accelerator: Any = None) -> Compression:
        model: Any = decoder().train()
        compression = Compression(model, [method()], total_steps=steps)
        optimizer: Any = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.05)
        if accelerator is not None:
            model, optimizer = accelerator.prepare(model, optimizer)
        compression.attach(optimizer)
        for step in range(steps):
            batch = data[2 * step : 2 * step + 2]
            optimizer.zero_grad()
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            loss.backward() if accelerator is None else accelerator.backward(loss)
            optimizer.step()
        return compression

    compression = by_hand()
    other = decoder()
    theirs = Compression(other, [method()])
    optimizer = torch.optim.SGD([parameter for parameter in other.parameters() if parameter.requires_grad], lr=0.05)
    theirs.attach(optimizer)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=steps, per_device_train_batch_size=2, max_grad_norm=0.0, use_cpu=True, save_strategy="no",
        report_to=[], disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    # The trainer divides by all labels, the first of which nothing predicts.
    rows = [{"input_ids": row, "labels": torch.cat([torch.tensor([-100]), row[1:]])} for row in data]
    level = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    Trainer(other, arguments, train_dataset=rows, optimizers=(optimizer, level), callbacks=[theirs.trainer_callback()]).train()
    expected = list(compression.finalize().parameters())
    for one in (theirs, by_hand(Accelerator(cpu=True))):
        assert one.step == compression.step == steps
        pairs = zip(one.finalize().parameters(), expected, strict=True)
        assert all(one.shape == two.shape and torch.allclose(one, two, atol=1e-5) for one, two in pairs)
