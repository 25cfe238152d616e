"""Codecs that are trained here: which there are, and one way to train, resume, save and load them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tersor import checkpoints
from tersor.errors import CorruptFile, InvalidArgument

if TYPE_CHECKING:
    import torch
    from _typeshed import DataclassInstance
    from torch import Tensor, nn

_Config = TypeVar("_Config", bound="DataclassInstance")
DESCRIPTION, TENSORS, CHECKPOINT = "codec.json", "codec.safetensors", "checkpoint.safetensors"
FORMAT = 1
# Seconds between two checkpoints: what a kill loses at most, beside one step.
_SAVE_EVERY = 20.0
_LARGEST_DESCRIPTION = 1 << 20


class Job(Protocol):
    """One training, as the ``start`` of a codec's module returns it.

    Everything that the steps to come depend on is in ``module`` and ``optimizer``: a resumed run is given both back, so a stage that begins
    with a computation (k-means, say) does it in :meth:`loss` at its first step and leaves the result in a buffer.

    Attributes:
        module: What is learned; its ``state_dict`` is the trained codec.
        optimizer: Of its parameters. Those without a gradient at a step are left alone.
        config: JSON values that rebuild the module.
        steps: Steps in all.
        data: Names the training data: a path or a description, and a hash.
    """

    # Properties, so that a job may have more special ones than these.
    @property
    def module(self) -> nn.Module: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def steps(self) -> int: ...
    @property
    def data(self) -> str: ...

    def rate(self, step: int) -> float:
        """Learning rate of ``step`` as a fraction of the optimizer's."""

    def loss(self, step: int) -> Tensor:
        """Loss of a batch that is drawn from the seed and ``step`` alone."""

    def finish(self) -> None:
        """What follows the last step, such as integer tables; its results are buffers of the module."""


class TrainedCodec(Protocol):
    """A codec with its weights, as the ``load`` of a codec's module returns it.

    Attributes:
        name: Key of :data:`TRAINABLE`.
        fingerprint: SHA-256 of weights and configuration, written to every file.
    """

    name: str
    fingerprint: str

    def encode(self, data: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Header and streams for the bytes of a file that the codec understands.

        Raises:
            InvalidArgument: If it is not such a file.
        """

    def decode(self, header: Mapping[str, Any], streams: tuple[bytes, ...]) -> bytes:
        """The bytes of a file with the decoded content.

        Raises:
            CorruptStream: If header and streams are not what :meth:`encode` makes.
        """


@dataclass(frozen=True)
class Trainable:
    """A codec that ``tersor train-codec`` trains.

    Attributes:
        name: What it is called on the command line.
        module: Has ``start(data, steps, seed, options) -> Job``, ``data`` a path or ``None`` for the default, ``options`` text by the
            names of its settings (see :func:`with_options`), and ``load(config, tensors, fingerprint) -> TrainedCodec``.
        steps: Default steps: a few minutes of one core.
        summary: What it is for, in a line.
        paper: Authors and year.
    """

    name: str
    module: str
    steps: int
    summary: str
    paper: str

    def start(self, data: Path | None, steps: int, seed: int, options: Mapping[str, str]) -> Job:
        """A training at its first step."""
        job: Job = import_module(self.module).start(data, steps, seed, options)
        return job

    def load(self, config: dict[str, Any], tensors: dict[str, Tensor], fingerprint: str) -> TrainedCodec:
        """The codec of a saved configuration and state."""
        codec: TrainedCodec = import_module(self.module).load(config, tensors, fingerprint)
        return codec


TRAINABLE: dict[str, Trainable] = {
    entry.name: entry
    for entry in (
        Trainable("image_vq", "tersor.coding.image_vq.training", 2000, "photographs at hundredths of a bit a pixel", "Mao et al., 2024"),
        Trainable("walloc", "tersor.coding.walloc.training", 1500, "pictures and sounds as a few integers", "Jacobellis, Yadwadkar, 2025"),
        Trainable("features", "tersor.coding.features.training", 1500, "what a classifier needs of small images", "Matsubara et al., 2022"),
        Trainable("mesh", "tersor.coding.mesh.training", 2000, "shapes as codes of a generator", "Dagli et al., 2025"),
    )
}


@dataclass(frozen=True)
class Training:
    """What :func:`train_codec` did.

    Attributes:
        name: The codec.
        folder: Where it is.
        steps: Of the whole training.
        resumed: Steps that an earlier call had done.
        loss: Mean loss of the last twentieth of the steps of this call; ``None`` if no step was left.
        seconds: Wall time of this call.
        nbytes: Bytes of the saved tensors.
        fingerprint: Of weights and configuration.
    """

    name: str
    folder: str
    steps: int
    resumed: int
    loss: float | None
    seconds: float
    nbytes: int
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.4g}"
        return (
            f"{self.name}: {self.steps:,} steps ({self.resumed:,} of them earlier){loss}, {self.seconds:.0f} s; "
            f"{self.nbytes:,} bytes in {self.folder}; next: tersor encode FILE --codec {self.name} --model {self.folder} -o FILE.tersor"
        )


def find_trainable(name: str) -> Trainable:
    """The entry of :data:`TRAINABLE` called ``name``.

    Raises:
        InvalidArgument: If there is none.
    """
    if name not in TRAINABLE:
        raise InvalidArgument(f"unknown codec {name!r}; those that can be trained are {', '.join(TRAINABLE)}")
    return TRAINABLE[name]


def train_codec(
    name: str, out: str | Path, *, data: str | Path | None = None, steps: int | None = None, seed: int = 0,
    options: Mapping[str, str] | None = None, progress: Callable[[int, int, float], object] | None = None,
) -> Training:  # fmt: skip
    """Train a codec into a folder; the same call goes on where a killed one stopped.

    Args:
        name: Key of :data:`TRAINABLE`.
        out: A folder that does not exist, is empty, or holds a trained codec or a checkpoint of this job.
        data: What to train on; without it the default of the codec.
        steps: Optimizer steps; without them a few minutes of one core.
        seed: Of weights and batches.
        options: Settings of the codec by name, such as ``{"bits": "4"}``.
        progress: Called with steps done, steps in all and the loss.

    Returns:
        What was done. :func:`load_codec` gives the codec.

    Raises:
        InvalidArgument: If there is no such codec or data, an option is out of range, or the folder holds something else.
        TersorError: If the folder cannot be written.
    """
    began = time.perf_counter()
    entry, folder = find_trainable(name), Path(out)
    steps = entry.steps if steps is None else steps
    if steps < 1:
        raise InvalidArgument(f"steps must be at least 1, got {steps}")
    _check_folder(folder)
    job = entry.start(None if data is None else Path(data), steps, seed, options or {})
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"codec": name, "config": job.config, "steps": steps, "seed": seed, "data": job.data}
    first = _resume(folder / CHECKPOINT, job, identity)
    losses = run_job(job, first, progress, lambda step: _save(folder / CHECKPOINT, job, step, identity))
    facts = {"steps": steps, "seed": seed, "data": job.data}
    fingerprint, nbytes = save_codec(folder, name, job.config, job.module.state_dict(), facts)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    last = losses[-max(len(losses) // 20, 1) :]
    mean = sum(last) / len(last) if last else None
    return Training(name, str(folder), steps, first, mean, time.perf_counter() - began, nbytes, fingerprint)


def save_codec(
    folder: Path, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], training: Mapping[str, Any]
) -> tuple[str, int]:
    """Write a trained codec: ``codec.safetensors``, then ``codec.json``, which says what the other must hold.

    Returns:
        Fingerprint, and bytes of the tensors.
    """
    from safetensors.torch import save

    from tersor.coding.entropy.fingerprints import fingerprint
    from tersor.files import write_atomically, write_json

    content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    found = fingerprint(tensors, {"codec": name, "config": dict(config)})
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / TENSORS, content)
    facts = {"format": FORMAT, "codec": name, "config": dict(config), "fingerprint": found, "training": dict(training)}
    write_json(folder / DESCRIPTION, facts)
    return found, len(content)


def is_codec(path: str | Path) -> bool:
    """Whether ``path`` is the folder of a trained codec."""
    return (Path(path) / DESCRIPTION).is_file()


def load_codec(folder: str | Path) -> TrainedCodec:
    """The codec that :func:`train_codec` left in ``folder``.

    Raises:
        InvalidArgument: If the folder holds none, or one of a newer tersor.
        CorruptFile: If it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from tersor.coding.entropy.fingerprints import fingerprint

    path = Path(folder)
    if not is_codec(path):
        hint = "; its training is not finished: repeat the tersor train-codec that began it" if (path / CHECKPOINT).is_file() else ""
        raise InvalidArgument(f"{path} holds no trained codec{hint or '; tersor train-codec NAME --out FOLDER makes one'}")
    facts = _description(path / DESCRIPTION)
    name, config = facts["codec"], facts["config"]
    if facts["format"] != FORMAT or name not in TRAINABLE:
        raise InvalidArgument(f"{path} holds a codec {name!r} of format {facts['format']}, which this tersor does not know; update tersor")
    try:
        tensors = load((path / TENSORS).read_bytes())
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CorruptFile(f"{path / TENSORS} cannot be read ({error}); take another copy or train again") from None
    if fingerprint(tensors, {"codec": name, "config": config}) != facts["fingerprint"]:
        raise CorruptFile(f"the weights in {path} are not those that its {DESCRIPTION} names; take another copy or train again")
    try:
        return TRAINABLE[name].load(config, tensors, facts["fingerprint"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptFile(f"the codec in {path} cannot be built from its files ({error}); take another copy or train again") from None


def _description(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            facts = json.loads(file.read(_LARGEST_DESCRIPTION))
        kinds = {"format": int, "codec": str, "config": dict, "fingerprint": str}
        if not all(type(facts[key]) is kind for key, kind in kinds.items()):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CorruptFile(f"{path} is damaged; take another copy or train again") from None
    return dict(facts)


def _check_folder(folder: Path) -> None:
    ours = any((folder / name).is_file() for name in (DESCRIPTION, CHECKPOINT))
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not ours):
        raise InvalidArgument(f"{folder} exists and was not written by tersor train-codec; name a new folder or empty it")


def settings(given: Sequence[str]) -> dict[str, str]:
    """``{"bits": "4"}`` of ``["bits=4"]``.

    Raises:
        InvalidArgument: If one has no name or no value, or a name comes twice.
    """
    pairs = [item.partition("=")[::2] for item in given]
    if any(not key or not value for key, value in pairs) or len(dict(pairs)) < len(pairs):
        raise InvalidArgument(f"settings are written NAME=VALUE, each name once; got {' '.join(given)}")
    return dict(pairs)


def with_options(config: _Config, options: Mapping[str, str]) -> _Config:
    """``config``, a dataclass of numbers and text, with the settings that ``options`` name.

    Raises:
        InvalidArgument: If there is no such setting, or the text is none of its values.
    """
    known = {field.name: type(getattr(config, field.name)) for field in fields(config)}
    changed: dict[str, Any] = {}
    for key, written in options.items():
        if known.get(key) not in (int, float, str):
            settings = ", ".join(name for name, kind in known.items() if kind in (int, float, str))
            raise InvalidArgument(f"unknown setting {key!r}; the settings are {settings}")
        try:
            changed[key] = known[key](written)
        except ValueError:
            raise InvalidArgument(f"the setting {key} is a {known[key].__name__}, got {written!r}") from None
    return replace(config, **changed)


def run_job(
    job: Job, first: int = 0, progress: Callable[[int, int, float], object] | None = None, save: Callable[[int], object] | None = None
) -> list[float]:
    """Run a training from its step ``first`` to its end, in memory; :func:`train_codec` does it in a folder.

    Args:
        job: What a codec's ``start`` made; its module is in eval mode and finished afterwards.
        first: Steps already done.
        progress: Called with steps done, steps in all and the loss.
        save: Called now and then with the steps done.

    Returns:
        The losses.
    """
    job.module.train()
    base = [group["lr"] for group in job.optimizer.param_groups]
    losses: list[float] = []
    saved = time.monotonic()
    for step in range(first, job.steps):
        loss = job.loss(step)
        for group, rate in zip(job.optimizer.param_groups, base, strict=True):
            group["lr"] = rate * job.rate(step)
        job.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        job.optimizer.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, job.steps, losses[-1])
        if save is not None and time.monotonic() - saved > _SAVE_EVERY:
            save(step + 1)
            saved = time.monotonic()
    job.module.eval()
    job.finish()
    return losses


def _save(path: Path, job: Job, step: int, identity: Mapping[str, Any]) -> None:
    tensors = {f"module.{key}": tensor for key, tensor in job.module.state_dict().items()}
    for index, state in job.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in state.items()}
    checkpoints.write(path, tensors, {"step": step}, identity)


def _resume(path: Path, job: Job, identity: Mapping[str, Any]) -> int:
    found = checkpoints.read(path, identity)
    if found is None:
        return 0
    tensors, facts = found
    job.module.load_state_dict({key.removeprefix("module."): tensor for key, tensor in tensors.items() if key.startswith("module.")})
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, part = key.split(".", 2)
            states.setdefault(int(index), {})[part] = tensor
    groups = job.optimizer.state_dict()["param_groups"]
    job.optimizer.load_state_dict({"state": states, "param_groups": groups})
    return int(facts["step"])
