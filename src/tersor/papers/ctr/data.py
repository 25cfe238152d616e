"""Click logs as integers: Frappe, and samples of Criteo and Avazu, each cut into train, validation and test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tersor.data import folder
from tersor.errors import CorruptFile, InvalidArgument

# An id seen once says nothing about the next click; the published recipes drop far more.
_MIN_COUNT = {"frappe": 1, "criteo": 2, "avazu": 2}
_CRITEO_NUMBERS, _CRITEO_COLUMNS, _AVAZU_COLUMNS, _FRAPPE_FIELDS = 13, 40, 24, 10
# Shares of the rows that are not in the train split.
_VALIDATION, _TEST = 0.15, 0.15
_SPLIT_SEED = 2020


@dataclass(frozen=True)
class Clicks:
    """Rows of a click log.

    Attributes:
        ids: int64 ``[rows, fields]``, counted from zero within each field.
        labels: float32 ``[rows]``, 1 for a click.
    """

    ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def first(self, rows: int) -> Clicks:
        """The first ``rows`` of them."""
        return Clicks(self.ids[:rows], self.labels[:rows])


@dataclass(frozen=True)
class ClickData:
    """A click log in three parts that share no row.

    Attributes:
        name: Its name.
        sizes: Ids of each field. Id 0 is every value that the train part does not hold often enough to be told apart.
        train: What is fitted.
        validation: What choices are made on.
        test: What is reported.
    """

    name: str
    sizes: tuple[int, ...]
    train: Clicks
    validation: Clicks
    test: Clicks

    def counts(self) -> list[Tensor]:
        """How often every id of each field occurs in the train part, ``[size]`` each."""
        return [torch.bincount(self.train.ids[:, index], minlength=size) for index, size in enumerate(self.sizes)]

    def subset(self, train: int, validation: int, test: int) -> ClickData:
        """The same with at most so many rows in each part."""
        return replace(self, train=self.train.first(train), validation=self.validation.first(validation), test=self.test.first(test))


def load_clicks(name: str) -> ClickData:
    """A click log of ``$TERSOR_DATA/ctr``.

    Frappe comes with a test file of its own; what is published as its validation file is cut into train and validation. The files of
    the Criteo and Avazu samples hold too few test rows to compare models, so all their rows are shuffled and cut 70 : 15 : 15.

    Args:
        name: ``"frappe"``, ``"criteo"`` or ``"avazu"``.

    Raises:
        InvalidArgument: If there is no such log, or ``TERSOR_DATA`` does not hold it.
        CorruptFile: If a file has rows of another width or labels other than a click and none.
    """
    readers: dict[str, Callable[[Path], tuple[np.ndarray, np.ndarray, int]]] = {
        "frappe": _read_frappe, "criteo": _read_criteo, "avazu": _read_avazu,
    }  # fmt: skip
    if name not in readers:
        raise InvalidArgument(f"unknown click log {name!r}; known are {', '.join(readers)}")
    columns, labels, published_test = readers[name](folder("ctr") / name)
    rows = len(labels)
    generator = np.random.default_rng(_SPLIT_SEED)
    order = generator.permutation(rows - published_test)
    test = np.arange(rows - published_test, rows) if published_test else order[: int(_TEST * rows)]
    rest = order if published_test else order[len(test) :]
    validation, train = np.split(rest, [int(_VALIDATION * rows)])
    ids, sizes = _encode(columns, train, _MIN_COUNT[name])

    def part(index: np.ndarray) -> Clicks:
        return Clicks(torch.from_numpy(ids[index]), torch.from_numpy(labels[index]))

    return ClickData(name, sizes, part(train), part(validation), part(test))


def _encode(columns: np.ndarray, train: np.ndarray, min_count: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Number the values of each column that the rows ``train`` hold at least ``min_count`` times from 1; all others are 0."""
    ids = np.zeros(columns.shape, dtype=np.int64)
    sizes = []
    for index in range(columns.shape[1]):
        values, inverse = np.unique(columns[:, index], return_inverse=True)
        known = np.bincount(inverse[train], minlength=len(values)) >= min_count
        ids[:, index] = np.where(known, np.cumsum(known), 0)[inverse]
        sizes.append(int(known.sum()) + 1)
    return ids, tuple(sizes)


def _read_frappe(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    parts = [_lines(path / f"frappe.{part}.libfm", " ", _FRAPPE_FIELDS + 1) for part in ("validation", "test")]
    cells = np.concatenate(parts)
    return cells[:, 1:], _labels(cells[:, 0], "-1", path), len(parts[1])


def _read_criteo(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    cells = np.concatenate([_lines(path / f"{part}.csv", "\t", _CRITEO_COLUMNS) for part in ("train", "dev", "test")])
    labels = _labels(cells[:, 0], "0", path)
    numbers = np.vectorize(_bucket, otypes=[cells.dtype])(cells[:, 1 : 1 + _CRITEO_NUMBERS])
    return np.concatenate([numbers, cells[:, 1 + _CRITEO_NUMBERS :]], 1), labels, 0


def _read_avazu(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    cells = np.concatenate([_lines(path / f"{part}.csv", ",", _AVAZU_COLUMNS) for part in ("train", "dev", "test")])
    cells = cells[cells[:, 0] != "id"]
    labels = _labels(cells[:, 1], "0", path)
    # Of the time YYMMDDHH only the hour of the day comes back; the first column numbers the rows.
    hours = np.array([[hour[-2:]] for hour in cells[:, 2]], dtype=cells.dtype)
    return np.concatenate([hours, cells[:, 3:]], 1), labels, 0


def _bucket(cell: str) -> str:
    """A count as a category: itself up to 2, then the whole part of its squared logarithm, as the winners of the Criteo challenge did."""
    if not cell:
        return "missing"
    number = int(cell)
    return cell if number <= 2 else f"log {int(math.log(number) ** 2)}"


def _lines(path: Path, separator: str, width: int) -> np.ndarray:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from None
    cells = [line.split(separator) for line in lines if line]
    wrong = next((number for number, row in enumerate(cells, 1) if len(row) != width), None)
    if wrong is not None or not cells:
        raise CorruptFile(f"{path}: row {wrong or 1} does not hold {width} values")
    return np.array(cells)


def _labels(cells: np.ndarray, negative: str, path: Path) -> np.ndarray:
    if not np.isin(cells, (negative, "1")).all():
        raise CorruptFile(f"{path}: labels must be {negative} or 1")
    return (cells == "1").astype(np.float32)
