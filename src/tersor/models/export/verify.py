"""Loading what was exported in the runtime that it is for, and comparing what comes out with the model."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.errors import TersorError
from tersor.models.export.gguf_architecture import architecture_of, tensor_names
from tersor.models.export.gguf_blocks import BLOCK_TYPES
from tersor.models.export.gguf_choice import relative_error
from tersor.models.export.report import LayerRow
from tersor.models.gguf_loading import load_gguf
from tersor.models.gguf_reader import read_gguf
from tersor.models.huggingface import first_line, quiet_transformers
from tersor.models.model import Model
from tersor.models.structure import logits_of, run_model
from tersor.weights.dense import DenseWeight

_TEXTS = (
    "Once upon a time there was a little boat that sailed to the sea, and it didn't come back for 12 days.",
    "The answer (in short) is: 3 + 4 = 7.\n\nIs that what you wanted?",
)
_LENGTH = 48
# transformers computes with the same numbers; only the order of additions may differ.
_TRANSFORMERS_TOLERANCE = 1e-3
# llama.cpp rounds the inputs of quantised layers to 8 bits, in blocks of 32, or of 256 for super-block types. On SmolLM2-135M that alone
# makes 3e-3 to 9e-3 nats, with anybody's file; a wrong layout makes whole nats, and in an untrained model a logit error of 100 %.
_KL_TOLERANCE = {"float": 1e-4, "block": 3e-2, "super-block": 5e-2}
_ERROR_TOLERANCE = {"float": 1e-2, "block": 1e-1, "super-block": 1.5e-1}
_SAME_ERROR = 1e-5
_SECONDS = 600


def verify_folder(model: Model, folder: Path, rounded: bool) -> dict[str, Any]:
    """Load a Hugging Face folder with transformers alone, in float32, and compare logits.

    Args:
        model: What was exported.
        folder: Where to.
        rounded: Whether dense tensors were rounded on the user's wish, so that logits cannot be equal; their difference is only reported.

    Raises:
        TersorError: If it does not load whole, or the logits differ by more than 1e-3 of their size.
    """
    import transformers

    cls: Any = type(model.module)
    try:
        # The format's library shows progress bars that cannot be switched off otherwise.
        with quiet_transformers(), redirect_stderr(StringIO()):
            module, loading = cls.from_pretrained(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    except Exception as error:
        raise TersorError(f"verification failed: transformers cannot load the exported folder: {first_line(error)}") from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := loading.get(problem):
            what = problem.replace("_", " ")
            raise TersorError(f"verification failed: the exported folder has {what} in transformers, such as {sorted(keys)[0]}")
    tokens = probe_tokens(model)
    with redirect_stderr(StringIO()):
        found = _logits(module.eval(), tokens)
    difference = relative_error(_logits(model.module, tokens), found)
    if difference > _TRANSFORMERS_TOLERANCE and not rounded:
        allowed = f"at most {_TRANSFORMERS_TOLERANCE} is allowed"
        raise TersorError(f"verification failed: logits in transformers differ by {difference:.1e} of their size, {allowed}")
    return {"runtime": f"transformers {transformers.__version__}", "tokens": len(tokens), "logit_difference": difference}


def verify_gguf(model: Model, folded: Model, path: Path, rows: list[LayerRow]) -> dict[str, Any]:
    """Read a GGUF file back, compare every matrix, then the logits of the file in its runtime with those of the matrices in it.

    The runtime is llama.cpp where it is installed, else transformers on what tersor reads from the file.

    Args:
        model: What was exported.
        folded: The same with column scales folded: the matrices that were stored.
        path: The file.
        rows: What was said about them.

    Raises:
        TersorError: If a tensor, a logit or a token is not what it should be.
    """
    stored = _stored_model(folded, path, rows)
    tokens = probe_tokens(model)
    wanted, expected = _logits(model.module, tokens), _logits(stored.module, tokens)
    if find_spec("llama_cpp") is None:
        found, texts = _logits(_read_back(path), tokens), None
        kind, runtime = "float", "transformers, on what tersor reads from the file (llama_cpp is not installed)"
    else:
        found, texts = llama_cpp_outputs(path, tokens, _TEXTS if model.tokenizer is not None else ())
        kind, runtime = _kind(rows), f"llama.cpp ({_llama_cpp_version()})"
    kl, difference = kl_divergence(expected, found), relative_error(_centred(expected), _centred(found))
    if not (kl <= _KL_TOLERANCE[kind] and difference <= _ERROR_TOLERANCE[kind]):
        raise TersorError(
            f"verification failed: logits of the file differ from those of the values in it by a KL divergence of {kl:.1e} and "
            f"{difference:.1%} of their size; {_KL_TOLERANCE[kind]} and {_ERROR_TOLERANCE[kind]:.0%} are allowed"
        )
    for text, ids in zip(_TEXTS, texts or (), strict=False):
        if ids != model.encode(text).tolist():
            raise TersorError(f"verification failed: llama.cpp cuts {text!r} into other tokens than the model's tokenizer")
    result = {"runtime": runtime, "tokens": len(tokens), "kl_of_runtime": kl, "kl_to_model": kl_divergence(wanted, found)}
    return result | ({"tokenizer": f"the same tokens for {len(texts)} texts"} if texts else {})


def _read_back(path: Path) -> torch.nn.Module:
    try:
        return load_gguf(path).module
    except TersorError as error:
        mend = "install llama-cpp-python to verify it there, or export without verification"
        raise TersorError(f"verification failed: tersor cannot load its own file ({first_line(error)}); {mend}") from None


def _stored_model(folded: Model, path: Path, rows: list[LayerRow]) -> Model:
    """``folded`` with the matrices that the file holds.

    Raises:
        TersorError: If one of them is not what its row says.
    """
    from gguf.quants import dequantize

    architecture = architecture_of(folded)
    header = read_gguf(path)
    infos, names = {info.name: info for info in header.tensors}, tensor_names(folded, architecture)
    stored = folded.copy()
    for row in rows:
        name = names[f"{row.name}.weight"]
        values = dequantize(header.raw(infos[name]), infos[name].type).astype(np.float32).reshape(infos[name].shape)
        order = architecture.rows(name, np.arange(len(values)))
        matrix = torch.empty(values.shape)
        matrix[torch.from_numpy(order)] = torch.from_numpy(values)
        error = relative_error(folded.matrix(row.name), matrix)
        if not abs(error - row.error) <= _SAME_ERROR:
            raise TersorError(f"verification failed: {row.name} read back from the file differs by {error:.1e} instead of {row.error:.1e}")
        stored.replace(row.name, DenseWeight(matrix))
    return stored


def probe_tokens(model: Model) -> Tensor:
    """The fixed short sequence on which logits are compared, int64 ``[n]``."""
    length = min(_LENGTH, model.max_context)
    if model.tokenizer is None:
        # Steps of a large prime visit the vocabulary evenly.
        return torch.arange(1, length + 1) * 7919 % model.vocabulary
    return model.encode(" ".join(_TEXTS))[:length]


def kl_divergence(reference: Tensor, other: Tensor) -> float:
    """Mean KL divergence of next-token distributions, in nats; logits ``[n, vocabulary]``."""
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return max(float((p.exp() * (p - q)).sum(-1).mean()), 0.0)


def llama_cpp_outputs(path: Path, tokens: Tensor, texts: tuple[str, ...]) -> tuple[Tensor, list[list[int]]]:
    """Logits ``[n, vocabulary]`` that llama.cpp computes from a file, and how it cuts texts, in a process of its own.

    Raises:
        TersorError: If it fails.
    """
    script = Path(__file__).with_name("_llama_cpp_logits.py")
    with tempfile.TemporaryDirectory() as folder:
        request, output = Path(folder) / "request.json", Path(folder) / "output.npz"
        request.write_text(json.dumps({"tokens": tokens.tolist(), "texts": list(texts)}), encoding="utf-8")
        # -P: neighbours of the script must not shadow installed modules.
        command = [sys.executable, "-P", str(script), str(path), str(request), str(output)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace")
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TersorError(f"verification failed: llama.cpp did not answer: {first_line(error)}") from None
        if done.returncode != 0:
            raise TersorError(f"verification failed: llama.cpp does not take the file: {_reason(done.stderr)}")
        with np.load(output) as content:
            return torch.from_numpy(content["logits"]), [content[f"text{i}"].tolist() for i in range(len(texts))]


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "assert" in line.lower()]
    return ((errors or lines or ["no reason given"])[0])[:200]


def _logits(module: torch.nn.Module, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return logits_of(run_model(module, tokens.unsqueeze(0)))[0].float()


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def _kind(rows: list[LayerRow]) -> str:
    sizes = {BLOCK_TYPES[row.stored_as].block for row in rows if row.stored_as in BLOCK_TYPES}
    return "super-block" if 256 in sizes else "block" if sizes else "float"


def _llama_cpp_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"llama-cpp-python {version('llama-cpp-python')}"
    except PackageNotFoundError:
        return "of unknown version"
