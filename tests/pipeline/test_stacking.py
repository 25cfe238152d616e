"""One call from a model to a folder of every size."""

from __future__ import annotations

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.models import load
from tersor.pipeline.stacking import stack


def test_the_folder_serves_every_size(stories, data_dir, tmp_path):
    made = stack(stories, tmp_path / "out", blocks=3, calibration="tinystories", tokens=1024)
    assert made.nbytes == made.sizes[-1] > made.sizes[0]
    assert all(len(weight) == 3 for weight in made.weights().values())
    tokens = torch.arange(1, 40)[None]
    theirs = stories.module(tokens).logits.log_softmax(-1)
    found = []
    for nbytes in (made.sizes[0], made.sizes[len(made.sizes) // 2], made.sizes[-1]):
        made.resize(nbytes)
        ours = made.module(tokens).logits.log_softmax(-1)
        found.append(float((theirs.exp() * (theirs - ours)).sum(-1).mean()))
    assert found[0] > found[1] > found[2]
    assert load(tmp_path / "out").fingerprint() == made.fingerprint()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"blocks": 0}, "blocks"), ({"tokens": 0}, "tokens"), ({"calibration": "no-such-text"}, "no-such-text")],
    ids=["blocks", "tokens", "text"],
)
def test_what_cannot_work_is_refused_and_nothing_is_left(options, said, stories, data_dir, tmp_path):
    with pytest.raises(InvalidArgument, match=said):
        stack(stories, tmp_path / "out", **{"calibration": "tinystories", "tokens": 1024, **options})
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_refused_first(stories, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InvalidArgument, match="was not written by tersor"):
        stack("no-such-model", tmp_path)
