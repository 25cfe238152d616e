"""What one worker remembers between steps, and the settings of the exchange."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from tersor.distributed import rules
from tersor.distributed.compressors import Compressor, describe_compressor, parse_compressor
from tersor.distributed.rules import Memory
from tersor.distributed.wire import Wire
from tersor.errors import CorruptFile, InvalidArgument

_VERSION = 1


class ErrorFeedbackState:
    """Compressed gradient exchange: the state of :func:`error_feedback_hook` and of :class:`Simulator`.

    Which mode? ``"econtrol"`` and ``"ef21_sgdm"`` converge whatever the data of the workers have in common. ``"econtrol"`` needs no
    momentum and has plain SGD's leading rate, but a learning rate that shrinks with the compression; under noise and extreme sparsity
    (1 % and below) ``"ef21_sgdm"`` is better. ``"ef21"`` is for exact gradients. ``"ef"`` stalls and ``"csgd"`` may diverge where the
    data of workers differ; they are there to compare with. All send the same messages.

    Memory is kept by parameter name in at least float32: one gradient's size for ``"ef"``, two for ``"ef21"``, three for ``"ef21_sgdm"``
    and ``"econtrol"``. Vectors and tensors below ``min_numel`` entries are averaged uncompressed. Clip gradients after the exchange.

    Args:
        mode: ``"csgd"``, ``"ef"``, ``"ef21"``, ``"ef21_sgdm"`` or ``"econtrol"``.
        compressor: A compressor, or its name as in ``"topk:0.01"``.
        eta: Weight of the error in ``"econtrol"``: a number in [0, 1], or ``"auto"`` for the contraction of the compressor, at most 0.3.
            Larger values diverge, smaller ones leave a tail of ``1 / eta`` steps.
        beta: Weight of the new gradient in ``"ef21_sgdm"``, in (0, 1]; 0.1 is what others call a momentum of 0.9.
        init: What the replicas know of the first gradient where the mode tracks it: ``"dense"`` all, at the price of one dense all-reduce;
            ``"compressed"`` what its message says, the rest forgotten; ``"zero"`` nothing, the rest is error.
        min_numel: Smaller tensors are averaged dense.
        vectors: Compress tensors of one dimension too.
        process_group: The group; the default group unless given.

    Raises:
        InvalidArgument: If an argument is out of range, or the compressor does not contract and the mode needs it.

    Example:
        >>> from tersor.distributed import ErrorFeedbackState
        >>> ErrorFeedbackState(mode="econtrol", compressor="topk:0.01").describe()["compressor"]
        {'kind': 'topk', 'ratio': 0.01, 'k': None}

    Reference:
        Gao, Islamov, Stich: "EControl: Fast Distributed Optimization with Compression and Error Control", 2024.
        Seide et al., 2014 and Stich, Cordonnier, Jaggi, 2018 (``"ef"``); Richtárik, Sokolov, Fatkhullin, 2021 (``"ef21"``);
        Fatkhullin, Tyurin, Richtárik, 2023 (``"ef21_sgdm"``).
    """

    algorithm = "error feedback"

    def __init__(
        self, mode: str = "econtrol", compressor: str | Compressor = "topk:0.01", *, eta: float | str = "auto", beta: float = 0.1,
        init: str = "dense", min_numel: int = 1024, vectors: bool = False, process_group: dist.ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        self.mode = rules.check_mode(mode)
        self.compressor = parse_compressor(compressor)
        self.eta, self.beta, self.init, self.min_numel, self.vectors = eta, beta, init, min_numel, vectors
        self._check()
        self.wire = Wire(process_group)
        self.step = 0
        self.nbits = 0
        self.local: dict[str, Memory] = {}
        self.shared: dict[str, Memory] = {}
        self._names: dict[int, str] = {}

    def _check(self) -> None:
        if self.eta != "auto" and (isinstance(self.eta, (str, bool)) or not 0 <= self.eta <= 1):
            raise InvalidArgument(f"eta must be 'auto' or a number from 0 to 1, got {self.eta!r}")
        if isinstance(self.beta, bool) or not isinstance(self.beta, (int, float)) or not 0 < self.beta <= 1:
            raise InvalidArgument(f"beta must be above 0 and at most 1, got {self.beta!r}")
        if self.init not in rules.INITS:
            raise InvalidArgument(f"init must be one of {', '.join(rules.INITS)}, got {self.init!r}")
        if not isinstance(self.min_numel, int) or self.min_numel < 1:
            raise InvalidArgument(f"min_numel must be an integer of at least 1, got {self.min_numel!r}")
        if self.mode != "csgd" and not self.compressor.contractive:
            raise InvalidArgument(
                f"mode {self.mode!r} needs a compressor that contracts and {self.compressor} does not; do not rescale, or use 'csgd'"
            )

    def describe(self) -> dict[str, Any]:
        """The settings as plain data; two states that describe themselves alike understand each other's checkpoints."""
        return {
            "mode": self.mode, "compressor": describe_compressor(self.compressor), "eta": self.eta, "beta": self.beta, "init": self.init,
            "min_numel": self.min_numel, "vectors": self.vectors,
        }  # fmt: skip

    def bind(self, module: nn.Module) -> None:
        """Learn the names of a module's parameters, by which everything is remembered."""
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}

    def name_of(self, parameter: Tensor) -> str:
        """The name of a parameter of the module that was bound.

        Raises:
            InvalidArgument: If it is not of that module.
        """
        if id(parameter) not in self._names:
            raise InvalidArgument("a gradient belongs to no parameter that this state knows; install it with tersor.distributed.register")
        return self._names[id(parameter)]

    def compressor_of(self, name: str, shape: tuple[int, ...]) -> Compressor | None:
        """The compressor of a parameter, or ``None`` where it is averaged dense."""
        numel = math.prod(shape)
        small = numel < self.min_numel or (len(shape) < 2 and not self.vectors)
        return None if small or self.compressor.nbytes(shape) > 4 * numel else self.compressor

    def eta_of(self, compressor: Compressor, shape: tuple[int, ...]) -> float:
        """The weight of the error for a tensor."""
        return compressor.eta(shape) if self.eta == "auto" else float(self.eta)

    def observe(self, name: str, target: Tensor, gradient: Tensor) -> None:
        """Called with what is about to be compressed and the gradient itself, ``[workers, numel]``; for states that adapt to it."""

    def before(self, gradients: Mapping[str, tuple[int, ...]]) -> None:
        """Called before each exchange with the shapes it concerns; may communicate."""

    def advance(self) -> None:
        """Count one finished step."""
        self.step += 1

    def forget(self) -> None:
        """Drop every memory, as after a jump in the parameters that the past gradients say nothing about."""
        self.local.clear()
        self.shared.clear()

    def traffic(self) -> dict[str, float]:
        """What this worker sent so far: ``payload_bytes`` handed to collectives, ``ring_bytes`` on the wire for them (see
        :class:`~tersor.distributed.wire.Wire`) and ``ideal_bits``, what an ideal code would take for the payload."""
        return {"payload_bytes": self.wire.payload_bytes, "ring_bytes": self.wire.ring_bytes, "ideal_bits": self.nbits}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-identical continuation needs, as tensors, numbers, strings and containers of them.

        ``local`` differs between workers and needs a shard each; ``shared`` is the same on all.
        """
        return {
            "version": _VERSION, "algorithm": self.algorithm, "settings": self.describe(), "step": self.step,
            "world_size": self.wire.world_size, "local": _copied(self.local), "shared": _copied(self.shared), "extra": self._extra(),
        }  # fmt: skip

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` of a state with the same settings and as many workers.

        Raises:
            InvalidArgument: If a setting or the number of workers differs; :func:`load_checkpoint` converts the latter.
            CorruptFile: If a part is missing or of another version.
        """
        missing = sorted({"version", "algorithm", "settings", "step", "world_size", "local", "shared", "extra"} - stored.keys())
        if missing or stored["version"] != _VERSION:
            raise CorruptFile(f"the stored state lacks {', '.join(missing)}" if missing else f"stored state of version {stored['version']}")
        check_settings(self, stored)
        if stored["world_size"] != self.wire.world_size:
            raise InvalidArgument(
                f"the state was stored by {stored['world_size']} workers and {self.wire.world_size} are running; "
                "load the whole checkpoint with tersor.distributed.load_checkpoint"
            )
        self.step = int(stored["step"])
        self.local, self.shared = _copied(stored["local"]), _copied(stored["shared"])
        self._restore(stored["extra"])

    def _extra(self) -> dict[str, Any]:
        return {}

    def _restore(self, extra: Mapping[str, Any]) -> None:
        pass


def check_settings(state: ErrorFeedbackState, stored: Mapping[str, Any]) -> None:
    """Refuse a stored state whose algorithm or settings are not those of ``state``.

    Raises:
        InvalidArgument: Naming the first difference.
    """
    theirs = {"algorithm": stored["algorithm"], **stored["settings"]}
    for key, mine in {"algorithm": state.algorithm, **state.describe()}.items():
        if theirs.get(key) != mine:
            raise InvalidArgument(f"the state was stored with {key}={theirs.get(key)!r}, this one has {mine!r}; make them equal")


def _copied(memories: Mapping[str, Memory]) -> dict[str, Memory]:
    return {name: {key: tensor.clone() for key, tensor in memory.items()} for name, memory in memories.items()}
