"""What the comparisons with other compressors share: one dense folder, one set of windows, one judge for everybody's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

BFLOAT16_STEPS = 256  # its rounding moves a number by at most this fraction of itself


@dataclass(frozen=True)
class Material:
    """What every tool is given.

    Attributes:
        model: Name of the original.
        dense: A plain Hugging Face folder of it in float32.
        tokens: A safetensors file with ``calibration`` ``[n, context]``: the windows that ``tersor.compress`` would choose.
        options: The ``calibration`` section that makes it choose them.
        evaluation: Held-out windows ``[n, context]``.
        original: The model, as loaded from ``dense``.
    """

    model: str
    dense: Path
    tokens: Path
    options: dict[str, Any]
    evaluation: Any
    original: Any


@dataclass(frozen=True)
class Setting:
    """Size of a comparison.

    Attributes:
        model: What :func:`tersor.load` takes.
        calibration: Text to fit on.
        held_out: Text to be judged on; ``NAME.tail`` is the last fifth of ``NAME``, taken off the first.
        tokens: To fit on.
        context: Window length.
        evaluation: Tokens to be judged on.
        group_size: Of the grids.
        blocks: Keep only so many blocks of the model, for a trial run.
    """

    model: str
    calibration: str
    held_out: str
    tokens: int
    context: int
    evaluation: int
    group_size: int = 64
    blocks: int | None = None

    @property
    def data(self) -> list[str]:
        """Models and texts, for the record."""
        cut = "" if self.blocks is None else f"the first {self.blocks} blocks of "
        fitted = f"calibration {self.calibration} ({self.tokens:,} tokens)"
        return [f"{cut}{self.model}", fitted, f"held out {self.held_out} ({self.evaluation:,} tokens)"]


def prepare(setting: Setting, folder: Path, threads: int) -> Material:
    """Write the dense folder and the calibration windows into ``folder``; from here on this process computes on ``threads`` threads."""
    import torch
    from safetensors.torch import save_file

    from tersor import data
    from tersor.models import load
    from tersor.papers.workbench import split_texts
    from tersor.pipeline.job import single_method
    from tersor.pipeline.texts import prepare_texts

    torch.set_num_threads(threads)
    source = load(setting.model)
    if setting.blocks is not None:
        shorten(source, setting.blocks)
    save_dense(source, folder / "dense")
    model = load(folder / "dense")  # as the jobs will: their tokens must be these
    fitted, held_out = split_texts(setting.calibration, setting.held_out)
    text = folder / "calibration.txt"
    text.write_text(fitted, encoding="utf-8")
    options = {"text": str(text), "tokens": setting.tokens, "held_out": 0, "context": setting.context, "correction": 0}
    recipe = single_method("gptq", {"bits": 3, "group_size": -1, "calibration": options, "evaluation": {"tokens": 0}})
    windows = prepare_texts(model, recipe).calibration
    assert windows is not None
    save_file({"calibration": windows.contiguous()}, folder / "tokens.safetensors")
    chosen = data.windows(model.encode(held_out), setting.context)[: max(1, setting.evaluation // setting.context)]
    return Material(setting.model, folder / "dense", folder / "tokens.safetensors", options, chosen, model)


def shorten(model: Any, blocks: int) -> None:
    """Cut a Llama down to its first blocks, in place: no sense is left in what it says, but its layers are real."""
    model.module.model.layers = model.module.model.layers[:blocks]
    model.config.num_hidden_layers = blocks


def save_dense(model: Any, folder: Path) -> None:
    """A plain float32 Hugging Face folder of ``model``."""
    model.module.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def with_values(original: Any, file: Path) -> Any:
    """A copy of ``original`` whose parameters are those in ``file`` where it has them, however they were come by."""
    from safetensors.torch import load_file
    from torch import nn

    twin = original.copy()
    values = load_file(file)
    for name in original.embeddings():
        # A tied head that the peer changed would be compared with one that we left. Its rounding in bfloat16 is undone.
        table, kept = values.pop(f"{name}.weight", None), original.matrix(name)
        if table is not None and not bool(((table - kept).abs() <= kept.abs() / BFLOAT16_STEPS).all()):
            raise SystemExit(f"the peer changed {name}, which was to stay as it is")
    for name, parameter in twin.module.named_parameters():
        if name in values:
            if values[name].shape != parameter.shape:
                raise SystemExit(f"{name}: the peer wrote a matrix of {tuple(values[name].shape)}, not {tuple(parameter.shape)}")
            assert isinstance(parameter, nn.Parameter)
            parameter.data = values.pop(name).to(parameter.dtype)
    if values:
        raise SystemExit(f"the peer wrote tensors that the model does not have: {', '.join(list(values)[:3])}")
    return twin


def judged(small: Any, original: Any, windows: Any) -> Any:
    """Perplexity and divergence of ``small`` on ``windows`` in float32: the one code path that every row of a table goes through."""
    from tersor.evaluation import evaluate

    return evaluate(small, windows, original, context=windows.shape[1], max_tokens=windows.numel())
