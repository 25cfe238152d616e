"""What can be wrong with a compressed file, by what mends it."""

from __future__ import annotations

from tersor.errors import CorruptFile, TersorError


class CorruptStream(CorruptFile):
    """Compressed bytes that are damaged, cut short or not ours; only another copy of the file helps."""


class ModelMismatch(TersorError):
    """The file was written with another model than the one that is to read it; pass that model."""


class NumericsMismatch(TersorError):
    """The file was written under arithmetic that may round differently (another torch, processor or number of threads)."""
