"""What goes wrong silently in a training is refused at the door, in one sentence that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import training_cases as cases
from torch import nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument, TersorError
from tersor.training import (
    LAPP,
    SAP,
    ClassAwareLottery,
    ClassDependentLoss,
    Compression,
    GradualPruning,
    LotteryTicket,
    Maestro,
    Method,
    ParameterSharing,
    TrainedRankPruning,
    export_onnx,
    factor_layer,
    magnitude_mask,
    save_module,
    to_sparse,
)

PIXELS, LABELS = cases.batch()
SPARSE = GradualPruning(0.5)


def _compression(method: Any, model: Any = None, **options: Any) -> Compression:
    return Compression(model or cases.SmallNet(), [method], total_steps=20, example_inputs=(PIXELS[:2],), **options)


def _with(value: float) -> nn.Module:
    model = cases.SmallNet()
    model.conv2.weight.data[0, 0, 0, 0] = value
    return model


def _twice() -> Compression:
    method = GradualPruning(0.5)
    return Compression(cases.SmallNet(), [method, method])


def _again() -> Compression:
    method = GradualPruning(0.5)
    _compression(method)
    return _compression(method)


def _ended() -> Compression:
    compression = _compression(GradualPruning(0.5))
    model = compression.finalize()
    return compression.attach(torch.optim.SGD(model.parameters()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Compression(cases.SmallNet(), SPARSE), "methods must be a list"),  # type: ignore[arg-type]
        (lambda: Compression(cases.SmallNet(), []), "no method was given"),
        (lambda: Compression(cases.SmallNet(), ["sap"]), "a method must be an object such as .*got 'sap'"),  # type: ignore[list-item]
        (lambda: Compression(cases.SmallNet(), [SAP]), "got the class SAP; call it"),  # type: ignore[list-item]
        (lambda: Compression("model", [SPARSE]), "model must be a torch.nn.Module, got str"),  # type: ignore[arg-type]
        (lambda: _compression(GradualPruning(0.5), seed="a"), "seed must be an integer"),
        (lambda: Compression(cases.SmallNet(), [SPARSE], example_inputs=PIXELS), "must be a tuple"),  # type: ignore[arg-type]
        (lambda: _compression(GradualPruning(0.5), _with(torch.nan)), "conv2.weight holds NaN or Inf"),
        (lambda: _compression(GradualPruning(0.5), _with(torch.inf)), "conv2.weight holds NaN or Inf"),
        (lambda: _compression(GradualPruning(0.5, targets="conv1")), r"targets must be a list of names.*write \['conv1'\]"),
        (lambda: _compression(SAP(ignore="head")), "ignore must be a list"),
        (_twice, "the same GradualPruning was given twice"),
        (_again, "serves another Compression already"),
        (_ended, "ended with finalize"),
        (lambda: _compression(SAP()).attach("sgd"), "optimizer must be a torch.optim.Optimizer, got str"),  # type: ignore[arg-type]
        (lambda: _compression(SAP()).attach(torch.optim.SGD(cases.SmallNet().parameters())), "holds no parameter of the model"),
        (lambda: ClassDependentLoss(1.5), "classes must be a label or a list"),  # type: ignore[arg-type]
        (lambda: GradualPruning(0.5, pattern="2:4"), "pattern must be a pair of integers"),  # type: ignore[arg-type]
        (lambda: GradualPruning(0.5, pattern=(2, 4), block=(2, 2)), "exclude each other"),
        (lambda: GradualPruning(0.5, block=(2, 2), scope="global"), "the global scope exclude each other"),
        (lambda: magnitude_mask(torch.ones(4, 4), 1.0), "sparsity must be a number of at least 0 and below 1"),
        (lambda: magnitude_mask(torch.full((4, 4), torch.nan), 0.5), "holds NaN or Inf"),
        (lambda: magnitude_mask(torch.ones(4, 6), 0.5, pattern=(2, 4)), "has 6 inputs, which groups of 4 do not divide"),
        (lambda: magnitude_mask(torch.ones(4, 6), 0.5, block=(3, 2)), "4 x 6 does not divide into blocks of 3 x 2"),
        (lambda: magnitude_mask(torch.ones(6), 0.5, pattern=(2, 4)), "is a vector"),
        (lambda: to_sparse(cases.SmallNet(), least=2.0), "least must be a fraction"),
        (lambda: factor_layer(nn.BatchNorm1d(4), 1), "not a BatchNorm1d"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (torch.ones(8, 4), torch.arange(8), "label 7 is out of range: the network tells 4 apart, 0 to 3"),
        (torch.ones(8, 4), -torch.arange(8), "label -7 is out of range"),
        (torch.ones(8, 1), torch.arange(8), "label 7 is out of range: the network tells 2 apart"),
        (torch.ones(8, 4), torch.ones(8), "labels must be integers, got float32"),
        (torch.ones(8, 4), torch.arange(4), r"got \[8, 4\] and \[4\]"),
        (torch.ones(8, 4, 2), torch.arange(8), r"got \[8, 4, 2\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(logits: torch.Tensor, labels: torch.Tensor, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        ClassDependentLoss(1)(logits, labels)


DIVERGING = [
    GradualPruning(0.5, begin=0, end=4, frequency=1), TrainedRankPruning(0.9, period=1), LAPP(0.5, end=4, frequency=1), Maestro(),
    SAP(rounds=2), LotteryTicket(rounds=2), ClassAwareLottery(rounds=2),
]  # fmt: skip


@pytest.mark.parametrize("method", DIVERGING, ids=lambda method: method.name)
def test_a_training_that_diverged_is_told(method: Method) -> None:
    compression = _compression(method)
    optimizer = torch.optim.SGD(compression.model.parameters(), lr=0.1)
    compression.attach(optimizer)
    next(weight for name, weight in compression.model.named_parameters() if "conv2" in name and weight.ndim > 1).data[0] = torch.nan
    F.cross_entropy(compression.model(PIXELS), LABELS).backward()

    def go_on() -> None:
        optimizer.step()
        compression.epoch_end()

    with pytest.raises(TersorError, match=r"conv\d.* not finite after step 1: training diverged"):
        go_on()


@pytest.mark.parametrize(
    "make", [lambda: Maestro(), lambda: ParameterSharing(2.0), lambda: LAPP(0.6), lambda: GradualPruning(0.5, regrow=True)]
)
def test_a_model_in_the_middle_of_its_training_is_not_saved(make: Callable[[], Method], tmp_path: Path) -> None:
    compression = _compression(make())
    with pytest.raises(InvalidArgument, match="call finalize"):
        save_module(compression.model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_second_finalize_changes_nothing() -> None:
    compression = _compression(Maestro(threshold=0.0))
    model = compression.finalize()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert compression.finalize() is model
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_inputs_that_do_not_run_are_refused_by_the_export(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(InvalidArgument, match="do not run through the model"):
        export_onnx(cases.SmallNet(), (torch.ones(2, 5, 8, 8),), tmp_path / "model.onnx")
