"""One counter of optimizer steps and one set of hooks that carry every method of compression during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tersor import checkpoints
from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer
from tersor.training.guards import check_job, check_optimizer, check_replicas
from tersor.training.method import Method


class Compression:
    """Compress ``model`` while any loop trains it.

    The loop stays as it is: :meth:`attach` hooks the optimizer of a plain loop, :meth:`trainer_callback` and
    :meth:`lightning_callback` do the same in the two frameworks. Methods act after steps of the optimizer, so accumulation of
    gradients, mixed precision and skipped steps need no care. A penalty reaches the gradients right before the step, as if it were a term
    of the loss; transformers clips gradients before that and Lightning after it.

    Args:
        model: Changed in place. Build the optimizer after this: a method may have put other parameters into the model.
        methods: Called in this order.
        total_steps: Steps of the whole training, needed where a method's option is a share of it; the two frameworks tell it themselves.
        seed: Of all that the methods draw.
        example_inputs: Arguments of one forward pass, for methods that follow the model's graph or measure it.

    Attributes:
        model: The model.
        step: Steps that the optimizer has taken.
        epoch: Epochs that have ended.
        reshaped: The step after which a method last put parameters of other shapes into the model; 0 if none did. Under
            DistributedDataParallel wrap the model anew then.
        generator: What methods draw from; its state is part of the checkpoint.

    Raises:
        InvalidArgument: If there is no method, a method finds nothing to do in the model or serves another one, two would overwrite
            the same parameter, or the model is sharded or holds NaN or Inf.

    Example:
        >>> import torch
        >>> from tersor.training import Compression, GradualPruning
        >>> model = torch.nn.Linear(8, 8)
        >>> compression = Compression(model, [GradualPruning(sparsity=0.5, begin=0, end=4, frequency=1)])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> _ = compression.attach(optimizer)
        >>> for _ in range(5):
        ...     loss = model(torch.ones(1, 8)).square().sum()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> int((compression.finalize().weight == 0).sum())
        32
    """

    def __init__(
        self, model: nn.Module, methods: Sequence[Method], *, total_steps: int | None = None, seed: int = 0,
        example_inputs: tuple[Any, ...] | None = None,
    ) -> None:  # fmt: skip
        check_job(model, methods, example_inputs, seed)
        if total_steps is not None:
            check_integer("total_steps", total_steps, 1)
        self.model = model
        self.methods = tuple(methods)
        self.total_steps = total_steps
        self.example_inputs = example_inputs
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0
        self.epoch = 0
        self.reshaped = 0
        self._finalized = False
        self._new: list[nn.Parameter] = []
        self._optimizer: Optimizer | None = None
        self._handles: list[Any] = []
        before = {id(parameter): parameter for parameter in model.parameters()}
        for method in self.methods:
            if method.serving:
                raise InvalidArgument(f"the same {type(method).__name__} was given twice; make one for each place")
            method.serving = True
            method.attach(self)
        self._check_overlaps()
        kept = {id(parameter) for parameter in model.parameters()}
        # Held, not only numbered: the id of a freed object may come again.
        self._gone = {key: parameter for key, parameter in before.items() if key not in kept}

    def _check_overlaps(self) -> None:
        owners: dict[str, Method] = {}
        for method in self.methods:
            for name in sorted(method.rewrites()):
                if name in owners:
                    first = owners[name].name
                    raise InvalidArgument(f"both {first} and {method.name} overwrite {name}; give them different targets")
                owners[name] = method

    def attach(self, optimizer: Optimizer) -> Self:
        """Act on every step of ``optimizer``, in a plain loop or under accelerate.

        Args:
            optimizer: Any optimizer of torch over parameters of the model that has not stepped yet; one that accelerate wrapped is
                unwrapped. Parameters for which a method has options of its own move to groups of their own.

        Returns:
            This object.

        Raises:
            InvalidArgument: If an optimizer is attached already or has stepped, its parameters are not those of the model, or the
                compression has ended.
        """
        inner: Any = getattr(optimizer, "optimizer", optimizer)
        self._bind(inner)
        self._handles.append(inner.register_step_pre_hook(self._before_step_hook))
        return self

    def _bind(self, optimizer: Optimizer) -> None:
        """Take over ``optimizer`` with the post hook alone, which every loop calls at the right moment."""
        if self._finalized:
            raise InvalidArgument("the compression has ended with finalize(); make a new Compression to go on")
        if self._optimizer is not None:
            raise InvalidArgument("an optimizer is attached already; one Compression serves one optimizer")
        check_optimizer(optimizer, self.model, self._gone)
        if self.step == 0 and optimizer.state:
            raise InvalidArgument("the optimizer has stepped before; attach compression before the first step")
        for group in (group for method in self.methods for group in method.parameter_groups()):
            own = {id(parameter) for parameter in group["params"]}
            for other in optimizer.param_groups:
                other["params"] = [parameter for parameter in other["params"] if id(parameter) not in own]
            optimizer.add_param_group(dict(group))
        self._optimizer = optimizer
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self.after_step()))

    def _before_step_hook(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The optimizer itself is the first argument.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is not None and self.penalty() is not None:
            raise InvalidArgument(
                "the step was called with a closure, which computes the gradients after a penalty was added; use lightning_callback() in "
                "Lightning, or step without a closure"
            )
        if getattr(optimizer, "grad_scale", None) is not None:
            raise InvalidArgument("the fused optimizer unscales gradients inside its step; call scaler.unscale_(optimizer) before it")
        self.before_step()

    def penalty(self) -> Tensor | None:
        """Sum of the methods' penalties for the present weights, or ``None``; logged, or added to a loss by hand."""
        terms = [term for method in self.methods if (term := method.penalty()) is not None]
        return torch.stack(terms).sum() if terms else None

    def before_step(self) -> None:
        """Add the gradient of :meth:`penalty`; the hooks call it.

        Raises:
            TersorError: If a change of shapes has parted the processes of a distributed training.
        """
        if self._new:
            check_replicas(self._new, self.reshaped)
            self._new.clear()
        with torch.enable_grad():
            penalty = self.penalty()
            if penalty is not None and penalty.requires_grad:
                penalty.backward()

    def after_step(self) -> None:
        """Count a step of the optimizer and let the methods act; the hooks call it."""
        self.step += 1
        self._new.clear()
        with torch.no_grad():
            for method in self.methods:
                method.after_step(self.step)

    def epoch_end(self, metrics: Mapping[str, float] | None = None) -> None:
        """Tell the methods that an epoch has ended; call it in a plain loop, the callbacks do it themselves.

        Args:
            metrics: What was measured on validation data, by name.
        """
        self.epoch += 1
        with torch.no_grad():
            for method in self.methods:
                method.epoch_end(self.epoch, metrics or {})

    def resolve(self, when: int | float) -> int:
        """``when`` in steps: an integer is one, a fraction in (0, 1) is a share of ``total_steps``.

        Raises:
            InvalidArgument: If it is a share and ``total_steps`` is not known.
        """
        if isinstance(when, int):
            return when
        if self.total_steps is None:
            raise InvalidArgument(f"{when} is a share of the training, whose length is not known; pass total_steps=...")
        return round(when * self.total_steps)

    def replace_parameter(self, old: nn.Parameter, new: nn.Parameter, select: Callable[[Tensor], Tensor]) -> None:
        """Let the optimizer go on with ``new`` where it had ``old``, which a method took out of the model.

        Args:
            old: What the optimizer knows.
            new: What is in the model now.
            select: From a tensor of the old shape to one of the new: applied to moments and the like, so that what stays keeps them.
        """
        if self._optimizer is None:
            self._gone[id(old)] = old
            return
        self.reshaped = self.step
        self._new.append(new)
        for group in self._optimizer.param_groups:
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
        if (state := self._optimizer.state.pop(old, None)) is not None:
            self._optimizer.state[new] = {
                key: select(value).clone() if isinstance(value, Tensor) and value.shape == old.shape else value
                for key, value in state.items()
            }

    def drop_parameter(self, old: nn.Parameter) -> None:
        """Let the optimizer forget ``old``, which a method took out of the model."""
        if self._optimizer is None:
            self._gone[id(old)] = old
            return
        for group in self._optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter is not old]
        self._optimizer.state.pop(old, None)

    def forget_moments(self) -> None:
        """Let the optimizer go on as if it had not stepped, for a method that begins the training anew."""
        if self._optimizer is not None:
            self._optimizer.state.clear()

    def detach(self) -> None:
        """Take the hooks off the optimizer; the methods stay in the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._optimizer = None

    def finalize(self) -> nn.Module:
        """End the compression: hooks off, constraints met exactly, plain modules of torch left. A second call does nothing.

        Returns:
            The model, which is the one that was given.
        """
        self.detach()
        if not self._finalized:
            with torch.no_grad():
                for method in self.methods:
                    method.finalize()
        self._finalized = True
        return self.model

    def report(self) -> dict[str, Any]:
        """What was reached, by method."""
        return {"step": self.step, "epoch": self.epoch, **{method.name: method.report() for method in self.methods}}

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside model and optimizer: nested dictionaries of tensors and plain values."""
        return {
            "step": self.step, "epoch": self.epoch, "total_steps": self.total_steps, "generator": self.generator.get_state(),
            "methods": [{"name": method.name, "state": method.state_dict()} for method in self.methods],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`: shapes are changed as they were then; load the model's values after it.

        Raises:
            InvalidArgument: If the state is of other methods.
        """
        names, known = [entry["name"] for entry in state["methods"]], [method.name for method in self.methods]
        if names != known:
            raise InvalidArgument(f"the state is of {', '.join(names)}, this compression has {', '.join(known)}")
        self.step, self.epoch, self.total_steps = state["step"], state["epoch"], state["total_steps"]
        self.generator.set_state(state["generator"])
        with torch.no_grad():
            for method, entry in zip(self.methods, state["methods"], strict=True):
                method.load_state_dict(entry["state"])

    def save(self, path: str | Path, job: Mapping[str, Any] | None = None) -> None:
        """Write model, optimizer and compression to one file, in one move; :meth:`load` goes on from it.

        Args:
            path: A ``.safetensors`` file.
            job: Plain JSON values that name the training, such as its data and rates; another job is not resumed.

        Raises:
            TersorError: If it cannot be written.
        """
        state: dict[str, Any] = {"compression": self.state_dict(), "model": self.model.state_dict()}
        if self._optimizer is not None:
            state["optimizer"] = self._optimizer.state_dict()
        tensors: dict[str, Tensor] = {}
        facts = _outline(state, "", tensors)
        checkpoints.write(Path(path), tensors, {"state": facts}, self._identity(job))

    def load(self, path: str | Path, job: Mapping[str, Any] | None = None) -> bool:
        """Go on from :meth:`save`: with a fresh model, the same methods, and a fresh optimizer attached if one was saved.

        Args:
            path: What was written.
            job: As it was given to :meth:`save`.

        Returns:
            Whether there was such a file.

        Raises:
            CorruptFile: If it is damaged.
            InvalidArgument: If it is of another job, or of one with an optimizer and none is attached.
        """
        found = checkpoints.read(Path(path), self._identity(job))
        if found is None:
            return False
        tensors, facts = found
        state = _filled(facts["state"], tensors)
        self.load_state_dict(state["compression"])
        self.model.load_state_dict(state["model"])
        if "optimizer" in state:
            if self._optimizer is None:
                raise InvalidArgument(f"the checkpoint {path} has the state of an optimizer; attach one before loading")
            self._optimizer.load_state_dict(state["optimizer"])
        return True

    def _identity(self, job: Mapping[str, Any] | None) -> dict[str, Any]:
        return {"methods": [repr(method) for method in self.methods], "model": type(self.model).__name__, **(job or {})}

    def trainer_callback(self) -> Any:
        """A callback for ``transformers.Trainer(callbacks=[...])``."""
        from tersor.training.adapters import trainer_callback

        return trainer_callback(self)

    def lightning_callback(self) -> Any:
        """A callback for ``lightning.Trainer(callbacks=[...])``."""
        from tersor.training.adapters import lightning_callback

        return lightning_callback(self)


def _outline(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as plain JSON, its tensors put into ``tensors`` under their paths.

    Dictionaries become lists of pairs: JSON would turn the integer keys of an optimizer's state into text.
    """
    if isinstance(value, Tensor):
        tensors[path] = value.detach().clone()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"pairs": [[key, _outline(entry, f"{path}/{key}", tensors)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_outline(entry, f"{path}/{index}", tensors) for index, entry in enumerate(value)]}
    return value


def _filled(outline: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`_outline`."""
    if not isinstance(outline, dict):
        return outline
    ((kind, content),) = outline.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "pairs":
        return {key: _filled(entry, tensors) for key, entry in content}
    filled = [_filled(entry, tensors) for entry in content]
    return tuple(filled) if kind == "tuple" else filled
