"""KappaTune: fine-tune the matrices of lowest condition number, to forget less of what the model knew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from tersor.errors import InvalidArgument
from tersor.finetuning.selective import SelectiveFineTuning
from tersor.finetuning.spectrum import Normalize, Spectrum, spectral_report

Order = Literal["low", "high"]


def kappatune(
    model: nn.Module, *, n_tensors: int | None = None, budget_params: int | None = None,
    order: Order = "low", normalize: Normalize = "none", max_dim: int = 16384,
) -> SelectiveFineTuning:  # fmt: skip
    """Freeze ``model`` but for its best conditioned matrices.

    A matrix that stretches all directions alike has, by the paper's argument, not specialised on what it was trained for, so training
    it is said to overwrite the least. Use it instead of low-rank adapters where old abilities matter more than the size of what is
    stored for a task. Know two things: wide or tall matrices are better conditioned than square ones whatever they hold, so that
    without ``normalize`` the choice is mostly one of layer types; and every part of a model that trains little forgets little, so
    compare with :func:`random_of_equal_shapes` at the same loss.

    Args:
        model: A module that holds its weights dense; its flags ``requires_grad`` are changed, see :class:`SelectiveFineTuning`.
        n_tensors: How many matrices to train, 100 in the paper.
        budget_params: Instead, how many numbers to train at most.
        order: ``"high"`` for the worst conditioned ones, as a control.
        normalize: ``"none"`` for the paper's rule, ``"aspect"`` to divide by what a random matrix of the shape has, ``"trimmed"`` to
            look at 95 % of the singular values.
        max_dim: Matrices with more rows or columns, such as vocabularies, are never chosen.

    Returns:
        The selection; its :meth:`~SelectiveFineTuning.param_groups` go to an optimizer, or the model to any Trainer.

    Raises:
        InvalidArgument: On an option out of range, a budget below the smallest matrix, or a model that holds NaN.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 64))
        >>> kappatune(model, n_tensors=1).names
        ('1.weight',)

    Reference:
        Ludwig: "The Condition Number as a Scale-Invariant Proxy for Information Encoding in Neural Units", 2025.
    """
    report = spectral_report(model, max_dim=max_dim)
    return SelectiveFineTuning(
        model, select_by_condition(report, n_tensors=n_tensors, budget_params=budget_params, order=order, normalize=normalize)
    )


def select_by_condition(
    report: Sequence[Spectrum], *,
    n_tensors: int | None = None, budget_params: int | None = None, order: Order = "low", normalize: Normalize = "none",
) -> list[str]:  # fmt: skip
    """Names of the matrices of lowest condition, best first; equal ones in the order of the report.

    Args:
        report: Of :func:`spectral_report`; leave out what must not be chosen.
        n_tensors: How many.
        budget_params: Instead, how many numbers they may hold together; what no longer fits is passed over for what does.
        order: ``"low"`` or ``"high"``.
        normalize: As for :func:`kappatune`.

    Raises:
        InvalidArgument: If not exactly one size is given, it is out of range, or a choice is unknown.
    """
    for name, value, literal in (("order", order, Order), ("normalize", normalize, Normalize)):
        if value not in get_args(literal):
            raise InvalidArgument(f"{name} must be one of {', '.join(map(repr, get_args(literal)))}, got {value!r}")
    if (n_tensors is None) == (budget_params is None):
        raise InvalidArgument("give n_tensors or budget_params, one of them")
    sign = 1 if order == "low" else -1
    ranked = sorted(report, key=lambda spectrum: sign * spectrum.measure(normalize))
    if n_tensors is not None:
        _check_count("n_tensors", n_tensors, len(report))
        return [spectrum.name for spectrum in ranked[:n_tensors]]
    assert budget_params is not None
    smallest = min(spectrum.parameters for spectrum in report)
    if not isinstance(budget_params, int) or isinstance(budget_params, bool) or budget_params < smallest:
        raise InvalidArgument(f"budget_params must be an integer of at least {smallest}, the smallest matrix, got {budget_params!r}")
    chosen, left = [], budget_params
    for spectrum in ranked:
        if spectrum.parameters <= left:
            chosen.append(spectrum.name)
            left -= spectrum.parameters
    return chosen


def random_of_equal_shapes(report: Sequence[Spectrum], names: Iterable[str], *, seed: int) -> list[str]:
    """As many matrices of each shape as ``names`` holds, drawn at random: what of a selection is due to its shapes alone.

    Where ``names`` holds all matrices of a shape, so does the draw.

    Args:
        report: What ``names`` were chosen from.
        names: The selection to be controlled.
        seed: Of the draw.

    Raises:
        InvalidArgument: If a name is not in the report.
    """
    shapes = {spectrum.name: spectrum.shape for spectrum in report}
    wanted: dict[tuple[int, int], int] = {}
    for name in names:
        if name not in shapes:
            raise InvalidArgument(f"the report has no parameter {name!r}")
        wanted[shapes[name]] = wanted.get(shapes[name], 0) + 1
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for shape, count in wanted.items():
        same = [name for name, other in shapes.items() if other == shape]
        drawn += [same[index] for index in torch.randperm(len(same), generator=generator)[:count].tolist()]
    return drawn


def lora_config(model: nn.Module, names: Iterable[str], *, r: int = 16, alpha: int = 32, dropout: float = 0.05, **options: Any) -> Any:
    """A ``peft.LoraConfig`` that puts adapters on the linear layers of the selected parameters and nowhere else.

    Args:
        model: Where the names come from.
        names: Selected parameters, such as :func:`select_by_condition` returns.
        r: Rank of the adapters.
        alpha: Their scale, times ``r``.
        dropout: In front of them.
        **options: Further ones of ``LoraConfig``.

    Raises:
        InvalidArgument: If peft is not installed, or a parameter is not the weight of a linear layer.
    """
    make = _lora_config_class()
    targets = []
    for name in names:
        path, _, leaf = name.rpartition(".")
        layer = dict(model.named_modules()).get(path)
        if leaf != "weight" or not isinstance(layer, nn.Linear):
            raise InvalidArgument(f"{name} is not the weight of a linear layer, which an adapter needs; leave it out of the report")
        targets.append(path)
    # Full names in a list: peft would take a string for a pattern, and suffixes would match in every block.
    return make(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, **options)


def _lora_config_class() -> Callable[..., Any]:
    try:
        from peft import LoraConfig
    except ImportError:
        raise InvalidArgument("adapters need the package peft; run pip install 'tersor[finetuning]'") from None
    made: Callable[..., Any] = LoraConfig
    return made


def _check_count(name: str, value: object, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= highest:
        raise InvalidArgument(f"{name} must be an integer from 1 to {highest}, the matrices of the report, got {value!r}")
