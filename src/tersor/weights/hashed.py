"""A weight whose entries are read from a small memory, at places that a hash of their position names."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights.base import CompressedWeight
from tersor.weights.checking import FLOAT_TYPES, dtype_name, read_choice, read_dtype, read_int, read_shape

Mapping = Literal["fold", "hash", "tile"]

# splitmix64 (Steele, Lea, Flood 2014) in 64-bit integers that wrap around.
_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
_PLACES, _SIGNS = 0, 1
_MAX_SIZE = 1 << 31
_MAX_SEED = 1 << 62
_BLOCK = 1 << 20


class HashedWeight(CompressedWeight):
    """``W[i, j] = scale * sign * memory[place]`` where a seed alone gives sign and place: bytes do not grow with the matrix.

    Weights of several layers may hold the same ``memory`` tensor, whose bytes then count once, see :func:`distinct_nbytes`. It saves
    memory, not products; :class:`SparseWeight` of as many values computes less but also stores where they are.

    Args:
        memory: ``[size]``, float32, float16 or bfloat16; held, not copied.
        shape: ``(out_features, in_features)``.
        scale: Of this matrix.
        seed: From 0 to 2**62 - 1, the same for all weights of one memory.
        offset: Index of this matrix's first entry among those of all weights of the memory, counted row by row.
        mapping: ``"fold"``: every run of ``size`` entries of all weights together uses each value once, rotated by a random amount, so that
            loads differ by one at most. ``"hash"``: each entry for itself. ``"tile"``: blocks of the matrix are read as contiguous runs.
        tile: ``(rows, columns)`` of those blocks, for ``"tile"`` alone.

    Raises:
        InvalidArgument: If the memory is no vector, or a tile is larger than it.

    Reference:
        Chen et al. (2015), "Compressing neural networks with the hashing trick"; Desai, Zhou, Shrivastava (2023), "Hardware-aware
        compression with random operation access specific tile hashing"; Desai, Shrivastava (2024), "In defense of parameter sharing".

    Example:
        >>> import torch
        >>> weight = HashedWeight(torch.randn(10), (8, 5), scale=0.5, seed=1)
        >>> weight.dense().abs().unique().numel(), weight.nbytes
        (10, 60)
    """

    kind = "hashed"

    def __init__(
        self, memory: Tensor, shape: tuple[int, int], *, scale: float = 1.0, seed: int = 0, offset: int = 0, mapping: Mapping = "fold",
        tile: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        if memory.ndim != 1 or memory.dtype not in FLOAT_TYPES.values() or not 0 < memory.numel() < _MAX_SIZE:
            raise InvalidArgument(
                f"a memory is a vector in {', '.join(FLOAT_TYPES)}, got {dtype_name(memory.dtype)} of shape {tuple(memory.shape)}"
            )
        if not bool(torch.isfinite(memory).all()):
            raise InvalidArgument("the memory holds NaN or Inf; repair the model first")
        check_mapping(mapping, tile, memory.numel())
        if not 0 <= seed < _MAX_SEED or offset < 0:
            raise InvalidArgument(f"seed {seed} and offset {offset} must be at least 0, and the seed below 2**62")
        # The same object where it can be: by that distinct_nbytes knows that weights share it.
        self._hold(memory.detach() if memory.requires_grad else memory, shape, mapping, tile)
        self.place.copy_(torch.tensor([seed, offset]))
        self.scale.fill_(scale)

    def _hold(self, memory: Tensor, shape: tuple[int, int], mapping: Mapping, tile: tuple[int, int] | None) -> None:
        super().__init__(shape)
        self.mapping: Mapping = mapping
        self.tile = tile
        self.memory: Tensor
        self.place: Tensor
        self.scale: Tensor
        self.register_buffer("memory", memory)
        # Buffers and not part of the description: a file whose tensors were swapped is then still told by their shapes.
        self.register_buffer("place", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))

    @property
    def size(self) -> int:
        """Values in the memory."""
        return self.memory.numel()

    def dense(self) -> Tensor:
        return self._rows(torch.arange(self.shape[0], device=self.memory.device))

    def rows(self, index: Tensor) -> Tensor:
        return self._rows(index.flatten().long()).reshape(*index.shape, self.shape[1])

    def _rows(self, rows: Tensor) -> Tensor:
        seed, offset = self.place.tolist()
        memory, found = self.memory.float(), []
        # Hashing takes several int64 an entry: a million entries at a time.
        for block in rows.split(max(_BLOCK // self.shape[1], 1)):
            places, signs = places_of(block, self.shape[1], self.size, seed=seed, offset=offset, mapping=self.mapping, tile=self.tile)
            found.append(memory[places] * signs * self.scale)
        return torch.cat(found)

    def check_stored(self, tensors: dict[str, Tensor], name: str) -> None:
        seed, offset = tensors["place"].tolist()
        if not 0 <= seed < _MAX_SEED or not 0 <= offset < 1 << 40:
            raise CorruptFile(f"{name}.place holds the impossible seed {seed} or offset {offset}")

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "shape": list(self.shape), "size": self.size, "dtype": dtype_name(self.memory.dtype),
            "mapping": self.mapping, "tile": None if self.tile is None else list(self.tile),
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HashedWeight:
        shape, size = read_shape(config), read_int(config, "size", 1, _MAX_SIZE - 1)
        mapping = read_choice(config, "mapping", get_args(Mapping))
        tile = None if config["tile"] is None else read_shape(config, "tile")
        try:
            check_mapping(mapping, tile, size)
        except InvalidArgument as error:
            raise CorruptFile(f"a stored hashed weight contradicts itself: {error}") from None
        weight = cls.__new__(cls)
        weight._hold(torch.empty(size, dtype=read_dtype(config, "dtype")), shape, mapping, tile)
        return weight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.mapping} into {self.size} values"


def check_mapping(mapping: Mapping, tile: tuple[int, int] | None, size: int) -> None:
    """Refuse a tile where there is none, none where there is one, and one that a memory of ``size`` values cannot hold.

    Raises:
        InvalidArgument: If so, or the mapping is unknown.
    """
    if mapping not in get_args(Mapping):
        raise InvalidArgument(f"mapping must be one of {', '.join(map(repr, get_args(Mapping)))}, got {mapping!r}")
    if (mapping == "tile") != (tile is not None):
        raise InvalidArgument(f"mapping {mapping!r} {'needs a' if tile is None else 'takes no'} tile; only 'tile' has one")
    if tile is not None and (min(tile) < 1 or tile[0] * tile[1] > size):
        raise InvalidArgument(f"a tile of {tile[0]} x {tile[1]} does not fit into a memory of {size} values; choose a smaller one")


def places_of(
    rows: Tensor, columns: int, size: int, *, seed: int, offset: int, mapping: Mapping, tile: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Where the entries of some rows of a matrix are in a memory, and their signs.

    Args:
        rows: int64 ``[n]``, numbers of rows.
        columns: Of the matrix.
        size: Values in the memory.
        seed: See :class:`HashedWeight`, as are the rest.
        offset: Index of the entry ``[0, 0]``.
        mapping: How places are found.
        tile: Of ``"tile"``.

    Returns:
        Places int64 ``[n, columns]`` and signs float32 of the same shape.
    """
    column = torch.arange(columns, device=rows.device)
    index = offset + rows.unsqueeze(1) * columns + column
    signs = 1.0 - 2.0 * (_hashed(index, seed, _SIGNS) < 0)
    if mapping == "hash":
        return _below(_hashed(index, seed, _PLACES), size), signs
    if mapping == "fold":
        turns = _below(_hashed(index // size, seed, _PLACES), size)
        return (index + turns) % size, signs
    assert tile is not None
    height, width = tile
    # A tile is numbered within the matrix, of which it has no more than there are entries: numbers of two matrices do not meet.
    number = offset + (rows // height).unsqueeze(1) * -(-columns // width) + column // width
    start = _below(_hashed(number, seed, _PLACES), size - height * width + 1)
    return start + (rows % height).unsqueeze(1) * width + column % width, signs


def _hashed(index: Tensor, seed: int, stream: int) -> Tensor:
    key = _mixed(torch.tensor(2 * seed + stream, device=index.device))
    return _mixed(key + (index + 1) * _GOLDEN)


def _mixed(values: Tensor) -> Tensor:
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right without the sign, which ``>>`` of torch would copy."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _below(hashed: Tensor, bound: int) -> Tensor:
    return (hashed & ((1 << 63) - 1)) % bound
