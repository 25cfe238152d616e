"""What the comparisons with other compressors share: one dense folder, one set of windows, one judge for everybody's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Material:
    """What every tool is given.

    Attributes:
        model: Name of the original.
        dense: A plain Hugging Face folder of it in float32.
        tokens: A safetensors file with ``calibration`` ``[n, context]``: the windows that ``tersor.compress`` would choose.
        options: The ``calibration`` section that makes it choose them.
        evaluation: Held-out windows ``[n, context]``.
    """

    model: str
    dense: Path
    tokens: Path
    options: dict[str, Any]
    evaluation: Any


def prepare(name: str, calibration: str, held_out: str, *, tokens: int, context: int, evaluation: int, folder: Path, blocks: int | None = None) -> Material:
    """Write the dense folder and the calibration windows of the model ``name`` into ``folder``.

    Args:
        name: What :func:`tersor.load` takes.
        calibration: Text to fit on.
        held_out: Text to be judged on; ``NAME.tail`` is the last fifth of ``NAME``, taken off the first.
        tokens: To fit on.
        context: Window length.
        evaluation: Tokens to be judged on.
        folder: Where to write.
        blocks: Keep only so many blocks of the model, for a trial run.
    """
    from safetensors.torch import save_file

    from tersor import data
    from tersor.models import load
    from tersor.papers.workbench import split_texts
    from tersor.pipeline.job import single_method
    from tersor.pipeline.texts import prepare_texts

    model = load(name)
    if blocks is not None:
        shorten(model, blocks)
        name = f"the first {blocks} blocks of {name}"
    fitted, judged = split_texts(calibration, held_out)
    text = folder / "calibration.txt"
    text.write_text(fitted, encoding="utf-8")
    options = {"text": str(text), "tokens": tokens, "held_out": 0, "context": context}
    recipe = single_method("gptq", {"bits": 3, "group_size": -1, "calibration": options, "evaluation": {"tokens": 0}})
    windows = prepare_texts(model, recipe).calibration
    assert windows is not None
    save_file({"calibration": windows.contiguous()}, folder / "tokens.safetensors")
    save_dense(model, folder / "dense")
    chosen = data.windows(model.encode(judged), context)[: max(1, evaluation // context)]
    return Material(name, folder / "dense", folder / "tokens.safetensors", options, chosen)


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
        # A tied head that the peer did not leave alone would be compared with one that we left.
        if f"{name}.weight" in values and not bool((values[f"{name}.weight"] == original.matrix(name)).all()):
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
    """Perplexity and divergence of ``small`` on ``windows``, float32, by the one code path that every row of a table goes through."""
    from tersor.evaluation import evaluate

    return evaluate(small, windows, original, context=windows.shape[1], max_tokens=windows.numel())
