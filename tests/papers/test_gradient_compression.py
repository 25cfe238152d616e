"""What the experiments of EControl and L-GreCo share, without the processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tersor.papers.gloo_training import CLASSES, Job, batch, curve_of, network, row_of
from tersor.papers.gloo_workers import OUTPUT, run_workers
from tersor.papers.plots import line_chart


def reports(digests: tuple[str, str] = ("a", "a")) -> list[dict]:
    """Two workers that lost 1 and 3 and sent 2 MB and 4 MB in ten steps."""
    return [
        {"curve": [{"step": 10, "loss": loss, "socket_bytes": sent}], "digests": {"10": digest}, "accuracy": 0.5, "traffic": None}
        for loss, sent, digest in zip((1.0, 3.0), (2_000_000, 4_000_000), digests, strict=True)
    ]


def test_curves_are_means_over_workers():
    assert curve_of("run", reports()) == [{"method": "run", "step": 10, "training loss": 2.0, "sent (MB a worker)": 3.0}]
    row = row_of("run", reports())
    assert (row["bytes a step"], row["replicas bit-equal"]) == (300_000, True)
    assert not row_of("run", reports(("a", "b")))["replicas bit-equal"]


def test_batches_are_of_the_classes_of_a_worker_and_repeat():
    data = {"x": torch.arange(400.0)[:, None], "y": torch.arange(400) % 10}
    for rank, classes in enumerate(CLASSES):
        x, y = batch(data, rank, 3, 0)
        assert set(y.tolist()) <= set(classes)
        assert torch.equal(x, batch(data, rank, 3, 0)[0])
        assert not torch.equal(x, batch(data, rank, 4, 0)[0])


def test_networks_start_by_their_seed():
    weights = [network(seed)[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_workers_get_their_rank_and_the_dead_are_reported(tmp_path: Path):
    code = "import sys; print('rank', sys.argv[1], 'of', sys.argv[2]); sys.exit(int(sys.argv[1]))"
    assert run_workers(["-c", code], 3, tmp_path) == [0, 1, 2]
    assert (tmp_path / OUTPUT.format(rank=2)).read_text().strip() == "rank 2 of 3"


def test_workers_that_hang_are_killed(tmp_path: Path):
    (code,) = run_workers(["-c", "import time; time.sleep(600)"], 1, tmp_path, timeout=1.0)
    assert code < 0 or sys.platform == "win32"


def test_a_chart_is_a_picture_with_its_labels(tmp_path: Path):
    rows = [{"method": name, "step": step, "loss": 1 / step} for name in ("one", "two") for step in (0.5, 1.0, 2.0)]
    svg = line_chart(
        [*rows, {"method": "one", "step": -1.0, "loss": 1.0}, {"step": 3}], "step", "loss", tmp_path / "new" / "x.svg", log="xy"
    )
    text = svg.read_text(encoding="utf-8")
    assert text.startswith("<svg")
    for label in ("step", "loss", "one", "two"):
        assert f">{label}<" in text


@pytest.mark.parametrize("key", ["econtrol", "lgreco"])
def test_experiments_are_found(key: str):
    from tersor.papers.frame import find_paper

    paper = find_paper(key)
    assert paper is not None
    assert paper.key == key


def test_jobs_are_plain_data():
    import json
    from dataclasses import asdict

    assert Job(**json.loads(json.dumps(asdict(Job("a", "none"))))) == Job("a", "none")
