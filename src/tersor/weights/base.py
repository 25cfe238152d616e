"""What a compressed weight is: a module whose buffers are exactly the bytes that go to disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights.checking import dtype_name

KINDS: dict[str, type[CompressedWeight]] = {}


class CompressedWeight(nn.Module, ABC):
    """A matrix ``[out_features, in_features]`` stored as something smaller.

    Everything that is stored is a registered buffer, packed as on disk, so that ``state_dict``, ``.to`` and
    safetensors work unchanged and :attr:`nbytes` is a sum over buffers. A subclass sets ``kind``, which
    registers it, and implements :meth:`dense`, :attr:`config` and :meth:`from_config`.

    Attributes:
        shape: ``(out_features, in_features)``.
        report: What the method that made this weight wants the user to see (damping used, dead inputs, ...).
            Plain JSON values; not part of the stored weight.
    """

    kind: ClassVar[str] = ""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        out_features, in_features = shape
        if out_features < 1 or in_features < 1:
            raise InvalidArgument(f"a weight needs at least one row and one column, got shape {tuple(shape)}")
        self.shape = (int(out_features), int(in_features))
        self.report: dict[str, Any] = {}
        self._compute_dtype = torch.float32

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            KINDS[cls.kind] = cls

    @abstractmethod
    def dense(self) -> Tensor:
        """The exact float32 matrix ``[out_features, in_features]`` that this weight stands for."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A JSON-able description, ``{"kind": ..., "shape": ..., ...}``, from which an empty copy is rebuilt."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> CompressedWeight:
        """An empty weight of this configuration, its buffers allocated on the current default device."""

    @property
    def offset(self) -> Tensor | None:
        """What :meth:`forward` adds to ``x @ dense().T``, float32 ``[out_features]``, or ``None`` for a weight that adds nothing.

        A weight around one that brings a bias answers for it: its offset is its product with zero inputs.
        """
        nested = (part for part in self.modules() if part is not self and isinstance(part, CompressedWeight))
        if all(part.offset is None for part in nested):
            return None
        zeros: Tensor = self(torch.zeros(1, self.shape[1], device=self.device))
        return zeros[0]

    def forward(self, x: Tensor) -> Tensor:
        """``x @ dense().T``, plus the :attr:`offset` if there is one, for ``x`` of shape ``[..., in_features]``, in the type of ``x``."""
        return F.linear(x, self.dense().to(x.dtype))

    def rows(self, index: Tensor) -> Tensor:
        """Rows ``index`` of :meth:`dense`, shape ``[*index.shape, in_features]``: the embedding look-up."""
        return F.embedding(index, self.dense())

    def check_stored(self, tensors: dict[str, Tensor], name: str) -> None:
        """Refuse stored ``tensors`` of the right shapes whose values contradict each other; nested weights are asked by themselves.

        A kind whose indices or masks could lead a kernel out of bounds overrides this.

        Raises:
            CorruptFile: Naming ``name``, the layer.
        """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # model.half() or model.to(bfloat16) must not round the stored scales: the stored types are part of the format.
        self._compute_dtype = fn(torch.empty(0, dtype=self._compute_dtype, device=self.device)).dtype

        def keep_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_type, recurse)
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of every stored buffer: codes, scales, indices, masks, codebooks, nested weights."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.state_dict().values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits divided by the entries of the dense matrix."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The floating type that the surrounding model computes in; model code that reads ``linear.weight.dtype`` finds it."""
        return self._compute_dtype

    @property
    def device(self) -> torch.device:
        """Where the stored buffers are."""
        first = next(self.buffers(), None)
        return torch.device("cpu") if first is None else first.device

    def extra_repr(self) -> str:
        return f"{self.shape[0]}x{self.shape[1]}, {self.bits_per_weight:.2f} bits per weight"


def weight_from_config(config: dict[str, Any]) -> CompressedWeight:
    """Rebuild the empty weight that ``config`` describes.

    Raises:
        CorruptFile: If the kind is unknown or a field is missing, so that a damaged file is named as such.
    """
    kind = config.get("kind") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise CorruptFile(f"unknown weight kind {kind!r}; this version knows {', '.join(sorted(KINDS))}")
    try:
        return KINDS[kind].from_config(config)
    except (KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(f"the description of a {kind} weight is incomplete or malformed: {error}") from None


def check_state(weight: CompressedWeight, tensors: dict[str, Tensor], name: str) -> None:
    """Refuse stored tensors that disagree with the description that ``weight`` was rebuilt from.

    Call it between :func:`weight_from_config` and ``load_state_dict(tensors, assign=True)``.

    Args:
        weight: The empty weight; may be on the meta device.
        tensors: The stored tensors under the names of ``weight.state_dict()``.
        name: The layer, for the message.

    Raises:
        CorruptFile: If a tensor is missing, superfluous, of another shape or type, not finite, or contradicts another.
    """
    expected = weight.state_dict()
    if missing := sorted(expected.keys() - tensors.keys()):
        raise CorruptFile(f"{name}: the stored tensors lack {', '.join(missing)}")
    if superfluous := sorted(tensors.keys() - expected.keys()):
        raise CorruptFile(f"{name}: unexpected stored tensors {', '.join(superfluous)}")
    for key, promised in expected.items():
        stored = tensors[key]
        if stored.shape != promised.shape or stored.dtype != promised.dtype:
            raise CorruptFile(
                f"{name}.{key} is {dtype_name(stored.dtype)} {list(stored.shape)}, "
                f"its description promises {dtype_name(promised.dtype)} {list(promised.shape)}"
            )
        if stored.is_floating_point() and not torch.isfinite(stored).all():
            raise CorruptFile(f"{name}.{key} holds NaN or Inf")
    for path, part in weight.named_modules():
        if isinstance(part, CompressedWeight):
            prefix = f"{path}." if path else ""
            own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            part.check_stored(own, f"{name}.{path}" if path else name)


def check_matrix(weight: Tensor, name: str = "weight") -> None:
    """Refuse what is not a finite floating-point matrix, by name.

    Raises:
        InvalidArgument: If ``weight`` is not two-dimensional and floating, is empty, or holds NaN or Inf.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise InvalidArgument(f"{name} must be a floating-point matrix, got {weight.dtype} of shape {tuple(weight.shape)}")
    if weight.numel() == 0:
        raise InvalidArgument(f"{name} is empty: shape {tuple(weight.shape)}")
    if not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise InvalidArgument(f"{name} of shape {tuple(weight.shape)} holds {bad} NaN or Inf values; repair the model first")
