"""The table of a model adds up to the file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from tersor.models import Model
from tersor.models.summary import summarize
from tersor.weights import DenseWeight, DictionaryWeight, SparseWeight, ZeroWeight


def test_rows_and_rest_are_the_file(tiny: SimpleNamespace, model: Model, tmp_path: Path):
    names = list(model.linears())
    model.replace(names[0], tiny.rounded(model.matrix(names[0])))
    model.replace(names[1], ZeroWeight(model.shape(names[1])))
    summary = summarize(model)
    model.save(tmp_path / "out")
    assert summary.file_nbytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert summary.nbytes == model.nbytes == summary.rest_nbytes + sum(row.nbytes for row in summary.layers)
    assert summary.rest_nbytes > 0
    assert len(summary.layers) == len(names) + 1
    kinds = {row.name: row.kind for row in summary.layers}
    assert (kinds[names[0]], kinds[names[1]], kinds[names[2]]) == ("quantized", "zero", "dense")
    assert json.loads(json.dumps(summary.to_dict()))["nbytes"] == model.nbytes
    assert f"{summary.nbytes:,} bytes of tensors" in str(summary)


def test_what_layers_share_counts_at_the_first_of_them(llama: Model):
    names = [name for name in llama.linears() if llama.shape(name)[1] == 32][:2]
    atoms = DenseWeight(torch.eye(32).half())
    for name in names:
        codes = llama.matrix(name)
        llama.replace(name, DictionaryWeight(SparseWeight.from_dense(codes, codes > 0), atoms))
    summary = summarize(llama)
    rows = {row.name: row.nbytes for row in summary.layers}
    first, second = (llama.weights()[name] for name in names)
    assert (rows[names[0]], rows[names[1]]) == (first.nbytes, second.nbytes - 2 * 32 * 32)
    assert summary.rest_nbytes + sum(rows.values()) == summary.nbytes == llama.nbytes
