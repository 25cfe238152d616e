"""The wavelet packet transform of WaLLoC: biorthogonal 9/7 by lifting on a periodic signal, every band split again at every level."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.errors import InvalidArgument

# Factors of the lifting steps of the 9/7 pair, in turn on the odd and the even samples; undone in reverse order they cancel exactly.
_STEPS = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_GAIN = 1.149604398860241
LEVELS = range(1, 11)


class WaveletPacket:
    """``levels`` of the 9/7 wavelet on all bands, so that a signal becomes channels of equal size; use it where a network follows.

    The transform is invertible and close to orthogonal, not orthogonal: squared errors before and after it differ by some percent.

    Args:
        levels: Each halves every side and multiplies the channels by 2 to the power of ``ndim``.
        ndim: 1 for sounds, 2 for pictures.

    Raises:
        InvalidArgument: If either is out of range.

    Example:
        >>> import torch
        >>> packet = WaveletPacket(3, 2)
        >>> picture = torch.linspace(0, 1, 3 * 64 * 48).reshape(1, 3, 64, 48)
        >>> bands = packet.forward(picture)
        >>> tuple(bands.shape), bool((packet.inverse(bands) - picture).abs().max() < 1e-5)
        ((1, 192, 8, 6), True)

    Reference:
        Cohen, Daubechies, Feauveau: "Biorthogonal bases of compactly supported wavelets", 1992; Daubechies, Sweldens: "Factoring wavelet
        transforms into lifting steps", 1998.
    """

    def __init__(self, levels: int, ndim: int) -> None:
        if levels not in LEVELS or ndim not in (1, 2):
            raise InvalidArgument(f"levels must be {LEVELS.start} to {LEVELS.stop - 1} and ndim 1 or 2, got {levels} and {ndim}")
        self.levels, self.ndim = levels, ndim

    @property
    def stride(self) -> int:
        """What every side must be a multiple of, and is divided by."""
        return 1 << self.levels

    @property
    def gain(self) -> int:
        """What the channels are multiplied by."""
        return 1 << (self.levels * self.ndim)

    def forward(self, signal: Tensor) -> Tensor:
        """Bands of ``signal`` ``[batch, channels, ...]``: ``[batch, channels * gain, ...]``, the bands of a channel beside one another.

        Raises:
            InvalidArgument: If the shape has another number of sides, or one that the stride does not divide.
        """
        if signal.ndim != self.ndim + 2 or any(side % self.stride or not side for side in signal.shape[2:]):
            raise InvalidArgument(
                f"the packet transform takes [batch, channels] and {self.ndim} sides, multiples of {self.stride}, got {tuple(signal.shape)}"
            )
        for _ in range(self.levels):
            bands = list(_split(signal, -1))
            if self.ndim == 2:
                # LL, LH, HL, HH: the first letter is the band along the last axis.
                bands = [half for part in bands for half in _split(part, -2)]
            signal = torch.stack(bands, 2).flatten(1, 2)
        return signal

    def inverse(self, bands: Tensor) -> Tensor:
        """The signal that :meth:`forward` made ``bands`` of, up to rounding."""
        if bands.ndim != self.ndim + 2 or bands.shape[1] % self.gain:
            raise InvalidArgument(f"bands have [batch, a multiple of {self.gain} channels] and {self.ndim} sides, got {tuple(bands.shape)}")
        for _ in range(self.levels):
            parts = list(bands.unflatten(1, (-1, 1 << self.ndim)).unbind(2))
            if self.ndim == 2:
                parts = [_merge(parts[0], parts[1], -2), _merge(parts[2], parts[3], -2)]
            bands = _merge(parts[0], parts[1], -1)
        return bands


def _split(signal: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Low and high half along ``axis``."""
    even, odd = signal.unflatten(axis, (-1, 2)).unbind(axis)
    for index, factor in enumerate(_STEPS):
        if index % 2:
            even = even + factor * (odd + odd.roll(1, axis))
        else:
            odd = odd + factor * (even + even.roll(-1, axis))
    return even * _GAIN, odd / -_GAIN


def _merge(low: Tensor, high: Tensor, axis: int) -> Tensor:
    even, odd = low / _GAIN, high * -_GAIN
    for index, factor in reversed(list(enumerate(_STEPS))):
        if index % 2:
            even = even - factor * (odd + odd.roll(1, axis))
        else:
            odd = odd - factor * (even + even.roll(-1, axis))
    return torch.stack((even, odd), axis).flatten(axis - 1, axis)
