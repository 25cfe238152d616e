"""What calibration holds beside the model: one block's work, however many blocks there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tersor.models import Model
from tersor.pipeline import calibrate
from tersor.pipeline.job import Job, single_method
from tersor.pipeline.texts import Texts

WIDTH, INNER, VOCABULARY = 64, 128, 256
BLOCK = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER  # weights


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are still alive, after every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and (storage := leaf.untyped_storage())._cdata not in given:
                self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self._alive.values()))
        return result


def build(blocks: int, dtype: torch.dtype) -> Model:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=blocks, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(transformers.LlamaForCausalLM(config).to(dtype))


def peak(blocks: int, dtype: torch.dtype, folder: Path, method: str = "gptq", **options: Any) -> int:
    job = Job(build(blocks, dtype), single_method(method, {**options, "evaluation": {"tokens": 0}}), folder)
    tokens = torch.randint(VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(0))
    job.texts = Texts(tokens[:6], tokens[6:], None, None, {})
    with LiveBytes() as live:
        calibrate.build_levels(job.model, job.plan, job.recipe, job.texts, job.database, job.progress)
    assert len(job.database.layers()) == 7 * blocks
    return live.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_peak_does_not_grow_with_the_number_of_blocks(dtype: torch.dtype, tmp_path: Path, fast: Callable[[torch.dtype], None]):
    fast(torch.bfloat16)
    few, many = (peak(blocks, dtype, tmp_path / str(blocks), bits=4, group_size=64, act_order=True) for blocks in (3, 12))
    # A tenth of one block in the type that it computes in: of the nine blocks more not one is left behind.
    assert many <= few + 0.1 * 2 * BLOCK


@pytest.mark.parametrize("correction", [0.0, 0.25])
def test_peak_is_the_work_of_one_block(tmp_path: Path, fast: Callable[[torch.dtype], None], correction: float):
    fast(torch.bfloat16)
    found = peak(12, torch.float32, tmp_path, bits=4, group_size=64, calibration={"correction": correction})
    moments = 8 * (3 * WIDTH**2 + INNER**2)
    statistics = 2 * moments  # of both sets of sequences
    hidden = 2 * 8 * 32 * WIDTH
    factor = 3 * 8 * INNER**2
    layer = 8 * 8 * WIDTH * INNER  # in float64, a few times over
    # The original's block and hidden states, and of every layer what it lacks, with moments and their factors.
    beside = 2 * BLOCK + hidden + 8 * BLOCK + 2 * moments if correction else 0
    assert found <= 2 * BLOCK + statistics + hidden + factor + layer + beside
    assert found < 2 * 12 * BLOCK + statistics + beside


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.dtype], None]:
    """Sets the type of forward passes that only observe, whatever this processor is fast at."""
    return lambda dtype: monkeypatch.setattr(calibrate, "fast_dtype", lambda: dtype)
