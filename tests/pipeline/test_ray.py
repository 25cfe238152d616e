"""The same job on a local cluster of two workers: the same file, and a lost worker is survived."""

from __future__ import annotations

import os
import signal

import pytest

import tersor
from tersor.errors import InvalidArgument, TersorError
from tersor.pipeline.workers import RayPool, connect, make_pool

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_two_workers_write_the_file_that_one_process_writes(cluster, stories, recipe, tmp_path):
    tersor.compress(stories, recipe, output=tmp_path / "serial")
    tersor.compress(stories, recipe, output=tmp_path / "ray", on="ray")
    serial, spread = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("serial", "ray"))
    assert spread == serial


def _die_once(marker: str, value: int) -> int:
    if value == 3 and not os.path.exists(marker):
        with open(marker, "w") as file:
            file.write("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return value * value


def test_a_killed_worker_is_survived(cluster, tmp_path):
    pool = RayPool(connect("ray"))
    marker = str(tmp_path / "marker")
    assert list(pool.map(_die_once, ((marker, value) for value in range(8)))) == [value * value for value in range(8)]
    assert os.path.exists(marker)


def _refuse(value: int) -> int:
    raise InvalidArgument(f"no {value}")


def test_what_a_worker_refuses_reaches_the_user_as_it_is(cluster):
    with pytest.raises(TersorError, match="no 7"):
        list(RayPool(connect("ray")).map(_refuse, [(7,)]))


def test_another_place_is_refused():
    with pytest.raises(InvalidArgument, match="spark"):
        make_pool("spark")
