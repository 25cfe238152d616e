"""Where the kept values of a sparse weight are: a bit map, column indices, or one pattern number a group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from itertools import combinations
from math import comb
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tersor.errors import CorruptFile, InvalidArgument
from tersor.kernels.packing import pack_bits, packed_size, unpack_bits
from tersor.kernels.sparse import column_linear, masked_linear, pattern_linear
from tersor.weights.checking import dtype_name, read_choice, read_int

# A look-up table of this many patterns stays in the first-level cache, and its numbers fit the packer's codes.
_MAX_PATTERNS = 256
_COLUMN_TYPES = {"uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32}


class Positions(nn.Module, ABC):
    """The kept positions of a matrix ``shape``, row by row and ascending within a row."""

    kind: ClassVar[str] = ""

    def __init__(self, shape: tuple[int, int], kept: int) -> None:
        super().__init__()
        self.shape = shape
        self.kept = kept

    @abstractmethod
    def mask(self, rows: Tensor | None = None) -> Tensor:
        """True where a value is kept, bool ``[rows, in_features]``; of all rows unless an index ``[n]`` is given."""

    @abstractmethod
    def multiply(self, x: Tensor, values: Tensor) -> Tensor:
        """``x @ W.T`` where ``W`` holds the kept ``values`` ``[kept]`` in float16, bfloat16 or float32."""

    def group_counts(self, group_size: int, rows: Tensor | None = None) -> int | Tensor:
        """Values kept in each group of ``group_size`` columns, int64 ``[rows * groups]``, or one number if all keep as many."""
        return self.mask(rows).reshape(-1, group_size).sum(1)

    def place(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        """Kept ``values`` (of the given rows, all unless given) at their positions, zero elsewhere; ``[rows, in_features]``."""
        mask = self.mask(rows)
        return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter_(mask, values)

    @abstractmethod
    def row_starts(self) -> Tensor:
        """Number of values kept before each row, int64 ``[out_features + 1]``."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A JSON-able description."""

    @abstractmethod
    def check(self, tensors: dict[str, Tensor], name: str) -> None:
        """Raise :class:`CorruptFile` if stored ``tensors`` name other than ``kept`` positions within ``shape``."""


class BitMap(Positions):
    """One bit a position: what half-dense masks cost least in.

    Args:
        bits: uint8 ``[out_features, ceil(in_features / 8)]``, lowest bit first.
    """

    kind = "bitmap"

    def __init__(self, shape: tuple[int, int], kept: int, bits: Tensor) -> None:
        super().__init__(shape, kept)
        self.bits: Tensor
        self.register_buffer("bits", bits)
        self._starts: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor) -> BitMap:
        """The bit map of a bool ``mask``."""
        return cls((mask.shape[0], mask.shape[1]), int(mask.sum()), pack_bits(mask.to(torch.uint8), 1))

    @staticmethod
    def size(mask: Tensor) -> int:
        """Bytes that :meth:`of` would store."""
        return mask.shape[0] * packed_size(mask.shape[1], 1)

    def mask(self, rows: Tensor | None = None) -> Tensor:
        bits = self.bits if rows is None else self.bits.index_select(0, rows)
        return unpack_bits(bits, 1, self.shape[1]).bool()

    def row_starts(self) -> Tensor:
        # Counting bits takes as long as a product with one vector, so the count is kept until other bits are loaded or moved.
        if self._starts is None:
            self._starts = _starts_of(_bit_counts(self.bits))
        return self._starts

    def group_counts(self, group_size: int, rows: Tensor | None = None) -> int | Tensor:
        if group_size % 8:
            return super().group_counts(group_size, rows)
        bits = self.bits if rows is None else self.bits.index_select(0, rows)
        return _bit_counts(bits.reshape(-1, group_size // 8))

    def multiply(self, x: Tensor, values: Tensor) -> Tensor:
        return masked_linear(x, self.bits, values, self.row_starts(), in_features=self.shape[1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._starts = None
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._starts = None
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_config(cls, config: dict[str, Any], shape: tuple[int, int], kept: int) -> BitMap:
        """An empty bit map."""
        return cls(shape, kept, torch.empty(shape[0], packed_size(shape[1], 1), dtype=torch.uint8))

    def check(self, tensors: dict[str, Tensor], name: str) -> None:
        bits = tensors["bits"]
        counted = int(_bit_counts(bits).sum())
        padding = self.shape[1] % 8
        if counted != self.kept or (padding and bool((bits[:, -1] >> padding).any())):
            raise CorruptFile(f"{name}: the bit mask marks {counted} values, {self.kept} are stored, or some lie beyond the last column")


class ColumnIndices(Positions):
    """The column of every kept value: what costs least where few are kept.

    Args:
        columns: uint8, int16 or int32 ``[kept]``, the smallest that holds ``in_features - 1``.
        starts: int32 ``[out_features + 1]``, values before each row.
    """

    kind = "columns"

    def __init__(self, shape: tuple[int, int], kept: int, columns: Tensor, starts: Tensor) -> None:
        super().__init__(shape, kept)
        self.columns: Tensor
        self.starts: Tensor
        self.register_buffer("columns", columns)
        self.register_buffer("starts", starts)

    @classmethod
    def of(cls, mask: Tensor) -> ColumnIndices:
        """The indices of a bool ``mask``."""
        columns = mask.nonzero()[:, 1].to(cls._type(mask.shape[1]))
        return cls((mask.shape[0], mask.shape[1]), columns.numel(), columns, _starts_of(mask.sum(1)).int())

    @staticmethod
    def _type(in_features: int) -> torch.dtype:
        return torch.uint8 if in_features <= 1 << 8 else torch.int16 if in_features <= 1 << 15 else torch.int32

    @classmethod
    def size(cls, mask: Tensor) -> int:
        """Bytes that :meth:`of` would store."""
        return int(mask.sum()) * cls._type(mask.shape[1]).itemsize + 4 * (mask.shape[0] + 1)

    def mask(self, rows: Tensor | None = None) -> Tensor:
        starts = self.row_starts()
        chosen = self.columns if rows is None else self.columns[segments(starts, rows)]
        lengths = starts.diff() if rows is None else starts.diff()[rows]
        mask = torch.zeros(lengths.numel(), self.shape[1], dtype=torch.bool, device=self.columns.device)
        row = torch.repeat_interleave(torch.arange(lengths.numel(), device=mask.device), lengths)
        mask[row, chosen.long()] = True
        return mask

    def row_starts(self) -> Tensor:
        return self.starts.long()

    def multiply(self, x: Tensor, values: Tensor) -> Tensor:
        return column_linear(x, self.columns, values, self.row_starts(), in_features=self.shape[1])

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "dtype": dtype_name(self.columns.dtype)}

    @classmethod
    def from_config(cls, config: dict[str, Any], shape: tuple[int, int], kept: int) -> ColumnIndices:
        """Empty indices."""
        dtype = _COLUMN_TYPES[read_choice(config, "dtype", tuple(_COLUMN_TYPES))]
        return cls(shape, kept, torch.empty(kept, dtype=dtype), torch.empty(shape[0] + 1, dtype=torch.int32))

    def check(self, tensors: dict[str, Tensor], name: str) -> None:
        starts, columns = tensors["starts"].long(), tensors["columns"].long()
        if int(starts[0]) != 0 or int(starts[-1]) != self.kept or bool((starts.diff() < 0).any()):
            raise CorruptFile(f"{name}: the row starts do not count the {self.kept} stored values")
        row = torch.repeat_interleave(torch.arange(self.shape[0]), starts.diff())
        outside = bool(((columns < 0) | (columns >= self.shape[1])).any())
        if outside or bool(((row * self.shape[1] + columns).diff() <= 0).any()):
            raise CorruptFile(f"{name}: the column indices are not ascending within 0 to {self.shape[1] - 1}")


class GroupPatterns(Positions):
    """``keep_n`` of every ``of_m`` neighbours, as the number of the pattern: 3 bits a group for 2:4, under one bit an entry.

    Args:
        codes: uint8 ``[out_features, ...]``, pattern numbers packed at :func:`pattern_bits` bits along the row.
    """

    kind = "n_of_m"

    def __init__(self, shape: tuple[int, int], kept: int, codes: Tensor, keep_n: int, of_m: int) -> None:
        super().__init__(shape, kept)
        self.keep_n, self.of_m = keep_n, of_m
        self.codes: Tensor
        self.register_buffer("codes", codes)

    @classmethod
    def of(cls, mask: Tensor, keep_n: int, of_m: int) -> GroupPatterns:
        """The patterns of a bool ``mask`` that keeps exactly ``keep_n`` of every ``of_m``."""
        weights = 1 << torch.arange(of_m, device=mask.device)
        groups = (mask.reshape(mask.shape[0], -1, of_m).long() * weights).sum(-1)
        numbers = torch.searchsorted(patterns(keep_n, of_m).to(mask.device), groups)
        codes = pack_bits(numbers.to(torch.uint8), pattern_bits(keep_n, of_m))
        return cls((mask.shape[0], mask.shape[1]), mask.numel() // of_m * keep_n, codes, keep_n, of_m)

    def mask(self, rows: Tensor | None = None) -> Tensor:
        return _unfolded(self.keep_n, self.of_m).to(self.codes.device).index_select(0, self._numbers(rows)).reshape(-1, self.shape[1])

    def place(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        # The columns of a pattern are known, so a scatter does in one pass what mask and masked scatter do in two slower ones.
        table = _unfolded(self.keep_n, self.of_m).nonzero()[:, 1].reshape(-1, self.keep_n)
        columns = table.to(values.device).index_select(0, self._numbers(rows))
        groups = torch.zeros(columns.shape[0], self.of_m, dtype=values.dtype, device=values.device)
        return groups.scatter_(1, columns, values.reshape(columns.shape)).reshape(-1, self.shape[1])

    def _numbers(self, rows: Tensor | None) -> Tensor:
        packed = self.codes if rows is None else self.codes.index_select(0, rows)
        return unpack_bits(packed, pattern_bits(self.keep_n, self.of_m), self.shape[1] // self.of_m).reshape(-1).int()

    def row_starts(self) -> Tensor:
        return torch.arange(self.shape[0] + 1, device=self.codes.device) * (self.shape[1] // self.of_m * self.keep_n)

    def group_counts(self, group_size: int, rows: Tensor | None = None) -> int | Tensor:
        regular = group_size % self.of_m == 0
        return group_size // self.of_m * self.keep_n if regular else super().group_counts(group_size, rows)

    def multiply(self, x: Tensor, values: Tensor) -> Tensor:
        table = patterns(self.keep_n, self.of_m).to(self.codes.device)
        return pattern_linear(x, self.codes, values, self.row_starts(), table, of_m=self.of_m, in_features=self.shape[1])

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "keep_n": self.keep_n, "of_m": self.of_m}

    @classmethod
    def from_config(cls, config: dict[str, Any], shape: tuple[int, int], kept: int) -> GroupPatterns:
        """Empty patterns."""
        of_m = read_int(config, "of_m", 2, shape[1])
        keep_n = read_int(config, "keep_n", 1, of_m - 1)
        if not has_patterns(keep_n, of_m) or shape[1] % of_m or kept != shape[0] * (shape[1] // of_m) * keep_n:
            raise CorruptFile(f"a stored weight of shape {list(shape)} with {kept} values cannot keep {keep_n} of every {of_m}")
        width = packed_size(shape[1] // of_m, pattern_bits(keep_n, of_m))
        return cls(shape, kept, torch.empty(shape[0], width, dtype=torch.uint8), keep_n, of_m)

    def check(self, tensors: dict[str, Tensor], name: str) -> None:
        numbers = unpack_bits(tensors["codes"], pattern_bits(self.keep_n, self.of_m), self.shape[1] // self.of_m)
        count = comb(self.of_m, self.keep_n)
        if int(numbers.max()) >= count:
            raise CorruptFile(f"{name}: a pattern number is beyond the {count} patterns of {self.keep_n}:{self.of_m}")


POSITION_KINDS: dict[str, type[BitMap] | type[ColumnIndices] | type[GroupPatterns]] = {
    kind.kind: kind for kind in (BitMap, ColumnIndices, GroupPatterns)
}


def positions_of(mask: Tensor, keep_n: int | None = None, of_m: int | None = None) -> Positions:
    """The representation of ``mask`` in the fewest bytes: patterns for N:M, else the smaller of bit map and column indices.

    Raises:
        InvalidArgument: If ``mask`` does not keep exactly ``keep_n`` of every ``of_m``.
    """
    if (keep_n is None) != (of_m is None):
        raise InvalidArgument("keep_n and of_m go together; give both or neither")
    if keep_n is not None and of_m is not None:
        _check_pattern(mask, keep_n, of_m)
        if has_patterns(keep_n, of_m):
            return GroupPatterns.of(mask, keep_n, of_m)
    return ColumnIndices.of(mask) if ColumnIndices.size(mask) < BitMap.size(mask) else BitMap.of(mask)


def has_patterns(keep_n: int, of_m: int) -> bool:
    """Whether the patterns of N:M are few enough to be numbered; the others are stored as a bit map."""
    return of_m < 64 and comb(of_m, keep_n) <= _MAX_PATTERNS


def pattern_bits(keep_n: int, of_m: int) -> int:
    """Bits of a pattern number, ``ceil(log2(binomial(of_m, keep_n)))``."""
    return (comb(of_m, keep_n) - 1).bit_length()


@cache
def patterns(keep_n: int, of_m: int) -> Tensor:
    """Pattern number to bits of the kept columns (lowest bit first), int64, ascending; on the CPU."""
    masks = sorted(sum(1 << column for column in chosen) for chosen in combinations(range(of_m), keep_n))
    return torch.tensor(masks, dtype=torch.int64, device="cpu")


def _unfolded(keep_n: int, of_m: int) -> Tensor:
    """Pattern number to kept columns, bool ``[patterns, of_m]``; on the CPU."""
    return ((patterns(keep_n, of_m).unsqueeze(1) >> torch.arange(of_m, device="cpu")) & 1).bool()


def segments(starts: Tensor, rows: Tensor) -> Tensor:
    """Numbers of the values that lie in ``rows``, row after row, int64."""
    lengths = starts.diff()[rows]
    shift = starts[rows] - (lengths.cumsum(0) - lengths)
    return torch.repeat_interleave(shift, lengths) + torch.arange(int(lengths.sum()), device=starts.device)


def _check_pattern(mask: Tensor, keep_n: int, of_m: int) -> None:
    if not 1 <= keep_n < of_m or mask.shape[1] % of_m:
        raise InvalidArgument(f"{keep_n}:{of_m} needs 1 <= keep_n < of_m and of_m dividing the {mask.shape[1]} input features")
    if bool((mask.reshape(mask.shape[0], -1, of_m).sum(-1) != keep_n).any()):
        raise InvalidArgument(f"the mask must keep exactly {keep_n} of every {of_m} neighbouring inputs")


def _bit_counts(bits: Tensor) -> Tensor:
    """Set bits in each row of a uint8 matrix, int64."""
    counts = bits - ((bits >> 1) & 0x55)
    counts = (counts & 0x33) + ((counts >> 2) & 0x33)
    return ((counts + (counts >> 4)) & 0x0F).sum(1, dtype=torch.int64)


def _starts_of(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
