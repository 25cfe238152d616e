"""The loss is what it says, training repeats and resumes to the bit, and what is saved is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tersor.errors import CorruptFile, InvalidArgument
from tersor.training import (
    Distillation,
    RobertaCost,
    accuracy,
    build_student,
    distill,
    encode,
    load_student,
    predict,
    save_student,
    soft_loss,
    train_tokenizer,
)
from tersor.training.distillation import trimmed
from tersor.training.student import SeededDropout, logits

SHAPE = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 300}
PAIRS, SINGLES = RobertaCost(length=12, pair=True), RobertaCost(length=12, classes=3)
TEXTS = [f"def  f{i}(a):\n    return a {'+-*/'[i % 4]} {i}" for i in range(40)]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def task(seed: int = 0, n: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of the same tokens, or of others."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randint(4, 30, (2, n, 12), generator=generator)
    labels = torch.arange(n) % 2
    second[labels == 1] = first[labels == 1]
    return torch.stack([first, second], 1), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_the_loss_is_the_divergence_written_out(temperature: float):
    student, teacher = normal(0, 6, 4).double(), normal(1, 6, 4).double()
    p, q = (scores / temperature for scores in (teacher, student))
    p, q = (scores.exp() / scores.exp().sum(-1, keepdim=True) for scores in (p, q))
    expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(soft_loss(student, teacher, temperature), expected)


def test_the_loss_of_a_known_pair():
    # softmax gives 3/4 and 1/4 against 1/2 and 1/2.
    teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(soft_loss(student, teacher, 1.0), expected)
    assert float(soft_loss(teacher + 5, teacher, 3.0)) == pytest.approx(0, abs=1e-6)


def test_at_a_high_temperature_the_loss_is_half_the_squared_difference_of_centred_scores():
    student, teacher = normal(2, 9, 5).double(), normal(3, 9, 5).double()
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = centred.square().sum(-1).mean() / (2 * 5)
    torch.testing.assert_close(soft_loss(student, teacher, 1e4), limit, rtol=1e-3, atol=0)


def test_with_certain_targets_at_temperature_one_the_gradient_is_that_of_cross_entropy():
    labels = torch.tensor([0, 2, 1])
    student = normal(4, 3, 3).requires_grad_()
    certain = F.one_hot(labels, 3).float() * 60
    (soft,) = torch.autograd.grad(soft_loss(student, certain, 1.0), student)
    (hard,) = torch.autograd.grad(F.cross_entropy(student, labels), student)
    torch.testing.assert_close(soft, hard, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("hard", [False, True], ids=["teacher", "labels"])
def test_a_student_learns_what_it_is_told(hard: bool):
    ids, labels = task()
    targets = labels if hard else 4.0 * F.one_hot(labels, 2).float()
    student = build_student(SHAPE, PAIRS, dropout=0.0)
    before = accuracy(student, ids, labels)
    seen = distill(student, ids, targets, Distillation(steps=120, learning_rate=3e-3, measure_every=40), validation=(ids, labels))
    assert accuracy(student, ids, labels) == max(value for _, value in seen.accuracies) > max(before, 0.9)
    assert seen.best_step in (40, 80, 120)
    assert not student.training


def run(path: Path | None, steps_before_kill: int | None = None, seed: int = 0):
    """A short training with dropout; killed in the middle if asked."""
    ids, labels = task(1)
    student = build_student(SHAPE, PAIRS, dropout=0.3, seed=5)
    config = Distillation(steps=14, batch=10, measure_every=4, seed=seed)

    def progress(step: int, steps: int, loss: float) -> None:
        if step == steps_before_kill:
            raise KeyboardInterrupt

    seen = distill(student, ids, normal(6, 48, 2), config, validation=(ids, labels), checkpoint=path, progress=progress)
    return student, seen


def test_same_seed_same_weights_whatever_the_global_generator_and_another_seed_others():
    state = torch.get_rng_state()
    (first, seen), (again, seen_again) = run(None), run(None)
    assert torch.equal(state, torch.get_rng_state())
    assert seen == seen_again
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert run(None, seed=1)[1].losses != seen.losses


@pytest.mark.parametrize("kill", [3, 6, 13])
def test_a_killed_training_resumes_to_the_same_losses_and_weights(tmp_path: Path, kill: int):
    whole, seen = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state.safetensors", kill)
    resumed, seen_resumed = run(tmp_path / "state.safetensors")
    assert seen_resumed == seen
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_checkpoints_of_other_jobs_and_damaged_ones_are_refused(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    run(path)
    with pytest.raises(InvalidArgument, match="another job"):
        run(path, seed=1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptFile, match="delete it"):
        run(path)


def test_dropout_drops_its_share_keeps_the_mean_and_rests_in_evaluation():
    dropout = SeededDropout(0.3)
    dropout.generator = torch.Generator().manual_seed(0)
    x = torch.ones(200_000)
    dropped = dropout(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout.eval()(x), x)


def test_padding_changes_nothing():
    ids, _ = task(2, 4)
    ids[:, :, 7:] = 1
    student = build_student(SHAPE, PAIRS).eval()
    assert trimmed(ids).shape == (4, 2, 7)
    with torch.no_grad():
        torch.testing.assert_close(predict(student, ids), logits(student, ids), atol=1e-5, rtol=1e-5)


def test_pairs_have_no_order():
    ids, _ = task(3, 6)
    student = build_student(SHAPE, PAIRS).eval()
    torch.testing.assert_close(predict(student, ids), predict(student, ids.flip(1)))


def test_the_tokenizer_is_lower_case_byte_level_and_loses_nothing_else():
    tokenizer = train_tokenizer(TEXTS, 300)
    assert len(tokenizer) == 300
    assert [tokenizer.convert_ids_to_tokens(place) for place in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    ids = encode(tokenizer, ["Def  É\n\t(x)"], 40)
    assert ids[0, 0] == 0
    assert 2 in ids[0]
    assert (ids[0] == 3).sum() == 0
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "def é (x)"
    assert encode(tokenizer, TEXTS, 8).shape == (40, 8)
    assert torch.equal(encode(train_tokenizer(TEXTS, 300), TEXTS, 16), encode(tokenizer, TEXTS, 16))


@pytest.mark.parametrize("cost", [SINGLES, PAIRS], ids=["single", "pair"])
def test_a_saved_student_is_a_plain_folder_of_the_counted_size(cost: RobertaCost, tmp_path: Path):
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    student = build_student(SHAPE, cost, seed=3).eval()
    tokenizer = train_tokenizer(TEXTS, SHAPE["vocab_size"])
    stored = save_student(student, tokenizer, tmp_path / "out")
    assert cost.weight_bytes(SHAPE) < stored == (tmp_path / "out" / "model.safetensors").stat().st_size <= cost.nbytes(SHAPE)
    again, words = load_student(tmp_path / "out")
    ids = encode(words, TEXTS[:6], 12)
    assert torch.equal(ids, encode(AutoTokenizer.from_pretrained(tmp_path / "out"), TEXTS[:6], 12))
    asked = ids.unflatten(0, (-1, 2)) if cost.pair else ids
    torch.testing.assert_close(predict(again, asked), predict(student, asked))
    with torch.no_grad():
        if cost.pair:
            plain = AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
            hidden = plain(ids, attention_mask=ids.ne(1)).last_hidden_state
            torch.testing.assert_close(hidden, student.roberta(ids, attention_mask=ids.ne(1)).last_hidden_state)
        else:
            plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
            torch.testing.assert_close(plain(ids, attention_mask=ids.ne(1)).logits, predict(student, ids))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Distillation(temperature=0), "positive and finite"),
        (lambda: Distillation(steps=0), "positive and finite"),
        (lambda: Distillation(learning_rate=float("nan")), "positive and finite"),
        (lambda: distill(build_student(SHAPE, PAIRS), task()[0], torch.zeros(3, 2)), "48 training inputs have 3 targets"),
        (lambda: distill(build_student(SHAPE, PAIRS), task()[0], torch.full((48, 2), torch.nan)), "NaN or infinite"),
        (lambda: build_student(SHAPE | {"num_attention_heads": 3}, PAIRS), "3 heads must divide"),
        (lambda: build_student(SHAPE | {"vocab_size": 100}, PAIRS), "260 tokens"),
        (lambda: build_student({"layers": 3}, PAIRS), "missing or unknown"),
        (lambda: train_tokenizer(TEXTS, 10), "260 tokens"),
        (lambda: train_tokenizer(["  "], 300), "not blank"),
        (lambda: load_student("no/such/folder"), "config.json"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message: str):
    with pytest.raises(InvalidArgument, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_damaged_folder_is_said_to_be(tmp_path: Path):
    save_student(build_student(SHAPE, SINGLES), train_tokenizer(TEXTS, 300), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(CorruptFile, match="no student"):
        load_student(tmp_path)
