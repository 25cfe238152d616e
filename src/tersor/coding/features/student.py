"""A network cut in two by an entropy-coded bottleneck: the device sends bytes, the server goes on from them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tersor.coding.entropy.factorised import EntropyBottleneck
from tersor.coding.errors import CorruptStream
from tersor.coding.features.layers import FeatureDecoder, FeatureEncoder, draw_weights
from tersor.coding.features.resnet import split_model
from tersor.errors import InvalidArgument

MAIN = "main"
# Images that are decoded at once: what a file can make the decoder hold does not depend on what the file says.
_AT_ONCE = 64
_DECODER_SEED = 1 << 16
# Latents begin this many steps of the quantiser wide: they would need hundreds of updates to rise above the noise that stands for rounding.
_SPREAD = 4.0
# The features begin as this level nearly everywhere, not as noise.
_LEVEL, _FAINT = 0.5, 0.3


class EntropicStudent(nn.Module):
    """A light encoder, a learned prior and a decoder in place of the first stages of a trained network.

    Train it with :func:`fit_stage1` and :func:`fit_stage2`. What the device needs is ``encoder`` and ``prior``; what the server needs is
    ``prior``, ``decoder`` and a tail. Several tails may read the same bytes.

    Args:
        teacher: A sequence of named stages such as :func:`load_teacher` gives; what follows ``at`` is copied.
        channels: Of the latent.
        at: The last stage that the bottleneck replaces.
        image: Height and width of the images.
        width: Of the encoder's hidden layers, see :class:`FeatureEncoder`.
        seed: Of the encoder, prior and decoder.

    Raises:
        InvalidArgument: If the teacher cannot be cut there, its features are not of the size of the images, or sizes are out of range.

    Example:
        >>> import torch
        >>> from tersor.coding.features import EntropicStudent, cifar_resnet
        >>> student = EntropicStudent(cifar_resnet(8), channels=4).eval()
        >>> student.prior.update()
        >>> streams = student.encode(torch.zeros(2, 3, 32, 32))
        >>> student.decode(streams).shape
        torch.Size([2, 10])

    Reference:
        Matsubara, Yang, Levorato, Mandt: "Supervised compression for resource-constrained edge computing systems", 2022.
    """

    def __init__(
        self, teacher: nn.Sequential, channels: int = 8, *, at: str = "layer1", image: tuple[int, int] = (32, 32), width: int | None = None,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        head, tail = split_model(teacher, at)
        if channels < 1 or min(image) < 2 or any(size % 2 for size in image):
            raise InvalidArgument(f"a student needs a channel or more and images of even sizes, got {channels} and {image}")
        with torch.no_grad():
            features = copy.deepcopy(head).eval()(torch.zeros(1, 3, *image))
        if features.shape[2:] != image:
            found = tuple(features.shape[2:])
            raise InvalidArgument(f"the features after {at!r} are {found} for images of {image}; cut at a stage that keeps the size")
        self.image, self.at = image, at
        self.encoder = FeatureEncoder(channels, width)
        self.prior = EntropyBottleneck(channels, seed=seed)
        self.decoder = FeatureDecoder(channels, features.shape[1])
        draw_weights(self.encoder, seed)
        draw_weights(self.decoder, seed + _DECODER_SEED)
        with torch.no_grad():
            code, first, last = self.encoder[-1], self.decoder[0], self.decoder[-2]
            assert isinstance(code, nn.Conv2d)
            assert isinstance(first, nn.Conv2d)
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            code.weight.mul_(_SPREAD)
            first.weight.div_(_SPREAD)
            last.weight.mul_(_FAINT)
            last.bias.fill_(_LEVEL)
        self.tails = nn.ModuleDict({MAIN: copy.deepcopy(tail)})
        self.requires_grad_(True)

    def train(self, mode: bool = True) -> EntropicStudent:
        """As of every module, but the tails stay in evaluation mode: their normalisation goes on with the teacher's statistics."""
        super().train(mode)
        self.tails.eval()
        return self

    def tail(self, name: str = MAIN) -> nn.Sequential:
        """The tail called ``name``.

        Raises:
            InvalidArgument: If there is none.
        """
        if name not in self.tails:
            raise InvalidArgument(f"the student has no tail {name!r}, only {', '.join(map(repr, self.tails))}")
        found = self.tails[name]
        assert isinstance(found, nn.Sequential)
        return found

    def attach_tail(self, name: str, tail: nn.Sequential) -> nn.Sequential:
        """Let another network read the decoded features; train it by :func:`fit_stage2`, which leaves the bytes alone.

        Raises:
            InvalidArgument: If the name is taken.
        """
        if name in self.tails:
            raise InvalidArgument(f"the student has a tail {name!r} already; choose another name")
        self.tails[name] = tail.eval()
        return tail

    def latent(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The latent of images ``[n, 3, h, w]``, with noise while training and rounded otherwise, and its likelihoods."""
        quantised, likelihood = self.prior(self.encoder(x), generator)
        return quantised, likelihood

    def forward(self, x: Tensor, tail: str = MAIN) -> Tensor:
        """Logits of images ``[n, 3, h, w]``, normalised as for the teacher, as the server would find them, without coding."""
        logits: Tensor = self.tail(tail)(self.decoder(self.latent(x)[0]))
        return logits

    @torch.no_grad()
    def encode(self, x: Tensor) -> list[bytes]:
        """One stream an image, each of which can be decoded alone.

        Args:
            x: ``[n, 3, h, w]``, of the size that the student was made for.

        Raises:
            InvalidArgument: If it is of another size, holds NaN or Inf, or the prior has no tables yet.
        """
        if x.ndim != 4 or x.shape[1] != 3 or tuple(x.shape[2:]) != self.image:
            raise InvalidArgument(f"the student takes images [n, 3, {self.image[0]}, {self.image[1]}], got {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise InvalidArgument("the images hold NaN or Inf")
        return [self.prior.compress(self.encoder(part[None]), "reference") for part in x]

    @torch.no_grad()
    def read(self, streams: Sequence[bytes]) -> Tensor:
        """The rounded latents ``[n, channels, h / 2, w / 2]`` of ``streams``: integers plus the medians, the same on every machine.

        Raises:
            CorruptStream: If one is damaged in a way that shows; the container's checksum tells of the others.
        """
        shape = (1, self.prior.channels, self.image[0] // 2, self.image[1] // 2)
        latents = [self.prior.decompress(stream, shape, "reference") for stream in streams]
        return torch.cat(latents) if latents else torch.zeros(0, *shape[1:])

    @torch.no_grad()
    def decode(self, streams: Sequence[bytes], tail: str = MAIN) -> Tensor:
        """Logits ``[n, classes]`` from what :meth:`encode` made.

        Raises:
            CorruptStream: If a stream is damaged.
            InvalidArgument: If there is no such tail, or no stream.
        """
        if not streams:
            raise InvalidArgument("there is nothing to decode: no stream is given")
        network = nn.Sequential(self.decoder, self.tail(tail))
        parts = [network(self.read(streams[begin : begin + _AT_ONCE])) for begin in range(0, len(streams), _AT_ONCE)]
        logits = torch.cat(parts)
        if not bool(torch.isfinite(logits).all()):
            raise CorruptStream("a stream holds values that no image has: it is damaged")
        return logits
