"""Parameter sharing: all weights of a network are read from one small memory, from the first step on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.training.method import Method
from tersor.training.shared_layer import SharedLayer, encode
from tersor.training.swapping import Layer, swap_layer, swappable
from tersor.weights import HashedWeight, compressed_layer
from tersor.weights.checking import FLOAT_TYPES
from tersor.weights.hashed import Mapping as Places
from tersor.weights.hashed import check_mapping, places_of

if TYPE_CHECKING:
    from tersor.training.compression import Compression

Scope = Literal["model", "layer"]
Start = Literal["spread", "nearest"]
Finish = Literal["hashed", "dense"]
_MEMORY = "shared_memory"
_MAX_SEED = (1 << 62) - 1
# Hashing takes several int64 an entry: a million entries at a time.
_BLOCK = 1 << 20


@dataclass(eq=False)
class ParameterSharing(Method):
    """Train a network whose weights are all views into one memory of fewer values; a seed says which weight reads which.

    Use it when memory is fixed before training begins: nothing is pruned, no position is stored, and what is trained has the final size all
    along. Every product is still computed; prune structures where time matters. At ``compression`` 1 with ``"fold"`` it is dense training.

    Of the published variants, the default is STABLE-RPS: RandomFold places and scaled gradients. ROAST is ``mapping="tile"``, HashedNet
    ``mapping="hash"`` with ``scope="layer"``, both with ``scale_gradient=False``.

    Attributes:
        compression: Weights for each value of the memory, at least 1.
        mapping: How weights find their values, see :class:`tersor.weights.HashedWeight`; ``"fold"`` uses all values equally often.
        tile: ``(rows, columns)`` of the blocks of ``"tile"``, which read contiguous memory; ``None`` for 4 x 8.
        scope: ``"model"``: one memory for all layers; ``"layer"``: each layer has its own.
        scale_gradient: Divide the gradient of a value by ``(sum of scales)**2 / uses``, so that a step of SGD moves its weights by the mean
            of their steps, whatever the memory's scale; else by the sum, which grows with compression. Optimizers that divide by
            the size of gradients, such as Adam, undo it.
        start: ``"spread"``: each value starts as the sum of the weights that read it by the root of their number, which keeps their
            variance; ``"nearest"``: as the mean, for a network that is trained already.
        deviation: Standard deviation of the memory's values, to which layers are scaled; ``None`` for that of all weights, with
            which scales are about 1 and the learning rate of any optimizer keeps its meaning.
        finish: What ``finalize`` leaves: ``"hashed"`` weights that hold memory and seed, or ``"dense"`` layers.
        targets: Names or patterns of layers, see :func:`tersor.training.prunable`; ``None`` for all linear layers and convolutions.
        ignore: What of those is left alone, such as a small last layer.
        seed: Of places and signs.

    Raises:
        InvalidArgument: On an option out of range.

    Reference: Desai, Shrivastava (2024), "In defense of parameter sharing for model-compression".
    """

    compression: float = 10.0
    mapping: Places = "fold"
    tile: tuple[int, int] | None = None
    scope: Scope = "model"
    scale_gradient: bool = True
    start: Start = "spread"
    deviation: float | None = None
    finish: Finish = "hashed"
    targets: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    seed: int = 0
    _layers: dict[str, SharedLayer] = field(default_factory=dict, init=False, repr=False)
    _places: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False)

    name = "parameter_sharing"

    def __post_init__(self) -> None:
        check_number("compression", self.compression, 1.0)
        check_choice("mapping", self.mapping, Places)
        check_choice("scope", self.scope, Scope)
        check_choice("start", self.start, Start)
        check_choice("finish", self.finish, Finish)
        check_integer("seed", self.seed, 0, _MAX_SEED)
        if self.deviation is not None and not check_number("deviation", self.deviation, 0.0):
            raise InvalidArgument("deviation must be above 0, got 0")
        if self.mapping == "tile" and self.tile is None:
            self.tile = (4, 8)

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        self._compression = compression
        found = swappable(compression.model, self.targets, self.ignore)
        # Sorted, so that places do not depend on the order in which a model lists its layers.
        names = sorted(found)
        _check_weights({name: found[name].weight for name in names})
        groups = [names] if self.scope == "model" else [[name] for name in names]
        for group in groups:
            self._share(compression.model, {name: found[name] for name in group})

    def _share(self, model: nn.Module, layers: dict[str, Layer]) -> None:
        """Put one memory in the place of the weights of ``layers``."""
        weights = {name: layer.weight.detach() for name, layer in layers.items()}
        numel = sum(weight.numel() for weight in weights.values())
        size = max(round(numel / self.compression), 1)
        check_mapping(self.mapping, self.tile, size)
        first = next(iter(weights.values()))
        if other := next((name for name, weight in weights.items() if weight.dtype != first.dtype or weight.device != first.device), None):
            raise InvalidArgument(f"{other} has another type or device than {next(iter(weights))}; they cannot share, name one in ignore")
        deviation = self.deviation or float(torch.cat([weight.flatten() for weight in weights.values()]).double().std(correction=0))
        offset = 0
        owner = model if self.scope == "model" else None
        memory_name = _free_name(model) if owner is not None else _MEMORY
        for name, layer in layers.items():
            self._places[name] = (size, offset)
            scale = float(weights[name].double().std(correction=0)) / deviation
            codes = self._codes(name, weights[name].shape).to(first.device)
            shared = SharedLayer(layer, owner, memory_name, codes, scale).train(layer.training)
            self._layers[name] = shared
            swap_layer(model, layer, shared)
            offset += weights[name].numel()
            holder = shared if owner is None else owner
        holder.register_parameter(memory_name, nn.Parameter(self._memory(weights, size)))
        holder.register_buffer(f"{memory_name}_divisor", self._divisor(list(layers), size), persistent=False)

    def _codes(self, name: str, shape: torch.Size) -> Tensor:
        size, offset = self._places[name]
        rows, columns = shape[0], shape[1:].numel()
        options: dict[str, Any] = {"seed": self.seed, "offset": offset, "mapping": self.mapping, "tile": self.tile}
        blocks = torch.arange(rows).split(max(_BLOCK // columns, 1))
        return torch.cat([encode(*places_of(block, columns, size, **options)) for block in blocks]).reshape(shape)

    def _memory(self, weights: Mapping[str, Tensor], size: int) -> Tensor:
        """The values that weights start from: projections of the model's own."""
        first = next(iter(weights.values()))
        total, squares, uses = (torch.zeros(size, dtype=torch.float64, device=first.device) for _ in range(3))
        for name, weight in weights.items():
            codes, scale = self._layers[name].codes.flatten(), self._layers[name].scale
            places = torch.where(codes < 0, ~codes, codes)
            signed = torch.where(codes < 0, -weight.flatten(), weight.flatten()).double()
            # The nearest memory in least squares weighs each use by its scale; the spread one standardises each.
            total.index_add_(0, places, signed * scale if self.start == "nearest" else signed / scale)
            squares.index_add_(0, places, torch.full_like(signed, scale**2))
            uses.index_add_(0, places, torch.ones_like(signed))
        divisor = squares if self.start == "nearest" else uses.sqrt()
        return (total / divisor.where(uses > 0, 1.0)).to(first.dtype)

    def _divisor(self, names: Sequence[str], size: int) -> Tensor | None:
        """By what the gradient of each value is divided: ``(sum of scales)**2 / uses``."""
        if not self.scale_gradient:
            return None
        first = self._layers[names[0]]
        total, uses = (torch.zeros(size, dtype=torch.float64, device=first.codes.device) for _ in range(2))
        for name in names:
            codes = self._layers[name].codes.flatten()
            places = torch.where(codes < 0, ~codes, codes)
            total.index_add_(0, places, torch.full_like(places, self._layers[name].scale, dtype=torch.float64))
            uses.index_add_(0, places, torch.ones_like(places, dtype=torch.float64))
        # A value that nothing reads has no gradient, whatever it is divided by.
        return (total.square() / uses.clamp(min=1)).where(uses > 0, 1.0).to(first.memory.dtype)

    def rewrites(self) -> frozenset[str]:
        """See :class:`Method`; no weight is left for another method to overwrite."""
        return frozenset(f"{name}.weight" for name in self._layers)

    def finalize(self) -> None:
        """See :class:`Method`."""
        model = self._compression.model
        self._final = self.report()
        memories: dict[int, Tensor] = {}
        for name, shared in self._layers.items():
            memory = shared.memory
            if id(memory) not in memories:
                values = memory.detach().clone()
                memories[id(memory)] = values if values.dtype in FLOAT_TYPES.values() else values.float()
            layer: nn.Module = shared.dense_layer()
            if self.finish == "hashed":
                layer = compressed_layer(layer, self._hashed(name, shared, memories[id(memory)]))
            swap_layer(model, shared, layer)
        for name in {shared.memory_name for shared in self._layers.values()} if self.scope == "model" else set():
            delattr(model, name)
            delattr(model, f"{name}_divisor")
        self._layers.clear()

    def _hashed(self, name: str, shared: SharedLayer, memory: Tensor) -> HashedWeight:
        shape = (shared.codes.shape[0], shared.codes[0].numel())
        _, offset = self._places[name]
        return HashedWeight(memory, shape, scale=shared.scale, seed=self.seed, offset=offset, mapping=self.mapping, tile=self.tile)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return {name: shared.scale for name, shared in self._layers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Method`; scales are those of the first model's weights, which a fresh one need not have."""
        for name, shared in self._layers.items():
            shared.scale = state[name]
        for names in [list(self._layers)] if self.scope == "model" else [[name] for name in self._layers]:
            shared = self._layers[names[0]]
            divisor = self._divisor(names, self._places[names[0]][0])
            setattr(shared._owner[0], f"{shared.memory_name}_divisor", divisor)

    def report(self) -> dict[str, Any]:
        """Weights that are read, values that they are read from, and the ratio of the two; scales by layer."""
        if not self._layers:
            return self._final
        weights = sum(shared.codes.numel() for shared in self._layers.values())
        values = sum({id(shared.memory): shared.memory.numel() for shared in self._layers.values()}.values())
        scales = {name: shared.scale for name, shared in self._layers.items()}
        return {"weights": weights, "values": values, "compression": weights / values, "scales": scales}


def _check_weights(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that have no scale to give to what is read."""
    for name, weight in weights.items():
        if weight.numel() < 2 or float(weight.detach().double().std(correction=0)) == 0:
            raise InvalidArgument(f"{name} starts as a constant, which gives no scale for what it would read; name it in ignore")


def _free_name(model: nn.Module) -> str:
    """A name for a memory at the root of ``model`` that nothing has yet."""
    name, number = _MEMORY, 1
    while hasattr(model, name):
        number += 1
        name = f"{_MEMORY}_{number}"
    return name
