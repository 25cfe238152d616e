"""The modules that carry a compressed weight where a model had a dense layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.weights.base import CompressedWeight


class CompressedLinear(nn.Module):
    """``y = x W^T + b`` with a compressed ``W``; stands in for ``nn.Linear`` and for GPT-2's transposed ``Conv1D``.

    Args:
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or ``None``, kept dense.
    """

    def __init__(self, weight: CompressedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.weight(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class CompressedEmbedding(nn.Module):
    """A look-up table ``[num_embeddings, embedding_dim]`` that only ever decompresses the rows it needs.

    A tied head is a :class:`CompressedLinear` around the same ``weight`` object: one tensor, counted once.

    Args:
        weight: ``[num_embeddings, embedding_dim]``.
        padding_idx: Kept for those who ask; it has no effect on the look-up.
        dtype: Type of the looked-up rows; follows ``.to(dtype)`` of the model.
        scale: Multiplied onto the rows, as Gemma and BART do.
    """

    def __init__(
        self, weight: CompressedWeight, padding_idx: int | None = None, dtype: torch.dtype = torch.float32, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.weight = weight
        self.padding_idx = padding_idx
        self.output_dtype = dtype
        self.scale = scale

    def forward(self, index: Tensor) -> Tensor:
        rows = self.weight.rows(index).to(self.output_dtype)
        return rows if self.scale == 1.0 else rows * torch.tensor(self.scale, dtype=rows.dtype, device=rows.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # No stored tensor has the output type, so a probe tells what `model.to(bfloat16)` wants it to be.
        self.output_dtype = fn(torch.empty(0, dtype=self.output_dtype, device=self.weight.device)).dtype
        super()._apply(fn, recurse)
        return self

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class CompressedConv2d(nn.Module):
    """A convolution whose kernel, flattened to ``[out_channels, in_channels / groups * kh * kw]``, is compressed.

    Args:
        weight: The flattened kernel.
        conv: The layer it replaces; stride, padding, dilation and groups are taken from it.
    """

    def __init__(self, weight: CompressedWeight, conv: nn.Conv2d) -> None:
        super().__init__()
        expected = (conv.out_channels, conv.weight[0].numel())
        if weight.shape != expected:
            raise InvalidArgument(f"the convolution needs a weight of shape {expected}, got {weight.shape}")
        if conv.padding_mode != "zeros":
            raise InvalidArgument(f"padding_mode {conv.padding_mode!r} is not supported; only 'zeros' is")
        self.kernel_shape = tuple(conv.weight.shape)
        self.options: dict[str, Any] = {
            "stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups,
        }
        self.weight = weight
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.dense().reshape(self.kernel_shape).to(x.dtype)
        return F.conv2d(x, kernel, None if self.bias is None else self.bias.to(x.dtype), **self.options)


def matrix_of(layer: nn.Module) -> Tensor | None:
    """The dense matrix ``[out_features, in_features]`` that ``layer`` multiplies by, or ``None`` if it holds none.

    Knows ``nn.Linear``, ``nn.Embedding`` (rows are embeddings), ``nn.Conv2d`` (flattened) and the transposed ``Conv1D`` of GPT-2.
    """
    if isinstance(layer, (nn.Linear, nn.Embedding)):
        return layer.weight.detach()
    if isinstance(layer, nn.Conv2d):
        return layer.weight.detach().flatten(1)
    return _parameter(layer).detach().T.contiguous() if _is_conv1d(layer) else None


def compressed_layer(layer: nn.Module, weight: CompressedWeight) -> nn.Module:
    """The module that takes the place of ``layer``, holding ``weight``.

    Raises:
        InvalidArgument: If ``layer`` is of a type that holds no matrix or does more than multiply by it, or the shapes differ.
    """
    scale = _embedding_scale(layer)
    bases = (nn.Linear, nn.Embedding, nn.Conv2d)
    if scale is None and any(isinstance(layer, base) and type(layer).forward is not base.forward for base in bases):
        raise InvalidArgument(f"{type(layer).__name__} computes something of its own; a compressed weight in its place would lose that")
    if isinstance(layer, nn.Conv2d):
        return CompressedConv2d(weight, layer)
    shape = dense_shape(layer)
    if shape != weight.shape:
        raise InvalidArgument(f"a layer of shape {shape} cannot hold a weight of shape {weight.shape}")
    if isinstance(layer, nn.Embedding):
        return CompressedEmbedding(weight, layer.padding_idx, layer.weight.dtype, 1.0 if scale is None else scale)
    return CompressedLinear(weight, getattr(layer, "bias", None))


def _is_conv1d(layer: nn.Module) -> bool:
    # By name: importing the class would import transformers, which a model without it has no use for.
    return type(layer).__name__ == "Conv1D"


def _parameter(layer: nn.Module) -> nn.Parameter:
    return cast("nn.Parameter", layer.weight)


def _embedding_scale(layer: nn.Module) -> float | None:
    """The factor of a scaled word embedding (Gemma, BART), ``None`` for what is none."""
    scale = getattr(layer, "scalar_embed_scale", getattr(layer, "embed_scale", None))
    return float(scale) if isinstance(layer, nn.Embedding) and isinstance(scale, (int, float, Tensor)) else None


def dense_shape(layer: nn.Module) -> tuple[int, int]:
    """``(out_features, in_features)`` of a layer known to :func:`matrix_of`, without touching its values."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.weight[0].numel()
    if isinstance(layer, (nn.Linear, nn.Embedding)):
        return layer.weight.shape[0], layer.weight.shape[1]
    if _is_conv1d(layer):
        in_features, out_features = _parameter(layer).shape
        return out_features, in_features
    raise InvalidArgument(f"{type(layer).__name__} holds no matrix that tersor can compress")


def set_matrix(layer: nn.Module, matrix: Tensor) -> None:
    """Give the dense ``layer`` other values, the inverse of :func:`matrix_of`; the tensor is not copied where its layout fits.

    Args:
        layer: A dense layer known to :func:`matrix_of`.
        matrix: ``[out_features, in_features]``; converted to the type of the layer.

    Raises:
        InvalidArgument: If the shapes differ.
    """
    shape = dense_shape(layer)
    if tuple(matrix.shape) != shape:
        raise InvalidArgument(f"a layer of shape {shape} cannot take a matrix of shape {tuple(matrix.shape)}")
    parameter = _parameter(layer)
    values = matrix.T if _is_conv1d(layer) else matrix.reshape(parameter.shape)
    parameter.data = values.to(parameter.dtype)


def bias_of(layer: nn.Module) -> Tensor | None:
    """The vector that a dense ``layer`` known to :func:`matrix_of` adds to its product, or ``None`` if it adds none."""
    bias = getattr(layer, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def set_offset(layer: nn.Module, offset: Tensor | None, bias: Tensor | None) -> None:
    """Let the dense ``layer`` add the :attr:`CompressedWeight.offset` of the weight whose matrix :func:`set_matrix` gave it.

    Args:
        layer: A dense layer known to :func:`matrix_of`.
        offset: ``[out_features]``, or ``None`` for no offset, which undoes an earlier one.
        bias: The layer's own, which :func:`bias_of` gave before the first offset; kept beside the offset.

    Raises:
        InvalidArgument: If the layer is a look-up table, which multiplies by nothing, or the offset has another length.
    """
    if offset is None:
        total = bias
    elif isinstance(layer, nn.Embedding) or tuple(offset.shape) != dense_shape(layer)[:1]:
        raise InvalidArgument(f"{type(layer).__name__} of shape {dense_shape(layer)} cannot add an offset of shape {tuple(offset.shape)}")
    else:
        parameter = _parameter(layer)
        own = offset.to(parameter.device, torch.float32)
        total = (own if bias is None else own + bias.float()).to(parameter.dtype)
    if not isinstance(layer, nn.Embedding):
        holder: Any = layer
        holder.bias = None if total is None else nn.Parameter(total, requires_grad=False)
