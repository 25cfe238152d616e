"""Models written for other runtimes: GGUF for llama.cpp, compressed-tensors for transformers and vLLM, dense folders for everything."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.errors import InvalidArgument
from tersor.models.export.report import ExportReport, LayerRow

if TYPE_CHECKING:
    from torch import Tensor

    from tersor.models.model import Model

__all__ = ["FORMATS", "ExportReport", "LayerRow", "check_target", "export_model"]

FORMATS = ("gguf", "compressed-tensors", "safetensors")
_DENSE_DTYPES = ("auto", "float32", "float16", "bfloat16")
_Writer = Callable[["Model", Path], tuple[list[LayerRow], list[str], int]]


def export_model(
    model: Model, path: str | Path, format: str = "gguf", verify: bool = True, *,
    gguf_type: str | None = None, importance: Mapping[str, Tensor] | None = None, dense_dtype: str = "auto",
) -> ExportReport:
    """Write ``model`` for another runtime, whole or not at all, and load it there to see that it computes the same.

    Quantised layers keep their very grid where the format can hold it, so that nothing is lost a second time; what it cannot hold
    is stored otherwise and said so in the report.

    Args:
        model: Compressed or not.
        path: A file for ``"gguf"``, else a folder; new, or written by an earlier export.
        format: ``"gguf"`` (llama.cpp and Ollama), ``"compressed-tensors"`` (transformers, vLLM) or ``"safetensors"``, a plain dense folder.
        verify: Load the result in its own runtime and compare logits on a short text; a mismatch removes it and is an error.
        gguf_type: For GGUF: round layers that are not compressed, or whose grid GGUF cannot hold, to this type, such as ``"Q4_K"``. Rows
            that do not fill its blocks take a larger type, as in llama.cpp. ``None`` stores them without loss.
        importance: For GGUF with rounding: layer name to ``[in_features]``, weight of the squared error of each column, such as the mean
            squared input.
        dense_dtype: For folders: type of dense tensors, ``"float32"``, ``"float16"``, ``"bfloat16"``, or ``"auto"``, for each the smallest
            that is exact.

    Returns:
        What was stored as what, its true bits per weight, the loss, and the command that serves it.

    Raises:
        InvalidArgument: If an option is unknown, the format cannot hold the model, or ``path`` holds something else.
        TersorError: If the disk is full, ``path`` cannot be written, or verification fails; nothing is left behind.
    """
    _check_options(format, gguf_type, importance, dense_dtype)
    check_target(model, format)
    if format == "gguf":
        return _export_gguf(model, Path(path), verify, gguf_type, importance)
    return _export_folder(model, Path(path), format, verify, dense_dtype)


def check_target(model: Model, target: str) -> None:
    """Refuse a format that cannot hold ``model`` at all, before any work is done for it.

    Args:
        model: Compressed or not yet.
        target: One of :data:`FORMATS`.

    Raises:
        InvalidArgument: If the format is unknown, or has no place for this architecture or tokenizer.
    """
    if target not in FORMATS:
        raise InvalidArgument(f"format must be one of {', '.join(FORMATS)}, got {target!r}")
    if target == "gguf":
        from tersor.models.export.gguf_architecture import architecture_of, tensor_names
        from tersor.models.export.gguf_tokenizer import vocabulary_of

        tensor_names(model, architecture_of(model))
        vocabulary_of(model)


def _check_options(format: str, gguf_type: str | None, importance: Mapping[str, Tensor] | None, dense_dtype: str) -> None:
    from tersor.models.export.gguf_choice import check_type

    check_type(gguf_type)
    if format != "gguf" and (gguf_type is not None or importance is not None):
        raise InvalidArgument(f"gguf_type and importance are for the format gguf, not for {format}")
    if dense_dtype not in _DENSE_DTYPES:
        raise InvalidArgument(f"dense_dtype must be one of {', '.join(_DENSE_DTYPES)}, got {dense_dtype!r}")
    if format == "gguf" and dense_dtype != "auto":
        raise InvalidArgument("dense_dtype is for folders; for gguf name a gguf_type such as F16")


def _export_gguf(model: Model, path: Path, verify: bool, gguf_type: str | None, importance: Mapping[str, Tensor] | None) -> ExportReport:
    from tersor.models.export.folding import fold_input_scales, fold_offsets
    from tersor.models.export.gguf import write_gguf
    from tersor.models.export.output import size_of, staged
    from tersor.models.export.verify import verify_gguf

    with staged(path, is_folder=False) as work:
        folded = fold_input_scales(fold_offsets(model))
        rows, notes, nbytes = write_gguf(folded, work, gguf_type, importance)
        verified = verify_gguf(model, folded, work, rows) if verify else None
        size = size_of(work)
    command = f"llama-server -m {shlex.quote(str(path))}"
    return ExportReport(path, "gguf", size, 8 * nbytes / model.n_parameters, rows, notes, command, verified)


def _export_folder(model: Model, path: Path, format: str, verify: bool, dense_dtype: str) -> ExportReport:
    from tersor.models.export.folding import fold_input_scales, fold_offsets
    from tersor.models.export.output import size_of, staged, write_marker
    from tersor.models.export.verify import verify_folder

    with staged(path, is_folder=True) as work:
        rows, notes, nbytes = _folder_writer(format, dense_dtype)(fold_input_scales(fold_offsets(model)), work)
        verified = verify_folder(model, work, rounded=dense_dtype not in ("auto", "float32")) if verify else None
        command = f"transformers serve {shlex.quote(str(path))}"
        report = ExportReport(path, format, size_of(work), 8 * nbytes / model.n_parameters, rows, notes, command, verified)
        write_marker(work, report.to_dict())
    return report


def _folder_writer(format: str, dense_dtype: str) -> _Writer:
    from tersor.models.export.compressed_tensors import write_compressed_tensors
    from tersor.models.export.dense import write_dense

    writer = write_compressed_tensors if format == "compressed-tensors" else write_dense
    return lambda model, folder: writer(model, folder, dense_dtype)

