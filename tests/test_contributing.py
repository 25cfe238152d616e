"""The worked examples of CONTRIBUTING.md run as they stand there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.layerwise import METHODS, find_method
from tersor.weights import KINDS, DenseWeight, weight_from_config

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python title=\"src/([\w/]+)\.py\"\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def examples() -> Iterator[dict[str, ModuleType]]:
    """The example modules by dotted name, forgotten again afterwards."""
    methods, kinds = dict(METHODS), dict(KINDS)
    loaded = {}
    try:
        for path, code in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
            name = path.replace("/", ".")
            loaded[name] = sys.modules[name] = ModuleType(name)
            exec(compile(code, name, "exec"), loaded[name].__dict__)
        yield loaded
    finally:
        for name in loaded:
            del sys.modules[name]
        for registry, before in ((METHODS, methods), (KINDS, kinds)):
            registry.clear()
            registry.update(before)


def test_there_is_one_of_each(examples):
    assert list(examples) == ["tersor.weights.kronecker", "tersor.layerwise.kronecker", "tersor.papers.kronecker"]


@pytest.mark.parametrize("seed", range(3))
def test_the_representation_is_what_it_says(examples, seed: int):
    random = torch.Generator().manual_seed(seed)
    left, right = torch.randn(3, 4, generator=random), torch.randn(5, 2, generator=random)
    weight = examples["tersor.weights.kronecker"].KroneckerWeight(left, DenseWeight(right.half()))
    x = torch.randn(2, 7, 8, generator=random)
    assert torch.equal(weight.dense(), torch.kron(left, right.half().float()))
    torch.testing.assert_close(weight(x), x @ weight.dense().T)
    with torch.device("meta"):
        empty = weight_from_config(weight.config)
    empty.load_state_dict(weight.state_dict(), assign=True)
    assert torch.equal(empty.dense(), weight.dense())
    assert weight.nbytes == 4 * left.numel() + 2 * right.numel()


@pytest.mark.parametrize("seed", range(3))
def test_the_method_recovers_a_kronecker_product(examples, seed: int):
    random = torch.Generator().manual_seed(seed)
    weight = torch.kron(torch.randn(4, 3, generator=random), torch.randn(2, 5, generator=random))
    found = find_method("kronecker").function(weight, None, rows=2, columns=5)
    torch.testing.assert_close(found.dense(), weight)
    assert found.report["captured"] == pytest.approx(1)
    with pytest.raises(InvalidArgument, match="3 x 5 does not divide a weight of shape"):
        find_method("kronecker").function(weight, None, rows=3, columns=5)


def test_the_paper_measures_its_claim(examples):
    result = examples["tersor.papers.kronecker"].run(quick=True)
    assert result.holds
    assert {row["bytes"] for row in result.rows} == {4 * 2 * 64}
