"""Cut masked parts out of a decoder: smaller matrices, the same outputs, and a configuration that says so."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.training.decoder import Decoder, Masks, Shape


@torch.no_grad()
def slice_decoder(model: nn.Module, masks: Masks) -> nn.Module:
    """Multiply ``masks`` into the weights of ``model`` and remove what is multiplied by zero, in place.

    The result computes what the model does with the masks applied, in less time. An RMS norm divides by the width, so that of the smaller
    width needs its weight and its epsilon changed; a mask on the stream that is neither 0 nor 1 would also reach a tied output head through
    the embedding table, so the last norm takes it back.

    Args:
        model: A causal language model of transformers, see :class:`Decoder` for the types.
        masks: Of the sizes of the model; at least one head, one unit and one width stay everywhere.

    Returns:
        ``model``, of its own class. Its configuration has the new sizes if all layers are alike; if they are not, no
        configuration can say it and the model works in memory only.

    Raises:
        InvalidArgument: If the model is of another type, the masks do not fit or remove everything somewhere.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, **sizes))
        >>> masks = Masks(torch.tensor([[1.0, 0.0]]), torch.ones(1, 24), torch.arange(16) < 12)
        >>> slice_decoder(model, masks).config.hidden_size
        12

    Reference:
        Guo, Xu, Zhang, Yang: "Compresso: Structured Pruning with Collaborative Prompting Learns Compact Large Language Models", 2023.
    """
    decoder = Decoder(model)
    check_masks(decoder, masks)
    shape = masks.shape
    stretch = math.sqrt(decoder.shape.width / shape.width)
    config = _configuration(decoder, shape, stretch)
    width, backbone = masks.width.float(), decoder.backbone
    kept = width.nonzero().flatten()
    for layer, groups, units in zip(decoder.layers, masks.groups.float(), masks.units.float(), strict=True):
        _slice_attention(layer.self_attn, groups, width, decoder, stretch)
        inner = units.nonzero().flatten()
        for reader in (layer.mlp.gate_proj, layer.mlp.up_proj):
            _cut(reader, inner, kept)
        _scale(layer.mlp.down_proj, rows=width, columns=units)
        _cut(layer.mlp.down_proj, kept, inner)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            _slice_norm(norm, kept, stretch)
    table = backbone.embed_tokens
    table.weight = _like(table.weight, (table.weight * width)[:, kept])
    table.embedding_dim = kept.numel()
    _slice_norm(backbone.norm, kept, stretch / width[kept] if decoder.tied else stretch)
    if decoder.tied:
        decoder.head.weight = table.weight
        decoder.head.in_features = kept.numel()
    else:
        _cut(decoder.head, None, kept)
    for norm in _norms(decoder):
        norm.variance_epsilon *= stretch**2
    for part in model.modules():
        if getattr(part, "config", None) is decoder.config:
            part.config = config
    return model


def check_masks(decoder: Decoder, masks: Masks) -> None:
    """Refuse masks that do not fit ``decoder``.

    Raises:
        InvalidArgument: If a mask has another shape, holds NaN or Inf or removes everything somewhere, or the model is ragged already.
    """
    known = {"groups": (len(decoder.layers), decoder.shape.groups[0]), "units": (len(decoder.layers), decoder.shape.units[0])}
    if not decoder.shape.uniform:
        raise InvalidArgument("the layers of the model have been sliced to different sizes already; slice the original")
    for name, size in (known | {"width": (decoder.shape.width,)}).items():
        mask: Tensor = getattr(masks, name)
        if tuple(mask.shape) != size:
            raise InvalidArgument(f"the mask {name} has shape {tuple(mask.shape)}, the model needs {size}")
        if not torch.isfinite(mask.float()).all():
            raise InvalidArgument(f"the mask {name} holds NaN or Inf; give finite numbers")
        if not (mask != 0).any(-1).all():
            raise InvalidArgument(f"the mask {name} removes everything of a layer; keep at least one")


def _slice_attention(attention: Any, groups: Tensor, width: Tensor, decoder: Decoder, stretch: float) -> None:
    kept = width.nonzero().flatten()
    heads = groups.nonzero().flatten()
    keys, queries = (_spread(heads, decoder.head_dim * count) for count in (1, decoder.queries))
    for reader, rows in ((attention.q_proj, queries), (attention.k_proj, keys), (attention.v_proj, keys)):
        _cut(reader, rows, kept)
    _scale(attention.o_proj, rows=width, columns=groups.repeat_interleave(decoder.queries * decoder.head_dim))
    _cut(attention.o_proj, kept, queries)
    if hasattr(attention, "q_norm"):
        # These norms of a head keep their width but get the new epsilon, as the configuration has only one for all.
        for reader in (attention.q_proj, attention.k_proj):
            reader.weight.mul_(stretch)
            if reader.bias is not None:
                reader.bias.mul_(stretch)


def _spread(heads: Tensor, size: int) -> Tensor:
    """Rows that belong to ``heads`` of ``size`` rows each."""
    return (heads[:, None] * size + torch.arange(size)).flatten()


def _scale(layer: nn.Linear, rows: Tensor, columns: Tensor) -> None:
    layer.weight = _like(layer.weight, layer.weight * rows[:, None] * columns)
    if layer.bias is not None:
        layer.bias = _like(layer.bias, layer.bias * rows)


def _cut(layer: nn.Linear, rows: Tensor | None, columns: Tensor) -> None:
    weight = layer.weight[:, columns]
    layer.weight = _like(layer.weight, weight if rows is None else weight[rows])
    if layer.bias is not None and rows is not None:
        layer.bias = _like(layer.bias, layer.bias[rows])
    layer.out_features, layer.in_features = layer.weight.shape


def _slice_norm(norm: Any, kept: Tensor, factor: float | Tensor) -> None:
    norm.weight = _like(norm.weight, norm.weight[kept] * factor)


def _like(old: Tensor, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new.detach().to(old.dtype).contiguous(), requires_grad=old.requires_grad)


def _norms(decoder: Decoder) -> list[Any]:
    return [part for part in decoder.model.modules() if hasattr(part, "variance_epsilon")]


def _configuration(decoder: Decoder, shape: Shape, stretch: float) -> Any:
    """That of the model with the new sizes."""
    old: Any = decoder.config
    sizes: dict[str, Any] = {"hidden_size": shape.width, "head_dim": decoder.head_dim, "rms_norm_eps": old.rms_norm_eps * stretch**2}
    if shape.uniform:
        sizes |= {
            "num_key_value_heads": shape.groups[0], "num_attention_heads": shape.groups[0] * decoder.queries,
            "intermediate_size": shape.units[0],
        }  # fmt: skip
    else:
        sizes |= {"kept_key_value_heads": list(shape.groups), "kept_intermediate_sizes": list(shape.units)}
    try:
        new = type(old).from_dict(old.to_dict() | sizes)
    except ValueError as error:
        raise InvalidArgument(f"transformers takes no {type(old).__name__} of these sizes ({error})") from None
    new._attn_implementation = old._attn_implementation
    return new
