"""KappaTune: which matrices are chosen, and that no others change, under any loop."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch import nn

from tersor.errors import InvalidArgument
from tersor.finetuning import (
    SelectiveFineTuning,
    kappatune,
    lora_config,
    random_of_equal_shapes,
    select_by_condition,
    spectral_report,
)


def tiny_llama(tied: bool = True):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(64, (6, 12), generator=torch.Generator().manual_seed(seed))


def known_conditions() -> nn.Module:
    """Layers of conditions 1, 10, 100 and infinite, in mixed order, two shapes."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    for layer, values in zip(model, ([1.0, 1, 1, 0.01], [1.0, 1, 1, 1], [1.0, 0.1], [1.0, 0.0]), strict=True):
        layer.weight.data = torch.eye(*layer.weight.shape) * torch.tensor(values + [1.0] * (layer.in_features - len(values)))
    return model


def test_ranking_of_known_conditions():
    report = spectral_report(known_conditions())
    assert select_by_condition(report, n_tensors=4) == ["1.weight", "2.weight", "0.weight", "3.weight"]
    assert select_by_condition(report, n_tensors=2, order="high") == ["3.weight", "0.weight"]
    # 16 numbers each for the square ones, 8 for the flat one, 4 for the small one.
    assert select_by_condition(report, budget_params=15) == ["2.weight", "3.weight"]
    assert select_by_condition(report, budget_params=24) == ["1.weight", "2.weight"]


def test_shapes_decide_without_normalisation_and_not_with_it():
    random = torch.Generator().manual_seed(0)
    square, flat = nn.Linear(64, 64, bias=False), nn.Linear(64, 16, bias=False)
    square.weight.data = torch.randn(64, 64, generator=random) + 12 * torch.eye(64)
    flat.weight.data = torch.randn(16, 64, generator=random)
    report = spectral_report(nn.ModuleDict({"square": square, "flat": flat}))
    assert select_by_condition(report, n_tensors=1) == ["flat.weight"]
    assert select_by_condition(report, n_tensors=1, normalize="aspect") == ["square.weight"]


def test_only_the_selected_parameters_change_in_a_plain_loop():
    model = tiny_llama()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    selected = kappatune(model, n_tensors=3, max_dim=60)
    optimizer = torch.optim.AdamW(selected.param_groups(lr=1e-2, weight_decay=0.1))
    for step in range(3):
        optimizer.zero_grad()
        model(tokens(step), labels=tokens(step)).loss.backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(selected.names)
    assert torch.equal(model.lm_head.weight, before["model.embed_tokens.weight"])
    selected.release()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_trainer_and_accelerate_train_the_same_parameters_to_the_same_values(tmp_path: Path):
    from accelerate import Accelerator
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in tokens()]

    def plain(prepare=None):
        model = tiny_llama()
        selected = kappatune(model, n_tensors=3, max_dim=60)
        optimizer = torch.optim.SGD(selected.param_groups(lr=0.1))
        accelerator = prepare and prepare()
        prepared, optimizer = accelerator.prepare(model, optimizer) if accelerator else (model, optimizer)
        for row in tokens():
            loss = prepared(row[None], labels=row[None]).loss
            accelerator.backward(loss) if accelerator else loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    model = tiny_llama()
    kappatune(model, n_tensors=3, max_dim=60)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=1, num_train_epochs=1, learning_rate=0.1, optim="sgd", max_grad_norm=0.0,
        lr_scheduler_type="constant", report_to=[], save_strategy="no", use_cpu=True, train_sampling_strategy="sequential",
        disable_tqdm=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        Trainer(model=model, args=arguments, train_dataset=rows).train()
    reference, accelerated = plain().state_dict(), plain(lambda: Accelerator(cpu=True)).state_dict()
    untouched = tiny_llama().state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, reference[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(accelerated[name], reference[name], rtol=1e-5, atol=1e-6)
    assert sum(not torch.equal(value, untouched[name]) for name, value in reference.items()) == 3


def test_resumed_training_ends_where_uninterrupted_training_does():
    def start():
        model = tiny_llama()
        return model, torch.optim.AdamW(kappatune(model, n_tensors=3, max_dim=60).param_groups(lr=1e-2))

    def steps(model, optimizer, first, last):
        for step in range(first, last):
            optimizer.zero_grad()
            model(tokens(step), labels=tokens(step)).loss.backward()
            optimizer.step()

    whole, optimizer = start()
    steps(whole, optimizer, 0, 6)
    half, optimizer = start()
    steps(half, optimizer, 0, 3)
    # The names are stored: after training a new ranking could choose others.
    names, weights, moments = kappatune(tiny_llama(), n_tensors=3, max_dim=60).names, half.state_dict(), optimizer.state_dict()
    again = tiny_llama()
    again.load_state_dict(weights)
    optimizer = torch.optim.AdamW(SelectiveFineTuning(again, names).param_groups(lr=1e-2))
    optimizer.load_state_dict(moments)
    steps(again, optimizer, 3, 6)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_flags_are_put_back_also_after_an_error():
    model = tiny_llama()
    model.model.norm.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with kappatune(model, n_tensors=1):
        assert sum(parameter.requires_grad for parameter in model.parameters()) == 1
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with contextlib.suppress(RuntimeError), kappatune(model, n_tensors=1):
        raise RuntimeError
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("seed", range(4))
def test_random_control_has_the_same_shapes(seed):
    report = spectral_report(tiny_llama())
    shapes = {spectrum.name: spectrum.shape for spectrum in report}
    names = select_by_condition(report, n_tensors=5)
    drawn = random_of_equal_shapes(report, names, seed=seed)
    assert sorted(shapes[name] for name in drawn) == sorted(shapes[name] for name in names)
    assert len(set(drawn)) == 5
    assert drawn == random_of_equal_shapes(report, names, seed=seed)
    assert set(random_of_equal_shapes(report, shapes, seed=seed)) == set(shapes)
    with pytest.raises(InvalidArgument, match="no parameter 'colour'"):
        random_of_equal_shapes(report, ["colour"], seed=0)


def test_ranking_is_the_same_after_saving_and_loading(tmp_path: Path, stories_path: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(stories_path, dtype=torch.float32)
    report = spectral_report(model)
    model.save_pretrained(tmp_path)
    assert spectral_report(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)) == report
    # The square ones are worse conditioned than all that are flat.
    assert all("q_proj" not in name and "o_proj" not in name for name in select_by_condition(report, n_tensors=5))


def test_adapters_sit_on_the_selected_layers_alone():
    peft = pytest.importorskip("peft")
    model = tiny_llama()
    names = [spectrum.name for spectrum in spectral_report(model) if "layers.1" in spectrum.name][:2]
    adapted = peft.get_peft_model(model, lora_config(model, names, r=2, alpha=4, dropout=0.0))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4
    assert all(any(name.removesuffix(".weight") in parameter for name in names) for parameter in trained)
    with pytest.raises(InvalidArgument, match=r"embed_tokens\.weight is not the weight of a linear layer"):
        lora_config(tiny_llama(), ["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give n_tensors or budget_params"), ({"n_tensors": 1, "budget_params": 100}, "give n_tensors or budget_params"),
        ({"n_tensors": 5}, "n_tensors must be an integer from 1 to 4"), ({"n_tensors": 0}, "from 1 to 4"),
        ({"n_tensors": True}, "integer"), ({"budget_params": 3}, "at least 4, the smallest matrix"),
        ({"n_tensors": 1, "order": "lowest"}, "order must be one of 'low', 'high'"),
        ({"n_tensors": 1, "normalize": "shape"}, "normalize must be one of 'none', 'aspect', 'trimmed'"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options_are_refused_and_nothing_is_frozen(options, message):
    model = known_conditions()
    with pytest.raises(InvalidArgument, match=message) as refusal:
        kappatune(model, **options)
    assert "\n" not in str(refusal.value)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_unknown_and_no_names_are_refused():
    with pytest.raises(InvalidArgument, match=r"no parameter '0\.wieght'"):
        SelectiveFineTuning(known_conditions(), ["0.wieght"])
    with pytest.raises(InvalidArgument, match="name at least one"):
        SelectiveFineTuning(known_conditions(), [])
