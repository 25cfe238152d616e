"""What README.md and docs/ show works: Python runs, the recipe is valid, commands and flags exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of ``page`` in ``language``."""
    return [code for found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


ROOMS = [
    "weights", "layerwise", "allocation", "coding", "finetuning", "training", "information", "distributed", "limits", "kvcache",
    "attention", "pictures", "features-and-meshes",
]  # fmt: skip


@pytest.mark.parametrize("name", ROOMS)
def test_examples_of_rooms_run(name: str):
    examples = blocks(ROOT / "docs" / f"{name}.md", "python")
    assert examples
    with torch.random.fork_rng():
        for code in examples:
            exec(compile(code, name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples_compile(page: Path):
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")


def test_the_recipe_is_valid_and_means_what_is_said():
    from tersor.pipeline.recipe import parse_recipe

    (example,) = blocks(ROOT / "docs" / "recipe.md", "yaml")
    recipe = parse_recipe(yaml.safe_load(example))
    assert len(recipe.expanded()) == 6
    assert len(recipe.expanded("embeddings")) == 4


@pytest.mark.parametrize(
    ("written", "expected"),
    [("60MB", 60_000_000), ("2GB", 2_000_000_000), ("45MiB", 45 * 2**20), ("1GiB", 2**30), ("0.25", 50), ("25%", 50), ("3.2bpw", 40)],
)
def test_budgets_mean_what_is_said(written: str, expected: int):
    from tersor.allocation import parse_budget

    assert f"`{written}`" in (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert parse_budget(written, dense_bytes=200, n_weights=100) == expected


def shown_commands() -> list[tuple[str, str]]:
    """``(page, line)`` of every ``tersor`` command in a shell block, and of the Makefile."""
    lines = [(page.name, line) for page in PAGES for code in blocks(page, "sh") for line in code.splitlines() if line.startswith("tersor ")]
    recipes = (ROOT / "Makefile").read_text(encoding="utf-8")
    return [*lines, *(("Makefile", line) for line in re.findall(r"\$\(BIN\)/(tersor .*)", recipes))]


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_commands_and_flags_exist(page: str, line: str):
    import typer

    from tersor.cli import app

    command: Any = typer.main.get_command(app)
    _, *words = shlex.split(line, comments=True)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    used = {word.split("=")[0] for word in words if word.startswith("-")}
    # Arguments of a formula are the formula's, which tests of the command try.
    assert command.context_settings.get("ignore_unknown_options") or used <= known | {"--help"}, f"{page} shows {used - known}"
