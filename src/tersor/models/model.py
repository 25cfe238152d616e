"""A whole model: the transformers module, its tokenizer, and the one place where layers are listed, read and replaced."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.weights.base import CompressedWeight
from tersor.weights.modules import CompressedEmbedding, CompressedLinear, compressed_layer, dense_shape, matrix_of

if TYPE_CHECKING:
    from tersor.models.export import ExportReport
    from tersor.models.stack import Resized

# Facts about the process that wrote a configuration, not about the model.
_INCIDENTAL_CONFIG = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "_attn_implementation_autoset")


class Model:
    """A transformers model that is being made smaller.

    Everything that walks, reads or replaces layers goes through this class, so that tied embeddings are one tensor
    everywhere: listed once, compressed once, counted once. Build it with :func:`tersor.load`; the constructor wraps a
    module that you already have.

    Args:
        module: A transformers model. It is put into eval mode and its gradients are switched off; its type is kept.
        tokenizer: The tokenizer, or ``None`` for a model that is only fed token ids.
        name: What reports call it.

    Attributes:
        provenance: Plain JSON values on how the model was made; saved with it, not part of what it computes.
        report: What :func:`tersor.compress` measured while it made the model, ``None`` for any other; not saved with it.

    Example:
        >>> import torch, transformers
        >>> config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...                                   num_attention_heads=2, tie_word_embeddings=True)
        >>> model = Model(transformers.LlamaForCausalLM(config))
        >>> list(model.linears())[:2], model.tied
        (['model.layers.0.self_attn.q_proj', 'model.layers.0.self_attn.k_proj'], True)
    """

    def __init__(self, module: nn.Module, tokenizer: Any | None = None, name: str = "model") -> None:
        if getattr(module, "config", None) is None:
            raise InvalidArgument(f"a Model wraps a transformers model with a config, got {type(module).__name__}")
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.provenance: dict[str, Any] = {}
        self.report: Any = None

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.module.config

    @property
    def architecture(self) -> str:
        """Class of the module, such as ``"LlamaForCausalLM"``."""
        return type(self.module).__name__

    @property
    def max_context(self) -> int:
        """Longest sequence of tokens that the model takes; 2048 where its configuration names no limit."""
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            if isinstance(limit := getattr(self.config, key, None), int) and limit > 0:
                return limit
        return 2048

    @property
    def vocabulary(self) -> int:
        """Token ids that the model knows."""
        return int(self.config.vocab_size)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states between blocks."""
        return int(self.config.hidden_size)

    @property
    def n_parameters(self) -> int:
        """Weights of the model, a compressed matrix counted with its dense size, a tied table once."""
        dense = {id(parameter): parameter.numel() for parameter in self.module.parameters()}
        return sum(dense.values()) + sum(weight.shape[0] * weight.shape[1] for weight in self.weights().values())

    @property
    def tied(self) -> bool:
        """Whether the output head is the token embedding table, one tensor."""
        return self._tied_head() is not None

    def linears(self) -> dict[str, nn.Module]:
        """Every linear layer by its dotted name, dense or compressed; an untied head included, a tied head not."""
        head = self._tied_head()
        return {name: layer for name, layer in self.module.named_modules() if is_linear(layer) and name != head}

    def embeddings(self) -> dict[str, nn.Module]:
        """The token embedding table by its dotted name (a tied head is part of it); empty for a model without one."""
        name = name_of(self.module, token_table(self.module))
        layer = None if name is None else self.module.get_submodule(name)
        return {name: layer} if name is not None and isinstance(layer, (nn.Embedding, CompressedEmbedding)) else {}

    def shape(self, name: str) -> tuple[int, int]:
        """``(out_features, in_features)`` of a layer; ``(vocabulary, width)`` of an embedding table."""
        layer = self._layer(name)
        return layer.weight.shape if isinstance(layer, (CompressedLinear, CompressedEmbedding)) else dense_shape(layer)

    def matrix(self, name: str) -> Tensor:
        """The float32 matrix ``[out_features, in_features]`` of a layer, decompressed where it is compressed."""
        layer = self._layer(name)
        if isinstance(layer, (CompressedLinear, CompressedEmbedding)):
            return layer.weight.dense()
        matrix = matrix_of(layer)
        assert matrix is not None
        return matrix.float()

    def replace(self, name: str, weight: CompressedWeight) -> None:
        """Put ``weight`` into a layer, in place, keeping its bias; what is tied to the layer follows.

        Args:
            name: A name from :meth:`linears` or :meth:`embeddings`; the name of a tied head means the table.
            weight: Of the shape of the layer.

        Raises:
            InvalidArgument: If there is no such layer or the shapes differ.
        """
        head = self._tied_head()
        if head is not None and name == head:
            name = next(iter(self.embeddings()))
        layer = self._layer(name)
        self._put(name, _with_weight(layer, weight))
        if head is not None and isinstance(layer, (nn.Embedding, CompressedEmbedding)):
            self._put(head, _with_weight(self.module.get_submodule(head), weight))
            keep_ties(self.module)

    def weights(self) -> dict[str, CompressedWeight]:
        """The compressed weights by layer name; a tied table once, under the name of the embedding."""
        layers = self.linears() | self.embeddings()
        return {name: layer.weight for name, layer in layers.items() if isinstance(layer, (CompressedLinear, CompressedEmbedding))}

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in the file that :meth:`save` writes: every distinct tensor once, in the type it is stored in."""
        from tersor.models.storage import tensor_bytes

        return tensor_bytes(self)

    def copy(self, dtype: torch.dtype | None = None) -> Model:
        """A model of its own that shares the stored values: replacing, casting or re-pointing layers of one leaves the other alone.

        Args:
            dtype: Floating type for the copy to compute in; dense parameters are converted, compressed ones keep what they store.
                Unlike ``module.to(dtype)``, tables of position frequencies stay in float32, where rounding would ruin long contexts.
        """
        memo: dict[int, Any] = {}
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            shared = tensor.detach()
            if isinstance(tensor, nn.Parameter):
                cast = shared.to(dtype) if dtype is not None and shared.is_floating_point() else shared
                memo[id(tensor)] = nn.Parameter(cast, requires_grad=False)
            else:
                memo[id(tensor)] = shared
        twin = Model(copy.deepcopy(self.module, memo), self.tokenizer, self.name)
        twin.provenance = copy.deepcopy(self.provenance)
        for part in twin.module.modules():
            if dtype is not None and isinstance(part, (CompressedWeight, CompressedEmbedding)):
                part.to(dtype)
        return twin

    def encode(self, text: str, special_tokens: bool = True) -> Tensor:
        """Token ids of ``text``, int64 ``[n]``.

        Args:
            text: Any length; longer than the context is fine, cut it with :func:`tersor.data.windows`.
            special_tokens: Whether the tokenizer adds what it adds by default, such as a begin-of-sequence token.

        Raises:
            InvalidArgument: If the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise InvalidArgument(f"model {self.name} has no tokenizer; put one into its folder or pass token ids")
        ids = self.tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    def generate(self, prompt: str, *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0) -> str:
        """Continue ``prompt`` and return the continuation alone.

        Args:
            prompt: Text before the continuation; not wrapped in a chat template.
            max_new_tokens: Longest continuation, in tokens; an end-of-sequence token ends it earlier.
            temperature: 0 takes the likeliest token each time; above 0 samples.
            seed: Of the sampling.
        """
        from tersor.models.generation import continue_text

        return continue_text(self, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)

    def resize(self, budget: int | str | float) -> Resized:
        """Change size in place, by reading or dropping blocks alone, where the model can: see :class:`tersor.models.stack.StackedModel`.

        Args:
            budget: Bytes of all stored tensors, or a size such as ``"120MB"``.

        Raises:
            InvalidArgument: For a model that was not loaded from a stack, which has one size.
        """
        raise InvalidArgument(f"model {self.name} has one size, {budget!r} or not; to resize it, load what 'tersor stack' wrote of it")

    def fingerprint(self) -> str:
        """SHA-256 over every stored value, its name and the configuration: equal for equal models, saved and loaded or not."""
        digest = hashlib.sha256(json.dumps(self._identity(), sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, path: str | Path, dense_dtype: str = "auto") -> None:
        """Write the model to a folder that :func:`tersor.load` reads back exactly; see :func:`tersor.models.storage.save`."""
        from tersor.models.storage import save

        save(self, path, dense_dtype=dense_dtype)

    def export(self, path: str | Path, format: str = "gguf", verify: bool = True, **options: Any) -> ExportReport:
        """Write the model for another runtime; see :func:`tersor.models.export.export_model`."""
        from tersor.models.export import export_model

        return export_model(self, path, format=format, verify=verify, **options)

    def __repr__(self) -> str:
        compressed = len(self.weights())
        return f"Model({self.name!r}, {self.architecture}, {len(self.linears())} linear layers, {compressed} layers compressed)"

    def _identity(self) -> dict[str, Any]:
        config = {key: value for key, value in self.config.to_dict().items() if key not in _INCIDENTAL_CONFIG}
        weights = {name: weight.config for name, weight in self.weights().items()}
        return {"architecture": self.architecture, "config": config, "weights": weights}

    def _layer(self, name: str) -> nn.Module:
        layers = self.linears() | self.embeddings()
        if name in layers:
            return layers[name]
        if name == self._tied_head():
            return next(iter(self.embeddings().values()))
        raise InvalidArgument(f"model {self.name} has no layer {name!r}; its layers are {_some(list(layers))}")

    def _put(self, name: str, layer: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.module.get_submodule(parent), child, layer)

    def _tied_head(self) -> str | None:
        head = output_head(self.module)
        return name_of(self.module, head) if head is not None and is_tied(self.module) else None


def is_linear(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear layer, dense or compressed; GPT-2's transposed ``Conv1D`` is one."""
    return isinstance(layer, (nn.Linear, CompressedLinear)) or type(layer).__name__ == "Conv1D"


def token_table(module: nn.Module) -> nn.Module | None:
    """The token embedding of a transformers module, or ``None``."""
    return _accessor(module, "get_input_embeddings")


def output_head(module: nn.Module) -> nn.Module | None:
    """The layer that makes logits out of hidden states, or ``None``."""
    return _accessor(module, "get_output_embeddings")


def is_tied(module: nn.Module) -> bool:
    """Whether the output head multiplies by the very tensor of the token embedding."""
    head, table = output_head(module), token_table(module)
    return head is not None and table is not None and head is not table and getattr(head, "weight", None) is getattr(table, "weight", head)


def keep_ties(module: nn.Module) -> None:
    """Let the ``tie_weights`` of transformers, which harnesses and trainers call, leave a table alone whose one weight both layers hold.

    It looks for a parameter that a compressed table does not have.
    """
    module.tie_weights = _tied_already  # type: ignore[assignment]


def _tied_already(*_: Any, **__: Any) -> None:
    pass


def name_of(module: nn.Module, layer: nn.Module | None) -> str | None:
    """The dotted name of ``layer`` inside ``module``."""
    return next((name for name, part in module.named_modules() if part is layer), None)


def _with_weight(layer: nn.Module, weight: CompressedWeight) -> nn.Module:
    if not isinstance(layer, (CompressedLinear, CompressedEmbedding)):
        new = compressed_layer(layer, weight)
    elif layer.weight.shape != weight.shape:
        raise InvalidArgument(f"a layer of shape {layer.weight.shape} cannot hold a weight of shape {weight.shape}")
    elif isinstance(layer, CompressedEmbedding):
        new = CompressedEmbedding(weight, layer.padding_idx, layer.output_dtype, layer.scale)
    else:
        new = CompressedLinear(weight)
    if isinstance(new, CompressedLinear):
        # The very parameter, not a copy: BERT's head and its module share one bias.
        new.bias = getattr(layer, "bias", None)
    return new


def _accessor(module: nn.Module, name: str) -> nn.Module | None:
    try:
        layer = getattr(module, name)()
    except (AttributeError, NotImplementedError):
        return None
    return layer if isinstance(layer, nn.Module) else None


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
