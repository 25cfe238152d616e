"""Filter removal from scratch with one learned threshold a layer, after the idea of LAPP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.training.bypass import Bypass, GatedConv2d
from tersor.training.gradual_pruning import check_moments
from tersor.training.guards import check_trained
from tersor.training.layers import put_layer
from tersor.training.method import Method
from tersor.training.structured import Links, evaluating, filter_links, layer_products, remove_filters
from tersor.training.targets import prunable

if TYPE_CHECKING:
    from tersor.training.compression import Compression

Importance = Literal["l1", "taylor"]
_MEMORY = 0.95  # of the running mean of first-order importances


@dataclass(eq=False)
class LAPP(Method):
    """Learn how many filters each convolution keeps while the network is trained from scratch, within a budget of products.

    Use it where a network must be faster on plain hardware, which zeros of :class:`GradualPruning` are not: what is removed is gone.
    Filters below a learned threshold are masked while a penalty leads the products down to the budget; then they are cut out, and the
    training goes on with smaller layers. A cheap bypass beside each convolution keeps all channels alive, so that a layer may lose all
    of its own filters.

    The publication is known to us by its abstract: this is after its idea, with surrogate gradients, ranking and budget of our own. The
    thresholds have a group of their own in the optimizer and want plain SGD; with another optimizer lower ``rate``.

    Attributes:
        products: Share of the multiplications of the dense model, bypasses counted, that is left; never exceeded in the end.
        importance: What orders the filters of a layer: ``"l1"``, their absolute sum, or ``"taylor"``, a running mean of how much
            the loss would change to first order without them.
        bypass: Put the bypass in; else filters are removed from the readers, too, through the dependency graph.
        end: Step at which filters are cut out, or a share of the training.
        frequency: Steps from one ranking of the filters to the next.
        window: Half the width, in shares of a layer, of the ramp that lends the masks a gradient.
        weight: Of the penalty on products above the present budget, squared.
        rate: Learning rate of the thresholds.
        targets: Names or patterns of convolutions; ``None`` for all but the first and those whose outputs are added to others.
        ignore: What of those is left alone.

    Raises:
        InvalidArgument: On an option out of range.

    Reference: Zhai et al. (2023), "LAPP: Layer Adaptive Progressive Pruning for Compressing CNNs from Scratch".
    """

    products: float = 0.5
    importance: Importance = "l1"
    bypass: bool = True
    end: int | float = 0.33
    frequency: int = 10
    window: float = 0.25
    weight: float = 20.0
    rate: float = 0.05
    targets: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    _gates: dict[str, GatedConv2d] = field(default_factory=dict, init=False, repr=False)
    _norms: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _kept: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _history: list[float] = field(default_factory=list, init=False, repr=False)

    name = "lapp"
    reshapes = True

    def __post_init__(self) -> None:
        if not check_number("products", self.products, 0.0, 1.0):
            raise InvalidArgument("products must be above 0: something of the model has to be left")
        check_choice("importance", self.importance, Importance)
        check_moments(0, self.end)
        check_integer("frequency", self.frequency, 1)
        for name, value in (("window", self.window), ("weight", self.weight), ("rate", self.rate)):
            if not check_number(name, value, 0.0):
                raise InvalidArgument(f"{name} must be above 0; nothing is learned with it")

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        if compression.example_inputs is None:
            raise InvalidArgument("LAPP counts the products of one forward pass; pass example_inputs=(...) to Compression")
        self._compression, model, inputs = compression, compression.model, compression.example_inputs
        links = filter_links(model, inputs)
        names, norms = _choose(model, inputs, links, self.targets, self.ignore)
        self._dense = layer_products(model, inputs)
        self._readers = {name: links[name].readers for name in names}
        self._inputs = {name: _width(model.get_submodule(name)) for name in self._dense}
        for name in names:
            conv = model.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            norm = model.get_submodule(norms[name]) if name in norms else None
            assert norm is None or isinstance(norm, nn.BatchNorm2d)
            with torch.random.fork_rng(devices=[]):  # what torch draws for new layers is drawn again from our generator
                bypass = Bypass(conv, compression.generator).to(conv.weight.device, conv.weight.dtype) if self.bypass else None
            self._gates[name] = GatedConv2d(conv, norm, bypass, self.window)
            put_layer(model, name, self._gates[name])
            if norm is not None:
                self._norms[name] = norms[name]
                put_layer(model, norms[name], nn.Identity())
        counted = layer_products(model, inputs)
        self._beside = sum(count for name, count in counted.items() if ".bypass." in name)
        least = self._share({name: torch.tensor(self._least(gate)) for name, gate in self._gates.items()})
        if float(least) > self.products:
            raise InvalidArgument(
                f"products={self.products:g} cannot be reached: with all filters gone that may go, {float(least):.3g} of the products is "
                f"left{' (with bypasses)' if self.bypass else ''}; raise it"
            )

    def _least(self, gate: GatedConv2d) -> float:
        return 0.0 if self.bypass else 1 / gate.conv.out_channels

    def _share(self, fractions: Mapping[str, Tensor]) -> Tensor:
        """Share of the dense products if each gated layer keeps this fraction of its filters."""
        total = torch.zeros(())
        lost: dict[str, Tensor] = {}
        if not self.bypass:
            for name, fraction in fractions.items():
                for reader, count in self._readers[name].items():
                    lost[reader] = lost.get(reader, torch.zeros(())) + (1 - fraction) * (count / self._inputs[reader])
        for name, count in self._dense.items():
            total = total + count * fractions.get(name, torch.ones(())) * (1 - lost.get(name, torch.zeros(())))
        return (total + self._beside) / sum(self._dense.values())

    def rewrites(self) -> frozenset[str]:
        """See :class:`Method`."""
        return frozenset(f"{name}.conv.weight" for name in self._gates)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See :class:`Method`."""
        thresholds = [gate.threshold for gate in self._gates.values()]
        return [{"params": thresholds, "lr": self.rate, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False}] if thresholds else []

    def penalty(self) -> Tensor | None:
        """See :class:`Method`."""
        if self._kept:
            return None
        whole = 1 + self._beside / sum(self._dense.values())
        passed = min((self._compression.step + 1) / max(self._compression.resolve(self.end), 1), 1.0)
        budget = whole + (self.products - whole) * passed
        return self.weight * (self._share(self._fractions()) - budget).relu().square()

    def _fractions(self) -> dict[str, Tensor]:
        return {name: gate.mask().mean().cpu() for name, gate in self._gates.items()}

    def after_step(self, step: int) -> None:
        """See :class:`Method`."""
        if self._kept:
            return
        for name, gate in self._gates.items():
            gate.threshold.clamp_(0.0, 1.0 if self.bypass else 1 - 1.5 / gate.conv.out_channels)
            weight = gate.conv.weight
            if self.importance == "taylor" and weight.grad is not None:
                gate.movement.lerp_((weight * weight.grad).flatten(1).sum(1).abs().to(gate.movement.dtype), 1 - _MEMORY)
            if step % self.frequency == 0 or step >= self._compression.resolve(self.end):
                check_trained(f"{name}.weight", weight, step)
            if step % self.frequency == 0:
                gate.rank(gate.movement if self.importance == "taylor" else weight.abs().flatten(1).sum(1))
        if step >= self._compression.resolve(self.end):
            self._cut(self._chosen())

    def epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Method`."""
        self._history.append(self._now())

    def _now(self) -> float:
        if self._kept:
            fractions = {name: torch.tensor(len(kept) / self._widths[name]) for name, kept in self._kept.items()}
        else:
            fractions = {name: fraction.detach() for name, fraction in self._fractions().items()}
        return float(self._share(fractions))

    def _chosen(self) -> dict[str, Tensor]:
        """The filters above the thresholds, fewer where the budget is exceeded: those that lie closest above their threshold go first."""
        kept = {name: gate.scores >= gate.threshold for name, gate in self._gates.items()}

        def share() -> float:
            return float(self._share({name: mask.double().mean().cpu() for name, mask in kept.items()}))

        least = 0 if self.bypass else 1
        for name, mask in kept.items():
            if int(mask.sum()) < least:
                mask[self._gates[name].scores.argmax()] = True
        while share() > self.products:
            left = {name: gate for name, gate in self._gates.items() if int(kept[name].sum()) > least}
            gaps = {name: float((gate.scores[kept[name]] - gate.threshold).min()) for name, gate in left.items()}
            name = min(gaps, key=lambda name: gaps[name])
            scores = self._gates[name].scores
            kept[name][scores.masked_fill(~kept[name], 2.0).argmin()] = False
        return {name: mask.nonzero().flatten().cpu() for name, mask in kept.items()}

    def _cut(self, kept: Mapping[str, Tensor]) -> None:
        """Leave layers with the filters ``kept``, and the optimizer with what belongs to them."""
        compression, model = self._compression, self._compression.model
        self._widths = {name: gate.conv.out_channels for name, gate in self._gates.items()}
        self._kept = dict(kept)
        for name, gate in self._gates.items():
            compression.drop_parameter(gate.threshold)
            if self.bypass:
                put_layer(model, name, _finish(gate, kept[name].to(gate.scores.device), compression))
                continue
            put_layer(model, name, gate.conv)
            gone = torch.ones(gate.conv.out_channels, dtype=torch.bool)
            gone[kept[name]] = False
            owner = gate.conv if gate.norm is None else gate.norm
            for value in (owner.weight, owner.bias):
                if value is not None:
                    value.data[gone] = 0
            if gate.norm is not None:
                put_layer(model, self._norms[name], gate.norm)
        self._gates.clear()
        if not self.bypass:
            inputs = compression.example_inputs
            assert inputs is not None
            remove_filters(model, dict(kept), inputs, compression)

    def finalize(self) -> None:
        """See :class:`Method`."""
        if not self._kept:
            self._cut(self._chosen())

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return {"history": list(self._history), **{f"kept.{name}": kept for name, kept in self._kept.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Method`."""
        self._history = list(state["history"])
        kept = {key.removeprefix("kept."): value for key, value in state.items() if key.startswith("kept.")}
        if kept and not self._kept:
            self._cut(kept)

    def report(self) -> dict[str, Any]:
        """Share of the dense products that is left, now and after each epoch, and filters kept by layer."""
        if self._kept:
            kept = {name: len(indices) for name, indices in self._kept.items()}
        else:
            kept = {name: int((gate.scores >= gate.threshold).sum()) for name, gate in self._gates.items()}
        return {"products": self._now(), "history": list(self._history), "kept": kept}


def _width(layer: nn.Module) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def _finish(gate: GatedConv2d, kept: Tensor, compression: Compression) -> nn.Module:
    layer = gate.finished(kept)
    for old, new in ((gate.conv, layer.conv), (gate.norm, layer.norm)):
        if old is None:
            continue
        for key, parameter in old.named_parameters():
            if new is None:
                compression.drop_parameter(parameter)
            else:
                own = new.get_parameter(key)
                own.requires_grad_(parameter.requires_grad)
                compression.replace_parameter(parameter, own, lambda values: values[kept])
    return layer


def _choose(
    model: nn.Module, inputs: tuple[Any, ...], links: Mapping[str, Links], targets: Sequence[str] | None, ignore: Sequence[str],
) -> tuple[list[str], dict[str, str]]:  # fmt: skip
    """Convolutions that may lose filters on their own, and the norm that follows each, if one does."""
    wanted = [name.rpartition(".")[0] for name in prunable(model, targets, ignore)]
    order, norms = _follow(model, inputs)
    names = []
    for name in wanted:
        layer = model.get_submodule(name)
        usable = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros" and order.count(name) == 1
        link = links.get(name, Links((), {}))
        if usable and link.readers and not link.outputs and (targets or name != order[0]):
            names.append(name)
        elif targets:
            why = f"shares its filters with {link.outputs[0]}" if link.outputs else "is no such layer"
            raise InvalidArgument(f"LAPP takes filters out of convolutions that run once and lie inside the model; {name} {why}")
    if not names:
        raise InvalidArgument(f"{type(model).__name__} has no convolution after the first whose filters can be removed on their own")
    return names, norms


@torch.no_grad()
def _follow(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[list[str], dict[str, str]]:
    """Convolutions in the order in which they run, and by convolution the batch norm that reads what it puts out."""
    outputs: list[tuple[str, Tensor]] = []
    norms: dict[str, str] = {}

    def see(name: str, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if isinstance(layer, nn.Conv2d):
            outputs.append((name, output))
        elif arguments:
            norms.update({conv: name for conv, seen in outputs if seen is arguments[0]})

    handles = [
        layer.register_forward_hook(lambda layer, arguments, output, name=name: see(name, layer, arguments, output))
        for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))
    ]  # fmt: skip
    try:
        with evaluating(model):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, _ in outputs], norms
