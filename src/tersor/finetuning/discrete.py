"""Compressed weights while they are tuned: what is continuous in them gets gradients, what is discrete gets moved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.kernels.codebook import lookup
from tersor.layerwise.grid import Grid, Scheme
from tersor.weights import CodebookWeight, CompressedWeight, QuantizedWeight, SparseWeight
from tersor.weights.kept import FloatValues

# Tiles whose nearest codes are looked for at once.
_CHUNK = 1 << 14


class Moves(NamedTuple):
    """What a step may change, best first.

    Attributes:
        tiles: int64 ``[n]``, the numbers of the tiles.
        codes: What to put there, ``[n, ...]``.
        squares: Squared length of the change of the weight that each is, ``[n]``.
    """

    tiles: Tensor
    codes: Tensor
    squares: Tensor


class DiscreteWeight(ABC):
    """A weight of one kind while it is tuned.

    Attributes:
        values: The continuous parts, float32; rounded to the stored type wherever they are used, with the gradient passed through.
    """

    values: dict[str, Tensor]

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrix ``[out_features, in_features]`` that the weight stands for now; differentiable in :attr:`values`."""

    @abstractmethod
    def candidates(self, reference: Tensor, current: Tensor, most: int, force: bool) -> Moves:
        """At most ``most`` changes that bring the weight towards ``reference``, those furthest from it first.

        Args:
            reference: float32 ``[out_features, in_features]``.
            current: :meth:`dense` now.
            most: Tiles to look at.
            force: Take the second best code where the best is the one already there.
        """

    @abstractmethod
    def apply(self, moves: Moves) -> None:
        """Make the changes."""

    @property
    @abstractmethod
    def n_tiles(self) -> int:
        """Places that hold a discrete choice."""

    @abstractmethod
    def finished(self) -> CompressedWeight:
        """The weight as it is stored, equal to :meth:`dense` in every bit."""

    @property
    @abstractmethod
    def choices(self) -> Tensor:
        """The discrete part, to be saved and restored."""

    @choices.setter
    @abstractmethod
    def choices(self, value: Tensor) -> None: ...


def discrete(weight: CompressedWeight) -> DiscreteWeight:
    """``weight`` ready to be tuned.

    Raises:
        InvalidArgument: If its kind has nothing discrete that this knows how to move.
    """
    if isinstance(weight, CodebookWeight):
        return _Codebook(weight)
    if isinstance(weight, QuantizedWeight):
        return _Grid(weight)
    if isinstance(weight, SparseWeight) and isinstance(weight.values, FloatValues):
        return _Mask(weight)
    raise InvalidArgument(f"a {weight.kind} weight cannot be tuned; codebook, quantized and sparse float weights can")


def move(weight: DiscreteWeight, reference: Tensor, current: Tensor, max_change: float, trust_ratio: float | None, force: bool) -> int:
    """Move the discrete part of ``weight`` towards ``reference`` within the limits of a step; returns how many tiles changed.

    Args:
        weight: Changed in place.
        reference: float32 ``[out_features, in_features]``.
        current: Its :meth:`DiscreteWeight.dense`.
        max_change: Fraction of the tiles that may change.
        trust_ratio: Bound on the length of the whole change relative to that of the weight; one tile more is always allowed, since a bound
            below the smallest step would freeze the codes. ``None`` for no bound.
        force: See :meth:`DiscreteWeight.candidates`.
    """
    most = min(max(int(-(-max_change * weight.n_tiles // 1)), 1), weight.n_tiles)
    moves = weight.candidates(reference, current, most, force)
    if trust_ratio is not None and moves.tiles.numel():
        allowed = (trust_ratio * float(current.norm())) ** 2
        count = int((moves.squares.double().cumsum(0) <= allowed).sum()) + 1
        moves = Moves(*(part[:count] for part in moves))
    weight.apply(moves)
    return moves.tiles.numel()


def _half(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` as they will be stored, with the gradient of the identity."""
    return values + (values.to(dtype).float() - values).detach()


def _furthest(squares: Tensor, most: int) -> Tensor:
    """The numbers of the ``most`` largest, largest first: the trust region goes through them in this order."""
    return torch.topk(squares.flatten(), most, sorted=True).indices


class _Codebook(DiscreteWeight):
    def __init__(self, weight: CodebookWeight) -> None:
        self._bits, self._dtype = weight.bits, weight.scale.dtype
        self._codes = weight.indices.long()
        self.values = {"codebooks": weight.codebooks.float(), "scale": weight.scale.float()}

    def _stored(self) -> tuple[Tensor, Tensor]:
        return _half(self.values["codebooks"], torch.float16), _half(self.values["scale"], self._dtype)

    def dense(self) -> Tensor:
        return lookup(self._codes, *self._stored())

    @property
    def n_tiles(self) -> int:
        return self._codes.shape[0] * self._codes.shape[1]

    def candidates(self, reference: Tensor, current: Tensor, most: int, force: bool) -> Moves:
        codebooks, scale = (part.detach() for part in self._stored())
        size, groups = codebooks.shape[2], self._codes.shape[1]
        tiles = _furthest((reference - current).view(-1, size).square().sum(1), most)
        own = scale[tiles // groups].unsqueeze(1)
        target = reference.view(-1, size)[tiles] / torch.where(own == 0, 1.0, own)
        old = self._codes.view(-1, codebooks.shape[0])[tiles]
        parts = zip(target.split(_CHUNK), old.split(_CHUNK), strict=True)
        found = torch.cat([_nearest(*part, codebooks, force) for part in parts])
        changed = (found != old).any(1)
        tiles, found, old = tiles[changed], found[changed], old[changed]
        step = (_summed(found, codebooks) - _summed(old, codebooks)) * own[changed]
        return Moves(tiles, found, step.square().sum(1))

    def apply(self, moves: Moves) -> None:
        self._codes.view(-1, self._codes.shape[2])[moves.tiles] = moves.codes

    def finished(self) -> CodebookWeight:
        codebooks, scale = (part.detach() for part in self._stored())
        return CodebookWeight(self._codes.to(torch.uint8), codebooks, scale, bits=self._bits)

    @property
    def choices(self) -> Tensor:
        return self._codes

    @choices.setter
    def choices(self, value: Tensor) -> None:
        self._codes = value.long()


def _summed(codes: Tensor, codebooks: Tensor) -> Tensor:
    return torch.stack([book[codes[:, number]] for number, book in enumerate(codebooks)]).sum(0)


def _nearest(target: Tensor, old: Tensor, codebooks: Tensor, force: bool) -> Tensor:
    """Codes whose sum is closest to each target, by coordinate descent from the old ones."""
    codes = old.clone()
    rest = target - _summed(codes, codebooks)
    for _ in range(1 if codebooks.shape[0] == 1 else 3):
        for number, book in enumerate(codebooks):
            wanted = rest + book[codes[:, number]]
            distances = book.square().sum(1) - 2 * wanted @ book.T
            if force:
                distances.scatter_(1, old[:, number : number + 1], torch.inf)
            codes[:, number] = distances.argmin(1)
            rest = wanted - book[codes[:, number]]
    return codes


class _Grid(DiscreteWeight):
    def __init__(self, weight: QuantizedWeight) -> None:
        self._grid = Grid(weight.bits, cast("Scheme", weight.scheme), weight.group_size)
        self._columns = None if weight.input_scale is None else weight.input_scale.float()
        self._codes = weight.unpacked_codes()
        self._dtype = weight.scale.dtype
        self._zero = weight.unpacked_zero()
        self.values = {"scale": weight.scale.float()}
        if self._grid.scheme == "float_min":
            self.values["zero"] = self._zero.clone()

    def _stored(self) -> tuple[Tensor, Tensor]:
        zero = _half(self.values["zero"], self._dtype) if "zero" in self.values else self._zero
        return _half(self.values["scale"], self._dtype), zero

    def _decoded(self, codes: Tensor) -> Tensor:
        scale, zero = self._stored()
        dense = self._grid.decode(self._grid.groups(codes.float()), scale.unsqueeze(-1), zero.unsqueeze(-1)).flatten(1)
        return dense if self._columns is None else dense * self._columns

    def dense(self) -> Tensor:
        return self._decoded(self._codes)

    @property
    def n_tiles(self) -> int:
        return self._codes.numel()

    def candidates(self, reference: Tensor, current: Tensor, most: int, force: bool) -> Moves:
        tiles = _furthest((reference - current).square(), most)
        wanted = reference if self._columns is None else reference / torch.where(self._columns == 0, 1.0, self._columns)
        scale, zero = (part.detach() for part in self._stored())
        safe = torch.where(scale == 0, 1.0, scale)
        codes = self._grid.quantize(wanted, safe, zero)
        if force:
            towards = torch.where(reference.ge(current) ^ scale.repeat_interleave(self._grid.group_size, 1).lt(0), 1, -1)
            pushed = (codes.int() + towards).clamp(0, self._grid.highest).to(torch.uint8)
            codes = torch.where(codes == self._codes, pushed, codes)
        chosen = codes.flatten()[tiles]
        changed = chosen != self._codes.flatten()[tiles]
        tiles, chosen = tiles[changed], chosen[changed]
        moved = self._codes.clone()
        moved.view(-1)[tiles] = chosen
        squares = (self._decoded(moved).detach() - current).flatten()[tiles].square()
        return Moves(tiles, chosen, squares)

    def apply(self, moves: Moves) -> None:
        self._codes.view(-1)[moves.tiles] = moves.codes

    def finished(self) -> QuantizedWeight:
        scale, zero = (part.detach() for part in self._stored())
        return self._grid.pack(self._codes, scale, zero, self._columns)

    @property
    def choices(self) -> Tensor:
        return self._codes

    @choices.setter
    def choices(self, value: Tensor) -> None:
        self._codes = value.clone()


class _Mask(DiscreteWeight):
    """A choice is a position that is kept; a change swaps one that is kept for one that is not, so that the bytes stay."""

    def __init__(self, weight: SparseWeight) -> None:
        assert isinstance(weight.values, FloatValues)
        config = weight.config["positions"]
        self._pattern: dict[str, int] = {key: config[key] for key in ("keep_n", "of_m") if key in config}
        self._dtype = weight.values.values.dtype
        self._kept = weight.mask()
        self.values = {"values": weight.dense()}

    def dense(self) -> Tensor:
        return _half(self.values["values"], self._dtype) * self._kept

    @property
    def n_tiles(self) -> int:
        return int(self._kept.sum())

    def candidates(self, reference: Tensor, current: Tensor, most: int, force: bool) -> Moves:
        size = reference.abs()
        leaving, entering = (self._pairs_in_groups if self._pattern else self._pairs)(size, most)
        gain = size.flatten()[entering] - size.flatten()[leaving]
        better = gain > 0
        order = gain[better].argsort(descending=True)[:most]
        leaving, entering = leaving[better][order], entering[better][order]
        squares = current.flatten()[leaving].square() + reference.flatten()[entering].square()
        return Moves(leaving, torch.stack([entering.double(), reference.flatten()[entering].double()], 1), squares)

    def _pairs(self, size: Tensor, most: int) -> tuple[Tensor, Tensor]:
        kept = size.masked_fill(~self._kept, torch.inf).flatten()
        free = size.masked_fill(self._kept, -torch.inf).flatten()
        count = min(most, self.n_tiles, free.numel() - self.n_tiles)
        return torch.topk(kept, count, largest=False).indices, torch.topk(free, count).indices

    def _pairs_in_groups(self, size: Tensor, most: int) -> tuple[Tensor, Tensor]:
        of_m = self._pattern["of_m"]
        first = torch.arange(0, size.numel(), of_m)
        kept = size.masked_fill(~self._kept, torch.inf).view(-1, of_m).argmin(1)
        free = size.masked_fill(self._kept, -torch.inf).view(-1, of_m).argmax(1)
        return first + kept, first + free

    def apply(self, moves: Moves) -> None:
        entering, reached = moves.codes[:, 0].long(), moves.codes[:, 1].float()
        kept, values = self._kept.view(-1), self.values["values"].detach().view(-1)
        kept[moves.tiles], kept[entering] = False, True
        values[moves.tiles], values[entering] = 0.0, reached

    def finished(self) -> SparseWeight:
        return SparseWeight.from_dense(self.dense().detach(), self._kept, self._dtype, **self._pattern)

    @property
    def choices(self) -> Tensor:
        return self._kept

    @choices.setter
    def choices(self, value: Tensor) -> None:
        self._kept = value.clone()


def check_tunable(weights: Mapping[str, CompressedWeight]) -> dict[str, DiscreteWeight]:
    """Every weight that can be tuned, by the name of its layer.

    Raises:
        InvalidArgument: If there is none.
    """
    found = {name: discrete(weight) for name, weight in weights.items() if is_tunable(weight)}
    if not found:
        kinds = ", ".join(sorted({weight.kind for weight in weights.values()})) or "none"
        raise InvalidArgument(f"no layer of the model can be tuned (its kinds: {kinds}); compress it to codebooks, a grid or a float mask")
    return found


def is_tunable(weight: CompressedWeight) -> bool:
    """Whether its values and codes can be trained: codebooks, a grid, or sparse floats."""
    sparse = isinstance(weight, SparseWeight) and isinstance(weight.values, FloatValues)
    return sparse or isinstance(weight, (CodebookWeight, QuantizedWeight))
