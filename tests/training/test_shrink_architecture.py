"""From a teacher to a small student in a folder: of the size that was asked for, resumable, exported, and on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tersor.cli import app
from tersor.errors import CorruptFile, InvalidArgument
from tersor.pipeline.shrinking import read_texts, shrink
from tersor.training import (
    ROBERTA_SPACE,
    Distillation,
    RobertaCost,
    SearchSpace,
    build_student,
    classifier,
    encode,
    export_student,
    genetic_search,
    load_student,
    predict,
    save_student,
    shrink_architecture,
    train_tokenizer,
)

WORDS = ("alpha", "beta", "gamma", "delta")
TEXTS = [f"def f{i}({WORDS[i % 4]}):\n    return {WORDS[(i // 4) % 4]} + {i}" for i in range(80)]
PAIRS = [(text, TEXTS[(i * 7) % 80] if i % 2 else text) for i, text in enumerate(TEXTS)]
SPACE = SearchSpace({
    "num_attention_heads": (1, 2), "hidden_size": tuple(range(8, 49, 8)), "intermediate_size": (16, 32, 64),
    "num_hidden_layers": (1, 2), "vocab_size": (270, 300),
})  # fmt: skip
BOUND = 90_000
CONFIG = Distillation(steps=60, batch=16, measure_every=20, learning_rate=3e-3)
SMALL = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 280}


def says_alpha(texts: Sequence[tuple[str, ...]]) -> Tensor:
    """Scores by whether the argument is called alpha."""
    hit = torch.tensor([float("(alpha)" in text) for text, *_ in texts])
    return torch.stack([2 - 4 * hit, 4 * hit - 2], 1)


def says_equal(texts: Sequence[tuple[str, ...]]) -> Tensor:
    hit = torch.tensor([float(first == second) for first, second in texts])
    return torch.stack([2 - 4 * hit, 4 * hit - 2], 1)


@pytest.mark.parametrize(("teacher", "texts"), [(says_alpha, TEXTS), (says_equal, PAIRS)], ids=["single", "pair"])
def test_a_student_keeps_to_its_bytes_and_answers_as_its_teacher(teacher, texts, tmp_path: Path):
    shrunk = shrink_architecture(teacher, texts, BOUND, length=24, space=SPACE, config=CONFIG, dropout=0.0)
    cost = RobertaCost(24, pair=texts is PAIRS)
    assert shrunk.search.architecture == genetic_search(SPACE, cost, BOUND).architecture
    assert sum(parameter.numel() for parameter in shrunk.student.parameters()) == shrunk.search.parameters
    assert shrunk.save(tmp_path / "out") <= shrunk.search.nbytes <= BOUND
    wanted = teacher([(text,) if isinstance(text, str) else text for text in texts]).argmax(-1)
    scores = shrunk.logits(texts)
    assert float(scores.argmax(-1).eq(wanted).double().mean()) > 0.9
    student, tokenizer = load_student(tmp_path / "out")
    single = [text if isinstance(text, str) else text[0] for text in texts]
    if texts is TEXTS:
        torch.testing.assert_close(predict(student, encode(tokenizer, single, 24)), scores)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("stage", "step", "left"), [("asking the teacher", 64, 16), ("distilling", 45, 0)])
def test_a_killed_call_asks_the_teacher_no_more_and_ends_alike(stage: str, step: int, left: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(import_module("tersor.training.shrink_architecture"), "_SAVE_EVERY", 1)
    asked: list[int] = []

    def teacher(texts: Sequence[tuple[str, ...]]) -> Tensor:
        asked.append(len(texts))
        return says_alpha(texts)

    def killer(name: str, done: int, steps: int, note: str) -> None:
        if (name, done) == (stage, step):
            raise Killed

    def call(progress=None, state=None):
        return shrink_architecture(teacher, TEXTS, BOUND, length=24, space=SPACE, config=CONFIG, state=state, progress=progress)

    whole = call()
    asked.clear()
    with pytest.raises(Killed):
        call(killer, tmp_path / "state")
    assert sum(asked) == 80 - left
    asked.clear()
    resumed = call(None, tmp_path / "state")
    assert sum(asked) == left
    assert resumed.distilled == whole.distilled
    for first, second in zip(whole.student.state_dict().values(), resumed.student.state_dict().values(), strict=True):
        assert torch.equal(first, second)


def test_the_state_of_another_job_is_refused(tmp_path: Path):
    shrink_architecture(says_alpha, TEXTS, BOUND, length=24, space=SPACE, config=CONFIG, state=tmp_path)
    with pytest.raises(InvalidArgument, match="another job"):
        shrink_architecture(says_alpha, TEXTS[1:], BOUND, length=24, space=SPACE, config=CONFIG, state=tmp_path)


@pytest.mark.parametrize("pair", [False, True], ids=["single", "pair"])
def test_onnx_answers_as_the_student_in_fewer_bytes(pair: bool, tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    cost = RobertaCost(12, pair=pair)
    shape = SMALL | {"hidden_size": 64, "vocab_size": 1000}
    student = build_student(shape, cost, seed=1).eval()
    size = export_student(student, tmp_path / "small.onnx", length=12)
    assert size == (tmp_path / "small.onnx").stat().st_size < 0.6 * cost.weight_bytes(shape)
    assert [file.name for file in tmp_path.iterdir()] == ["small.onnx"]
    ids = torch.randint(4, 1000, (9, 2, 12) if pair else (9, 12), generator=torch.Generator().manual_seed(2))
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: ids.numpy()})[0])
    expected = predict(student, ids)
    assert float((got - expected).norm() / expected.norm()) < 0.2


@pytest.fixture
def teacher_folder(tmp_path: Path) -> Path:
    """A sequence classifier of transformers in a folder."""
    save_student(build_student(SMALL, RobertaCost(24), seed=3), train_tokenizer(TEXTS, 280), tmp_path / "teacher")
    return tmp_path / "teacher"


def test_a_folder_of_transformers_is_a_teacher(teacher_folder: Path):
    student, tokenizer = load_student(teacher_folder)
    expected = predict(student, encode(tokenizer, TEXTS[:5], 24))
    torch.testing.assert_close(classifier(teacher_folder, length=24)([(text,) for text in TEXTS[:5]]), expected, atol=1e-5, rtol=1e-5)


def test_the_command_writes_a_folder_and_says_what_is_in_it(teacher_folder: Path, tmp_path: Path):
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    arguments = [
        "train", "shrink", str(teacher_folder), str(tmp_path / "texts.jsonl"), "-o", str(tmp_path / "out"), "--size", "200kB",
        "--length", "16", "--steps", "2", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["nbytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size <= 200_000
    assert said["architecture"] == genetic_search(ROBERTA_SPACE, RobertaCost(16), 200_000).architecture
    assert 0 <= said["agreement"] <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "teacher", "texts.jsonl"]
    load_student(tmp_path / "out")
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, InvalidArgument)


def test_without_the_exporter_onnx_is_refused_before_any_work(teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tersor.training.storage.find_spec", lambda name: None)
    with pytest.raises(InvalidArgument, match="onnx is not installed; pip install"):
        shrink(teacher_folder, tmp_path / "none.txt", 400_000, tmp_path / "out", onnx=True)
    assert list(tmp_path.iterdir()) == [teacher_folder]


def test_texts_and_pairs_are_read(tmp_path: Path):
    (tmp_path / "plain.txt").write_text("one\n\ntwo\n")
    assert read_texts(tmp_path / "plain.txt") == [("one",), ("two",)]
    (tmp_path / "pairs.jsonl").write_text('{"text": "a", "pair": "b"}\n')
    assert read_texts(tmp_path / "pairs.jsonl") == [("a", "b")]
    for wrong in ('{"text": 3}', "[]", "{", '{"pair": "a"}'):
        (tmp_path / "wrong.jsonl").write_text(f'{{"text": "a"}}\n{wrong}\n')
        with pytest.raises(CorruptFile, match="line 2"):
            read_texts(tmp_path / "wrong.jsonl")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shrink_architecture(says_alpha, TEXTS[:5], BOUND), "20 texts"),
        (lambda: shrink_architecture(says_alpha, TEXTS, BOUND, held_out=1.0), "between 0 and 1"),
        (lambda: shrink_architecture(says_alpha, [*TEXTS, ("a", "b")], BOUND), "all be texts or all be pairs"),
        (lambda: shrink_architecture(lambda texts: torch.zeros(len(texts)), TEXTS, BOUND), "two finite scores"),
        (lambda: shrink_architecture(lambda texts: torch.full((len(texts), 2), torch.inf), TEXTS, BOUND), "two finite scores"),
        (lambda: shrink_architecture(says_alpha, TEXTS, 1000, space=SPACE, length=24), "at most 1,000 bytes"),
        (lambda: classifier("no/such/folder"), "no config.json"),
        (lambda: read_texts("no/such/file"), "no file"),
        (lambda: shrink("no/such/folder", __file__, "3MB", "no/such/output"), "no config.json"),
        (lambda: shrink("no/such/folder", __file__, "much", "no/such/output"), "not a size"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message: str):
    with pytest.raises(InvalidArgument, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
