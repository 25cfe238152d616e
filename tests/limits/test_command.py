"""``tersor limits`` from outside."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from tersor.cli import app
from tersor.errors import InvalidArgument
from tersor.limits import BOUNDS

RUNNER = CliRunner()


def test_without_a_name_it_lists_every_bound():
    done = RUNNER.invoke(app, ["limits", "--json"])
    assert {row["name"] for row in json.loads(done.stdout)} >= set(BOUNDS)


def test_a_bound_for_given_numbers_and_where_systems_stand():
    done = RUNNER.invoke(app, ["limits", "stationary-points", "eps=1e-5", "--json"])
    said = json.loads(done.stdout)
    assert said["value"]["bound"] == BOUNDS["stationary-points"].calculator(eps=1e-5)
    assert {row["system"] for row in said["measured"]} >= {"Adam", "L-BFGS"}


def test_arguments_may_be_written_as_options():
    said = [
        json.loads(RUNNER.invoke(app, ["limits", "attention-io", "--no-measure", "--json", *words]).stdout)["value"]
        for words in (["n=512", "d=16", "m=2048"], ["--n", "512", "--d=16", "m=2048"])
    ]
    assert said[0] == said[1]


def test_as_text_it_names_the_wrong_formula_and_where_it_is_proven():
    done = RUNNER.invoke(app, ["limits", "stationary-points", "--no-measure"])
    assert "the exponent is -(1+p)/p" in done.stdout
    assert "Carmon" in done.stdout
    assert "measured" not in done.stdout


def test_bad_words_are_refused():
    for words in (["nothing"], ["stationary-points", "eps"], ["stationary-points", "--eps"], ["stationary-points", "eps=1", "eps=2"]):
        assert isinstance(RUNNER.invoke(app, ["limits", *words]).exception, InvalidArgument)
