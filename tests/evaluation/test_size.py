from __future__ import annotations

import pytest

from tersor.evaluation import size_of
from tersor.weights import DenseWeight

from .conftest import llama


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_classes_add_up_to_what_is_stored(tied: bool):
    model = llama(tied=tied)
    size = size_of(model)
    table = 32 * 16 * 4
    assert size.total == model.nbytes
    assert size.embeddings == (table if tied else 2 * table)
    assert size.linear_parameters == 2 * (4 * 16 * 16 + 3 * 16 * 32)
    assert size.linears == 4 * size.linear_parameters
    assert size.other == 5 * 16 * 2  # ones, which half precision holds exactly
    assert size.bits_per_weight == pytest.approx(8 * model.nbytes / model.n_parameters)


def test_compressed_layers_are_counted_as_they_are_stored():
    model = llama()
    before = size_of(model)
    for name in model.linears():
        model.replace(name, DenseWeight(model.matrix(name).half()))
    after = size_of(model)
    assert after.linears == before.linears // 2
    assert after.embeddings == before.embeddings
    assert after.linear_bits_per_weight == 16
    assert after.to_dict()["total"] == model.nbytes
