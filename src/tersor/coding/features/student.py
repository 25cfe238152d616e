"""A network cut in two by an entropy-coded bottleneck: the device sends bytes, the server goes on from them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.coding.entropy.factorised import EntropyBottleneck
from tersor.coding.errors import CorruptStream
from tersor.coding.features.layers import BLOCK, BlockDecoder, FeatureDecoder, FeatureEncoder, draw_weights
from tersor.coding.features.resnet import split_model
from tersor.errors import InvalidArgument

MAIN = "main"
Transform = Literal["convolutions", "blocks"]
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
        transform: ``"convolutions"``: encoder and decoder of the paper, drawn from the seed. ``"blocks"``: one linear map of blocks of
            8 x 8 pixels, back to a picture on the server and through a copy of the replaced stages; :meth:`start_from` sets it to principal
            components, which is where short trainings begin best.
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
        transform: Transform = "convolutions", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        head, tail = split_model(teacher, at)
        self.stride = {"convolutions": 2, "blocks": BLOCK}.get(transform, 0)
        if not self.stride:
            raise InvalidArgument(f"transform must be one of {', '.join(get_args(Transform))}, got {transform!r}")
        if channels < 1 or min(image) < self.stride or any(size % self.stride for size in image):
            raise InvalidArgument(f"a student needs a channel or more and sides of {self.stride} n pixels, got {channels} and {image}")
        with torch.no_grad():
            features = copy.deepcopy(head).eval()(torch.zeros(1, 3, *image))
        if features.shape[2:] != image:
            found = tuple(features.shape[2:])
            raise InvalidArgument(f"features after {at!r} are {found} for images of {image}; cut at a stage that keeps the size")
        self.image, self.at = image, at
        self.encoder: nn.Module
        self.decoder: nn.Module
        self.prior = EntropyBottleneck(channels, seed=seed)
        if transform == "blocks":
            self.encoder = nn.Conv2d(3, channels, BLOCK, BLOCK)
            self.decoder = BlockDecoder(channels, copy.deepcopy(head))
            draw_weights(self.encoder, seed)
            draw_weights(self.decoder[0], seed + _DECODER_SEED)
        else:
            self._draw(channels, width, features.shape[1], seed)
        self.tails = nn.ModuleDict({MAIN: copy.deepcopy(tail)})
        self.requires_grad_(True)

    def _draw(self, channels: int, width: int | None, target: int, seed: int) -> None:
        self.encoder, self.decoder = FeatureEncoder(channels, width), FeatureDecoder(channels, target)
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

    @torch.no_grad()
    def start_from(self, x: Tensor, step: float) -> None:
        """Set a student of ``"blocks"`` to the principal components of the blocks of images, and its prior to their spreads.

        Args:
            x: Images ``[n, 3, h, w]``.
            step: Of the quantiser, in the unit of the images.

        Raises:
            InvalidArgument: If the transform is another, the step is not positive, or there are more channels than pixels in a block.
        """
        code, channels = self.encoder, self.prior.channels
        if not isinstance(code, nn.Conv2d) or not isinstance(self.decoder, BlockDecoder):
            raise InvalidArgument("only a student of transform 'blocks' starts from principal components")
        most = code.weight[0].numel()
        if not step > 0 or channels > most:
            raise InvalidArgument(f"a step must be positive and blocks have {most} components, got {step} and {channels}")
        back = self.decoder[0]
        assert isinstance(back, nn.ConvTranspose2d)
        assert back.bias is not None
        assert code.bias is not None
        level = x.mean((0, 2, 3))
        blocks = functional.unfold(x - level[:, None, None], BLOCK, stride=BLOCK).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(blocks.T @ blocks / len(blocks))
        components = vectors.flip(1)[:, :channels].T.float().reshape(channels, 3, BLOCK, BLOCK)
        code.weight.copy_(components / step)
        code.bias.copy_(-(components * level[:, None, None]).sum((1, 2, 3)) / step)
        back.weight.copy_(components * step)
        back.bias.copy_(level)
        spreads = values.flip(0)[:channels].clamp(min=0).sqrt().float() / step
        # The rounded latent is spread by a twelfth more, and no distribution is narrower than that.
        self.prior.start_from((spreads.square() + 1 / 12).sqrt())

    def train(self, mode: bool = True) -> EntropicStudent:
        """As of every module, but what is copied stays in evaluation mode: its normalisation goes on with the teacher's statistics."""
        super().train(mode)
        self.tails.eval()
        self.decoder.eval()
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
        """The rounded latents ``[n, channels, h / stride, w / stride]`` of ``streams``, the same on every machine.

        Raises:
            CorruptStream: If one is damaged in a way that shows; the container's checksum tells of the others.
        """
        shape = (1, self.prior.channels, self.image[0] // self.stride, self.image[1] // self.stride)
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
