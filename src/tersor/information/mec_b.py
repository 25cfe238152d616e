"""Minimum-entropy coupling through a bottleneck: an output of given law that tells most of a source through a code of few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tersor.information.bottleneck import ebim, uniform_quantiser
from tersor.information.checking import Array, check_distribution
from tersor.information.coupling import Coupling, CouplingMethod, mec
from tersor.layerwise.checking import check_choice

Compressor = Literal["ebim", "uniform"]


@dataclass(frozen=True)
class BottleneckCoupling:
    """A source, its code and an output that depends on the source through the code alone.

    Attributes:
        encoder: ``p(x, t)``.
        decoder: ``p(t, y)``.
        whole: ``p(x, y)``, the composition of the two.
    """

    encoder: Coupling
    decoder: Coupling
    whole: Coupling

    @property
    def joint(self) -> Array:
        """``p(x, y)`` ``[n, m]``."""
        return self.whole.joint

    @property
    def information(self) -> float:
        """``I(X; Y)`` in bits, no more than that of either step."""
        return self.whole.information


def mec_b(
    p_x: Any, p_y: Any, rate: float, *,
    method: CouplingMethod = "best", compressor: Compressor = "ebim", close_gap: bool = True, exact: bool = False,
) -> BottleneckCoupling:  # fmt: skip
    """An output of law ``p_y`` that tells as much as possible of a source of law ``p_x`` through a code of at most ``rate`` bits.

    The two steps are optimised one after the other: the code by :func:`~tersor.information.ebim`, the output by
    :func:`~tersor.information.mec`. With ``rate >= H(X)`` this is plain minimum-entropy coupling.

    Args:
        p_x: Distribution ``[n]`` of the source.
        p_y: Distribution ``[m]`` of the output.
        rate: Bits of the code, at least 0.
        method: How the code and the output are coupled, see :func:`~tersor.information.mec`.
        compressor: ``"ebim"``, or ``"uniform"`` for the baseline :func:`~tersor.information.uniform_quantiser`.
        close_gap: Whether one symbol may be coded at random, so that the rate is met exactly.
        exact: The best of all codes, for at most 9 symbols. Worth it where the output has few values: in the example the greedy code meets
            the rate too, but its law fits the output's so badly that 0.4 bits get through.

    Returns:
        The three couplings.

    Raises:
        InvalidArgument: If a law is no distribution, the rate negative, or an option unknown.

    Reference:
        Ebrahimi, Chen, Khisti: "Minimum Entropy Coupling with Bottleneck", 2024.

    Example:
        >>> coupling = mec_b([0.4, 0.3, 0.2, 0.1], [0.5, 0.5], rate=1.0, exact=True)
        >>> round(coupling.information, 2), coupling.joint.sum(0).round(12).tolist()
        (1.0, [0.5, 0.5])
    """
    check_choice("compressor", compressor, Compressor)
    output = check_distribution("p_y", p_y)
    source = check_distribution("p_x", p_x)
    encoder = ebim(source, rate, close_gap=close_gap, exact=exact) if compressor == "ebim" else uniform_quantiser(source, rate)
    decoder = mec(encoder.columns, output, method)
    conditional = decoder.joint / decoder.rows[:, None]
    return BottleneckCoupling(encoder, decoder, Coupling(encoder.joint @ conditional))
