"""Compresso: learn which heads, units and width of a language model can go, while low-rank adapters learn to do without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer, check_number
from tersor.training.decoder import Decoder, Masks
from tersor.training.gradual_pruning import check_moments
from tersor.training.l0_gates import Gates, Kind
from tersor.training.lora import Adapters
from tersor.training.method import Method
from tersor.training.slicing import check_masks, slice_decoder

if TYPE_CHECKING:
    from tersor.training.compression import Compression

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(eq=False)
class Compresso(Method):
    """Structured pruning of a causal language model of transformers, in any training loop; the result is smaller and plain.

    Use it where a model must become smaller and faster without special kernels; :func:`tersor.layerwise.sparsegpt` and quantisers need no
    training. The weights are frozen. Gates multiply what every key-value head (with its query heads), every inner unit of the feed-forward
    and every component of the residual stream contributes; they are learned with hard-concrete noise under a Lagrangian that lowers the
    expected number of parameters from all to ``keep``. Then gates are fixed and the adapters heal alone. In ``train()`` mode gates are
    noisy, in ``eval()`` mode they are not. :meth:`finalize` merges adapters and gates into the weights and cuts.

    Attributes:
        keep: Fraction of the parameters of the whole model that is left, embeddings counted (once if tied).
        kinds: What may be cut.
        per_layer: Let layers keep different numbers of heads and units, as in the paper; a configuration of transformers cannot say that,
            so by default every layer keeps equally many, each its own.
        begin: Step from which the gates work, or a share of the training; adapters alone are trained before it.
        end: Step at which the expected size has come down to ``keep``.
        fix: Step at which the gates are fixed. The shares are those of the published run: 1, 4, 1 and 4 of 10 epochs.
        rank: Of the adapters.
        alpha: Their scale, times ``rank``.
        adapted: Names of the projections with adapters. The paper adapts queries and values; where a third of the model goes, all have
            something to make up for. Empty for no adapters: gates alone are learned then, and nothing heals.
        rate: Learning rate of the gates: a logit goes from one bound to the other in 9.2 divided by it; the paper's 0.1 needs thousands of
            steps.
        multiple: The width and the numbers of units become multiples of it; 32 or 64 suits quantised formats and GPUs.
        lagrangian: Let the size that is aimed at press on the gates. Without it they follow the loss alone and the lowest go in the end:
            the ablation, which shows what the pressure is worth.
        masks: Parts chosen elsewhere: no gates are learned then, ``keep`` and ``kinds`` are ignored, and adapters heal from the first
            step.

    Raises:
        InvalidArgument: On an option out of range.

    Reference:
        Guo, Xu, Zhang, Yang: "Compresso: Structured Pruning with Collaborative Prompting Learns Compact Large Language Models", 2023.
    """

    keep: float = 0.8
    kinds: Sequence[Kind] = ("groups", "units", "width")
    per_layer: bool = False
    begin: int | float = 0.1
    end: int | float = 0.5
    fix: int | float = 0.6
    rank: int = 8
    alpha: float = 8.0
    adapted: Sequence[str] = PROJECTIONS
    rate: float = 0.3
    multiple: int = 1
    lagrangian: bool = True
    masks: Masks | None = field(default=None, repr=False)
    _fixed: Masks | None = field(default=None, init=False, repr=False)
    _handles: list[Any] = field(default_factory=list, init=False, repr=False)

    name = "compresso"

    def __post_init__(self) -> None:
        if not isinstance(self.keep, (int, float)) or isinstance(self.keep, bool) or not 0 < self.keep < 1:
            raise InvalidArgument(f"keep is the fraction of the parameters that stays and must be between 0 and 1, got {self.keep!r}")
        for key in ("rank", "multiple"):
            check_integer(key, getattr(self, key), 1)
        for key in ("alpha", "rate"):
            check_number(key, getattr(self, key), 0.0)
        check_moments(self.begin, self.end)
        check_moments(self.end, self.fix)
        for name in self.adapted:
            if name not in PROJECTIONS:
                raise InvalidArgument(f"adapted must name projections among {', '.join(PROJECTIONS)}, got {name!r}")
        self._fixed = self.masks

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        self._compression = compression
        model = compression.model
        self.decoder = Decoder(model)
        self.gates = Gates(self.decoder, self.kinds, self.per_layer, compression.generator)
        if self.masks is not None:
            check_masks(self.decoder, self.masks)
        else:
            self.gates.check_reachable(self.keep)
            # The trainer of transformers tells the length later.
            known = compression.total_steps is not None or (isinstance(self.fix, int) and isinstance(self.begin, int))
            if known and compression.resolve(self.fix) <= compression.resolve(self.begin):
                raise InvalidArgument("no step is left between begin and fix to learn gates in; train longer or give them as steps")
        self._flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        model.requires_grad_(False)
        projections = self.decoder.projections()
        chosen = [layer for name, layer in projections.items() if name.rpartition(".")[2] in self.adapted]
        self._adapters = Adapters(chosen, self.rank, self.alpha, compression.generator)
        self._hook()

    def _hook(self) -> None:
        """Gate what is written to the stream, and what heads and units hand on; behind the adapters, which hooked before."""

        def on_stream(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return _times(output, self._gate("width", None))

        self._handles.append(self.decoder.backbone.embed_tokens.register_forward_hook(on_stream))
        for index, layer in enumerate(self.decoder.layers):
            out, down = layer.self_attn.o_proj, layer.mlp.down_proj
            self._handles.append(out.register_forward_pre_hook(self._on_input("groups", index)))
            self._handles.append(down.register_forward_pre_hook(self._on_input("units", index)))
            self._handles += [part.register_forward_hook(on_stream) for part in (out, down)]

    def _on_input(self, kind: Kind, layer: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            gate = self._gate(kind, layer)
            if gate is not None and kind == "groups":
                gate = gate.repeat_interleave(self.decoder.queries * self.decoder.head_dim)
            return (_times(args[0], gate), *args[1:])

        return hook

    def _gate(self, kind: Kind, layer: int | None) -> Tensor | None:
        if self._fixed is not None:
            mask: Tensor = getattr(self._fixed, kind)
            return mask if layer is None else mask[layer]
        return self.gates.gate(kind, layer, self.decoder.model.training) if self.learning else None

    @property
    def learning(self) -> bool:
        """Whether the next step moves gates."""
        return self._fixed is None and self._compression.step >= self._compression.resolve(self.begin)

    @property
    def settled(self) -> Masks | None:
        """The masks, once they are fixed."""
        return self._fixed

    def rewrites(self) -> frozenset[str]:
        """See :class:`Method`."""
        return frozenset(f"{name}.weight" for name in self.decoder.projections())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See :class:`Method`."""
        gates = {"params": list(self.gates.logits.values()), "lr": self.rate, "weight_decay": 0.0}
        return [gates] if self.masks is None else []

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The logits of the gates by name."""
        return {f"gates.{kind}": logit for kind, logit in self.gates.logits.items()}

    def keep_at(self, step: int) -> float:
        """What the Lagrangian aims at after ``step``: 1 until ``begin``, then linearly down to ``keep`` at ``end``."""
        begin, end = self._compression.resolve(self.begin), self._compression.resolve(self.end)
        done = min(max((step - begin) / max(end - begin, 1), 0.0), 1.0)
        return 1.0 - (1.0 - self.keep) * done

    def expected_keep(self) -> float:
        """The fraction of the parameters that is left, in expectation while gates are learned."""
        if self._fixed is not None:
            return self.decoder.count_of(self._fixed.shape) / self.decoder.parameters
        return float(self.gates.expected_keep().detach()) if self.learning else 1.0

    def penalty(self) -> Tensor | None:
        """See :class:`Method`."""
        return self.gates.penalty(self.keep_at(self._compression.step)) if self.learning and self.lagrangian else None

    def after_step(self, step: int) -> None:
        """See :class:`Method`."""
        for logit in self.gates.logits.values():
            # Trainers clear the gradients of the model, of which the gates are no part.
            logit.grad = None
        if not self.learning:
            return
        self.gates.project(self.keep_at(step))
        self.gates.draw(self._compression.generator)
        if step >= self._compression.resolve(self.fix):
            self._fixed = self.gates.settle(self.keep, self.multiple)

    def finalize(self) -> None:
        """See :class:`Method`."""
        if self._fixed is None:
            self._fixed = self.gates.settle(self.keep, self.multiple)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._adapters.merge()
        model = self.decoder.model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._flags[name])
        slice_decoder(model, self._fixed)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Method`."""
        state: dict[str, Any] = {name: parameter.detach() for name, parameter in self.named_parameters().items()}
        state["multiplier"] = self.gates.multiplier
        state |= {f"noise.{kind}": noise for kind, noise in self.gates.noise.items()}
        return state if self._fixed is None else state | {f"masks.{kind}": mask for kind, mask in vars(self._fixed).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Method`."""
        for name, parameter in self.named_parameters().items():
            parameter.data.copy_(state[name])
        self.gates.multiplier = state["multiplier"]
        self.gates.noise = {kind: state[f"noise.{kind}"] for kind in self.gates.noise}
        kept = {key.removeprefix("masks."): value for key, value in state.items() if key.startswith("masks.")}
        self._fixed = Masks(**kept) if kept else None

    def report(self) -> dict[str, Any]:
        """Parameters before and after, and by layer the heads and units that are left."""
        facts = {"parameters": self.decoder.parameters, "keep": self.keep, "expected_keep": self.expected_keep()}
        if self._fixed is None:
            return facts
        shape = self._fixed.shape
        return facts | {"kept_parameters": self.decoder.count_of(shape), **vars(shape)}


def _times(value: Tensor, gate: Tensor | None) -> Tensor:
    return value if gate is None else value * gate.to(value.dtype)
