"""Tables that describe the code as it is: methods, representations, allocators, recipe keys, commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; line breaks and bars inside cells are made harmless."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(" ".join(text.replace("|", "\\|").split()) for text in line) + " |" for line in lines)


def methods() -> str:
    """Every layerwise method with its options and their defaults."""
    from tersor.layerwise import METHODS

    # Sorted: the order of registration is that of imports, which is nobody's order.
    found = sorted(METHODS.values(), key=lambda method: method.name)
    rows = [[f"`{m.name}`", m.needs, m.makes, _options(m.options), _first_sentence(m.function), m.paper] for m in found]
    return markdown(["method", "needs", "makes", "options", "what it does", "paper"], rows)


def representations() -> str:
    """Every kind of compressed weight."""
    from tersor.weights import KINDS

    # A test or a script of yours may have registered more.
    ours = sorted((kind, cls) for kind, cls in KINDS.items() if cls.__module__.startswith("tersor."))
    return markdown(["kind", "class", "what it is"], [[f"`{kind}`", f"`{cls.__name__}`", _first_sentence(cls)] for kind, cls in ours])


def allocators() -> str:
    """Every allocator."""
    from tersor.allocation import ALLOCATORS

    rows = [[f"`{a.name}`", "yes" if a.needs_fitness else "no", _first_sentence(a.function), a.paper] for a in ALLOCATORS.values()]
    return markdown(["`--search`", "measures whole models", "what it does", "from"], rows)


def recipe() -> str:
    """Every key of a recipe with type, default and meaning."""
    from tersor.pipeline.recipe import Recipe

    return markdown(["key", "allowed", "default", "meaning"], list(_keys(Recipe, "")))


def commands() -> str:
    """Every command with its arguments and options."""
    import typer

    from tersor.cli import app

    parts = []
    for name, command in _leaves("", typer.main.get_command(app)):
        rows = [[_flag(parameter), _default(parameter), parameter.help or ""] for parameter in command.params]
        parts.append(f"## tersor {name}\n\n{command.help}\n\n{markdown(['argument', 'default', 'meaning'], rows)}")
    return "\n\n".join(parts)


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Commands by all of their words."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from _leaves(f"{name} {word}".strip(), inner)


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods, "representations": representations, "allocators": allocators, "recipe": recipe, "commands": commands,
}  # fmt: skip


def _options(options: dict[str, Any]) -> str:
    shown = [name if default is inspect.Parameter.empty else f"{name}={default!r}" for name, default in options.items()]
    return ", ".join(f"`{text}`" for text in shown)


def _first_sentence(thing: Any) -> str:
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    return re.split(r"(?<=[.!?])\s", text)[0]


def _keys(model: Any, prefix: str) -> list[list[str]]:
    from pydantic import BaseModel

    meanings = _attributes(model)
    rows = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows += _keys(field.annotation, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else f"`{field.default!r}`"
            rows.append([f"`{prefix}{name}`", _allowed(field), default, meanings.get(name, "")])
    return rows


def _allowed(field: Any) -> str:
    text = re.sub(r"typing\.|tersor\.[\w.]*\.|<class '|'>", "", str(field.annotation))
    if "Literal[" in text:
        return ", ".join(f"`{value}`" for value in re.findall(r"'([^']*)'", text))
    if "Annotated" in text:
        return "list of pairs of whole numbers"
    signs = (("ge", "at least"), ("le", "at most"))
    bounds = [f"{sign} {getattr(limit, key):,}" for limit in field.metadata for key, sign in signs if hasattr(limit, key)]
    plain = {"int": "whole number", "str": "text", "tuple[str, ...]": "list of texts", "tuple[LevelSpec, ...]": "levels"}
    return ", ".join([plain.get(text, text.replace("str", "text").replace("|", "or")), *bounds])


def _attributes(model: Any) -> dict[str, str]:
    """The ``Attributes:`` section of a docstring as name to text."""
    section = (inspect.getdoc(model) or "").partition("Attributes:")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in found}


def _flag(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"
