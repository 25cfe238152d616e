"""Trained networks on disk: what each layer became, its tensors, and ONNX. Any module will do, not only language models."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import CorruptFile, InvalidArgument, TersorError
from tersor.files import write_atomically
from tersor.training.bypass import BypassConv2d, GatedConv2d
from tersor.training.layers import put_layer
from tersor.training.one_way import PerKernelConv
from tersor.training.ordered import OrderedLayer
from tersor.training.quest import Quantizer, RoundedInputs
from tersor.training.shared_layer import SharedLayer
from tersor.weights import (
    CompressedConv2d,
    CompressedLinear,
    DenseWeight,
    RotatedWeight,
    SparseWeight,
    check_state,
    compressed_layer,
    matrix_of,
    weight_from_config,
)

_FORMAT = "tersor module 1"
# What methods put into a model while it is trained.
_UNFINISHED = (OrderedLayer, SharedLayer, GatedConv2d)
# What a layer of each type is made of: enough to build it anew where the fresh model has another.
_FIELDS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    nn.Conv3d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    PerKernelConv: ("in_channels", "out_channels", "kernel_size", "rank", "stride", "padding", "dilation"),
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.Identity: (),
    BypassConv2d: (
        "in_channels", "out_channels", "filters", "kernel_size", "stride", "padding", "dilation", "biased", "normed", "eps", "momentum",
    ),
}  # fmt: skip
_TYPES = {kind.__name__: kind for kind in _FIELDS}


def to_sparse(model: nn.Module, *, least: float = 0.5) -> nn.Module:
    """Put :class:`SparseWeight` into every linear layer and convolution of which at least ``least`` is zero, exactly as it is.

    Args:
        model: Changed in place; what :meth:`Compression.finalize` returned.
        least: Fraction of zeros, at least 0 and at most 1.

    Returns:
        The model.

    Raises:
        InvalidArgument: If ``least`` is out of range.
    """
    if not 0 <= least <= 1:
        raise InvalidArgument(f"least must be a fraction from 0 to 1, got {least!r}")
    for name, layer in list(model.named_modules()):
        if type(layer) not in (nn.Linear, nn.Conv2d):
            continue
        matrix = matrix_of(layer)
        assert matrix is not None
        mask = matrix != 0
        if 1 - float(mask.float().mean()) >= least and bool(mask.any()):
            put_layer(model, name, compressed_layer(layer, SparseWeight.from_dense(matrix, mask, matrix.dtype)))
    return model


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all distinct tensors that :func:`save_module` writes."""
    seen = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in model.state_dict().values() if tensor.numel()}
    return sum(seen.values())


def save_module(model: nn.Module, path: str | Path) -> int:
    """Write ``model`` to one file that :func:`load_module` puts back into a fresh one.

    Args:
        model: Plain or compressed layers; no parametrization is left in it.
        path: A ``.safetensors`` file, written in one move.

    Returns:
        Bytes of the file.

    Raises:
        InvalidArgument: If a method of training compression is still in the model.
        TersorError: If the file cannot be written.
    """
    from safetensors.torch import save

    if any("parametrizations" in key for key in model.state_dict()) or any(isinstance(layer, _UNFINISHED) for layer in model.modules()):
        raise InvalidArgument("the model is still being compressed; call finalize() before saving it")
    layers = {name: entry for name, layer in model.named_modules() if (entry := _describe(layer)) is not None}
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    for key, tensor in model.state_dict().items():
        source = first.setdefault((tensor.data_ptr(), tuple(tensor.shape)), key) if tensor.numel() else key
        if source == key:
            tensors[key] = tensor.detach().contiguous()
        else:
            ties[key] = source
    data = save(tensors, {"format": _FORMAT, "layers": json.dumps(layers), "ties": json.dumps(ties)})
    write_atomically(Path(path), data)
    return len(data)


def load_module(model: nn.Module, path: str | Path) -> nn.Module:
    """Give a freshly built ``model`` the layers and values that :func:`save_module` wrote.

    Args:
        model: What the original was made of before it was compressed; changed in place. Its values do not matter.
        path: The file.

    Returns:
        The model.

    Raises:
        CorruptFile: If the file is damaged, or its layers do not fit the model.
    """
    path = Path(path)
    layers, ties, tensors = _read(path)
    try:
        tensors |= {key: tensors[source] for key, source in ties.items()}
        for name in sorted(layers, key=lambda name: (name.count("."), name)):
            _restore(model, name, layers[name], tensors)
        model.load_state_dict(tensors, assign=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptFile(f"{path} does not fit {type(model).__name__}: {str(error).splitlines()[0]}") from None
    for key, source in ties.items():
        owner, _, leaf = key.rpartition(".")
        setattr(model.get_submodule(owner), leaf, _tensor(model, source))
    return model


def require_onnx() -> None:
    """Refuse before any work what is to end as an ONNX file.

    Raises:
        InvalidArgument: If onnx, onnxscript, which the exporter needs, or onnxruntime is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise InvalidArgument(f"{package} is not installed; pip install 'tersor[training]'")


def export_onnx(model: nn.Module, example_inputs: tuple[Any, ...], path: str | Path) -> int:
    """Write ``model`` as ONNX with a batch of any size, and check that onnxruntime computes the same.

    Args:
        model: Of dense layers, or of compressed ones, which are written dense: ONNX has no packed form of them.
        example_inputs: Tensors of one forward pass; the first dimension of each is the batch.
        path: The ``.onnx`` file.

    Returns:
        Bytes of the file.

    Raises:
        InvalidArgument: If onnx, onnxscript or onnxruntime is missing, or ``example_inputs`` do not run through the model.
        TersorError: If the model has no ONNX form, or what onnxruntime computes is not the same within 1e-3 relative.
    """
    require_onnx()
    from copy import deepcopy

    import onnx
    import onnxruntime

    dense = _densified(deepcopy(model)).eval()
    batch = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        try:
            expected = dense(*example_inputs)
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InvalidArgument(f"example_inputs do not run through the model ({reason}); pass those of a forward pass") from None
        try:
            program = torch.onnx.export(
                dense, example_inputs, dynamo=True, dynamic_shapes=tuple({0: batch} for _ in example_inputs), verbose=False, optimize=True,
            )  # fmt: skip
        except Exception as error:  # the exporter raises whatever its passes meet
            raise TersorError(f"the model has no ONNX form: {str(error).splitlines()[0]}") from None
    assert program is not None
    data = program.model_proto.SerializeToString()
    onnx.checker.check_model(onnx.load_model_from_string(data))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    got = torch.from_numpy(session.run(None, {name: value.numpy() for name, value in zip(names, example_inputs, strict=True)})[0])
    if float((got - expected).norm()) > 1e-3 * float(expected.norm()):
        raise TersorError(f"{path} was not written: onnxruntime computes something else than the model")
    write_atomically(Path(path), data)
    return len(data)


def _describe(layer: nn.Module) -> dict[str, Any] | None:
    if isinstance(layer, (CompressedLinear, CompressedConv2d)):
        own = {"bias": layer.bias is not None, "weight": layer.weight.config}
        if isinstance(layer, CompressedConv2d):
            own |= {"kernel_shape": list(layer.kernel_shape), **layer.options}
        return {"type": type(layer).__name__, **own}
    if type(layer) is nn.Sequential:
        return {"type": "Sequential", "names": list(layer._modules)}
    if isinstance(layer, RoundedInputs):
        return {"type": "RoundedInputs", "activations": asdict(layer.activations)}
    fields = _FIELDS.get(type(layer))
    if fields is None:
        return None
    values = {key: getattr(layer, key) for key in fields}
    return {"type": type(layer).__name__, **values, **({"bias": layer.bias is not None} if hasattr(layer, "bias") else {})}


def _restore(model: nn.Module, name: str, entry: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put the layer that ``entry`` describes under ``name``, on the meta device: a header must not decide what is allocated."""
    owner, _, leaf = name.rpartition(".")
    parent = model.get_submodule(owner)
    present = parent._modules.get(leaf)
    if present is not None and _describe(present) == entry:
        return
    kind, options = entry["type"], {key: value for key, value in entry.items() if key != "type"}
    if kind == "Sequential":
        if type(present) is not nn.Sequential:
            layer: nn.Module = nn.Sequential()
            for child in options["names"]:
                layer.add_module(child, nn.Identity())
            put_layer(model, name, layer)
        return
    if kind == "RoundedInputs":
        # What it holds is an entry of its own, which comes after it.
        later: Any = nn.Identity()
        put_layer(model, name, RoundedInputs(later, Quantizer(**options["activations"])))
        return
    with torch.device("meta"):
        layer = _compressed(name, kind, options, tensors) if kind.startswith("Compressed") else _plain(kind, options)
    put_layer(model, name, layer)


def _plain(kind: str, options: dict[str, Any]) -> nn.Module:
    if kind not in _TYPES:
        raise ValueError(f"unknown type of layer {kind!r}")
    if kind.startswith("BatchNorm"):
        options = {key: value for key, value in options.items() if key != "bias"}
    return _TYPES[kind](**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def _compressed(name: str, kind: str, options: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    weight = weight_from_config(options.pop("weight"))
    prefix = f"{name}.weight."
    check_state(weight, {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}, name)
    if kind == "CompressedLinear":
        return compressed_layer(nn.Linear(weight.shape[1], weight.shape[0], options["bias"]), weight)
    out_channels, per_group, *kernel = options.pop("kernel_shape")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return compressed_layer(nn.Conv2d(per_group * options["groups"], out_channels, (kernel[0], kernel[1]), **options), weight)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InvalidArgument(f"there is no file {path}; save_module writes one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CorruptFile(f"{path} holds no module that tersor saved")
            layers, ties = json.loads(metadata["layers"]), json.loads(metadata["ties"])
            return layers, ties, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CorruptFile(f"{path} cannot be read ({error}); save it again") from None


def _densified(model: nn.Module) -> nn.Module:
    rounding = {name: layer for name, layer in model.named_modules() if isinstance(layer, RoundedInputs)}
    for inner in (layer.layer for layer in rounding.values()):
        # Its weight stays in the basis that the inputs are rounded in.
        assert isinstance(inner.weight, RotatedWeight)
        inner.weight = RotatedWeight(DenseWeight(inner.weight.body.dense().float()), inner.weight.block)
    for name, layer in list(model.named_modules()):
        if name.rpartition(".")[0] in rounding:
            continue
        if isinstance(layer, CompressedLinear):
            rows, columns = layer.weight.shape
            dense: nn.Module = nn.Linear(columns, rows, layer.bias is not None)
        elif isinstance(layer, CompressedConv2d):
            out_channels, per_group, *kernel = layer.kernel_shape
            groups = layer.options["groups"]
            dense = nn.Conv2d(per_group * groups, out_channels, (kernel[0], kernel[1]), bias=layer.bias is not None, **layer.options)
        else:
            continue
        weight, bias = getattr(dense, "weight"), getattr(dense, "bias")  # noqa: B009 - mypy sees a union of modules
        weight.data = layer.weight.dense().reshape(weight.shape).to(weight.dtype)
        if layer.bias is not None:
            bias.data = layer.bias.detach().clone()
        put_layer(model, name, dense)
    return model


def _tensor(model: nn.Module, key: str) -> Any:
    owner, _, leaf = key.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)
