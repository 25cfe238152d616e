"""QuEST in any training loop: rounded layers while a model is trained, packed codes in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tersor.layerwise.checking import check_integer
from tersor.training.method import Method
from tersor.training.quest import Quantizer, QuESTLinear, export, quest

if TYPE_CHECKING:
    from tersor.training.compression import Compression


@dataclass(eq=False)
class QuEST(Method):
    """Weights and inputs of few bits while a model is trained, see :func:`quest`; :meth:`finalize` leaves packed codes.

    Give it to a :class:`Compression` for checkpoints and the loops of transformers and Lightning; :func:`quest` alone suits a plain loop.
    The grid has no zero, so it goes with no method that prunes the same weights.

    Attributes:
        weights: A quantizer, a number of bits with its defaults, or ``None`` to leave the weights.
        activations: The same for what the layers are given.
        skip: Layers whose dotted name contains one of these stay.
        round_inputs: Whether inputs go on being rounded after :meth:`finalize`, see :func:`export`.

    Raises:
        InvalidArgument: On an option out of range.

    Reference:
        Panferov, Chen, Tabesh, Castro, Nikdan, Alistarh: "QuEST: Stable Training of LLMs with 1-Bit Weights and Activations", 2025.
    """

    weights: Quantizer | int | None = 4
    activations: Quantizer | int | None = 4
    skip: Sequence[str] = ("lm_head", "embed")
    round_inputs: bool = True
    _layers: list[str] = field(default_factory=list, init=False, repr=False)

    name = "quest"

    def __post_init__(self) -> None:
        for key in ("weights", "activations"):
            value = getattr(self, key)
            if isinstance(value, int):
                check_integer(key, value, 1, 8)

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        self._model = compression.model
        self._layers = quest(self._model, weights=self.weights, activations=self.activations, skip=self.skip)

    def rewrites(self) -> frozenset[str]:
        """See :class:`Method`."""
        return frozenset(f"{name}.weight" for name in self._layers)

    def finalize(self) -> None:
        """Replace the layers by their codes; layers whose weights are not rounded, or pruned in pairs besides, stay as they are."""
        first = self._model.get_submodule(self._layers[0])
        if isinstance(first, QuESTLinear) and (rounded := first.quantized_weights) is not None and rounded.keep_pairs == 4:
            export(self._model, round_inputs=self.round_inputs)

    def report(self) -> dict[str, Any]:
        """Bits of weights and inputs, and how many layers have them."""
        bits = {
            key: value.bits if isinstance(value, Quantizer) else value
            for key, value in (("weights", self.weights), ("activations", self.activations))
        }
        return {**bits, "layers": len(self._layers)}
