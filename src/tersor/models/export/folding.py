"""What other runtimes have no place for, moved to where they have one: column scales to the layer before, offsets to the bias."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.models.export.grids import with_scaled_rows, without_input_scale
from tersor.models.model import Model
from tersor.models.structure import find_blocks
from tersor.weights.base import CompressedWeight
from tersor.weights.biased import BiasedWeight
from tersor.weights.dense import DenseWeight
from tersor.weights.modules import CompressedLinear, matrix_of, set_matrix
from tersor.weights.quantized import QuantizedWeight

_GATED = ("llama", "mistral", "qwen2", "qwen3")
_GATED_NORMS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_OTHER_NORMS = {"gpt2": {"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)}}
_RowScale = Callable[[Model, Tensor], Tensor | None]


def fold_input_scales(model: Model) -> Model:
    """A model that computes the same, in which a column scale is part of the norm or of the linear layer that makes those columns.

    Scales stay where they are if the readers of one norm disagree about them, or if something that is not linear lies between.
    The given model is not changed, and returned itself if there is nothing to fold.
    """
    if not any(_input_scale(weight) is not None for weight in model.weights().values()):
        return model
    gated = model.config.model_type in _GATED
    norms = _GATED_NORMS if gated else _OTHER_NORMS.get(model.config.model_type, {})
    twin = model.copy()
    blocks = find_blocks(twin)
    for index in range(len(blocks)):
        prefix = f"{blocks.name}.{index}"
        for norm, readers in norms.items():
            _fold_into_norm(twin, twin.module.get_submodule(f"{prefix}.{norm}"), [f"{prefix}.{reader}" for reader in readers])
        if gated:
            _fold_into_rows(twin, f"{prefix}.mlp.up_proj", f"{prefix}.mlp.down_proj", lambda _, scale: scale)
            _fold_into_rows(twin, f"{prefix}.self_attn.v_proj", f"{prefix}.self_attn.o_proj", _one_scale_per_value)
    return twin


def fold_offsets(model: Model) -> Model:
    """A model that computes the same, in which what a weight adds to its product is part of the bias of its layer.

    The given model is not changed, and returned itself if there is nothing to fold.

    Raises:
        InvalidArgument: If the architecture gives such a layer no bias; the layer is named.
    """
    # By modules, not by weights(): of a tied table it is the head that adds.
    layers = {name: layer for name, layer in model.module.named_modules() if isinstance(layer, CompressedLinear)}
    offsets = {name: layer.weight.offset for name, layer in layers.items()}
    if all(offset is None for offset in offsets.values()):
        return model
    twin = model.copy()
    for name, offset in offsets.items():
        layer = twin.module.get_submodule(name)
        if offset is None or not isinstance(layer, CompressedLinear):
            continue
        if layer.bias is None:
            raise InvalidArgument(
                f"layer {name} brings a bias of its own, for which {model.architecture} has no place in other formats; "
                "compress it with center=False"
            )
        total = nn.Parameter(layer.bias + offset.to(layer.bias.dtype), requires_grad=False)
        twin.replace(name, _without_offset(layer.weight))
        twin.module.get_submodule(name).bias = total
    return twin


def _without_offset(weight: CompressedWeight) -> CompressedWeight:
    while isinstance(weight, BiasedWeight):
        weight = weight.body
    # Inside of other weights it cannot be taken out, and no format of other runtimes knows such weights: they are stored dense.
    return weight if weight.offset is None else DenseWeight(weight.dense())


def _input_scale(weight: object) -> Tensor | None:
    return weight.input_scale if isinstance(weight, QuantizedWeight) else None


def _fold_into_norm(twin: Model, norm: nn.Module, readers: list[str]) -> None:
    weights = twin.weights()
    scales = [_input_scale(weights.get(name)) for name in readers]
    first = scales[0]
    if first is None or not all(scale is not None and torch.equal(scale, first) for scale in scales):
        return
    for parameter in ("weight", "bias"):
        if isinstance(values := getattr(norm, parameter, None), Tensor):
            setattr(norm, parameter, nn.Parameter(values * first.to(values.dtype), requires_grad=False))
    for name in readers:
        weight = weights[name]
        assert isinstance(weight, QuantizedWeight)
        twin.replace(name, without_input_scale(weight))


def _fold_into_rows(twin: Model, maker: str, reader: str, row_scale: _RowScale) -> None:
    weights = twin.weights()
    weight = weights.get(reader)
    scale = _input_scale(weight)
    if scale is None or not isinstance(weight, QuantizedWeight):
        return
    rows = row_scale(twin, scale.float())
    made_by = weights.get(maker)
    if rows is None or not (made_by is None or isinstance(made_by, QuantizedWeight)):
        return
    layer = twin.linears()[maker]
    if isinstance(made_by, QuantizedWeight):
        twin.replace(maker, with_scaled_rows(made_by, rows))
    else:
        matrix = matrix_of(layer)
        assert matrix is not None
        set_matrix(layer, matrix * rows[:, None])
    layer = twin.linears()[maker]
    if isinstance(layer, (nn.Linear, CompressedLinear)) and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias * rows.to(layer.bias.dtype), requires_grad=False)
    twin.replace(reader, without_input_scale(weight))


def _one_scale_per_value(twin: Model, scale: Tensor) -> Tensor | None:
    """Query heads that share a value head must agree about its scale."""
    heads = twin.config.num_attention_heads
    shared = scale.reshape(getattr(twin.config, "num_key_value_heads", heads), -1, scale.numel() // heads)
    return shared[:, 0].reshape(-1) if bool((shared == shared[:, :1]).all()) else None
