"""What the command line builds when the user says little: sensible menus, each value with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tersor.errors import InvalidArgument
from tersor.pipeline.recipe import Recipe, load_recipe, parse_recipe

# Below two bits scalar grids collapse, above four a layer gains little that another could not use better.
BITS = [2, 3, 4, 6]
EMBEDDING_BITS = [3, 4, 6, 8]
SPARSITIES = [0.25, 0.375, 0.5, 0.625, 0.75]
KEEPS = [0.5, 0.6, 0.7, 0.8, 0.9]
# Flag, and the section and key of the recipe that it sets.
_SECTIONS = (
    ("search", "search", "method"),
    ("calibration", "calibration", "text"),
    ("correction", "calibration", "correction"),
    ("evaluation", "evaluation", "text"),
    ("tune", "finetuning", "steps"),
)


def default_menu(method: str | None, given: dict[str, Any], searched: bool) -> dict[str, Any]:
    """The levels of one method: what was given, and a menu of the option that sets the size if a budget is to choose from it."""
    from tersor.layerwise import find_method

    name = method or "gptq"
    options = find_method(name).options
    menu = {"method": name, **given}
    if name == "gptq" and method is None:
        menu |= {"act_order": True, "clip": "hessian"}
    if searched:
        for option, values in (("bits", BITS), ("sparsity", SPARSITIES), ("keep", KEEPS)):
            if option in options and not given.keys() & {"bits", "sparsity", "keep", "rank", "keep_n"}:
                menu[option] = values
                break
    return menu


def method_options(given: Sequence[str]) -> dict[str, Any]:
    """``{"keep": 0.5}`` of ``["keep=0.5"]``: values as a recipe would read them.

    Raises:
        InvalidArgument: If one has no name or value, is not YAML, or a name comes twice.
    """
    options: dict[str, Any] = {}
    for item in given:
        name, _, written = item.partition("=")
        try:
            value = yaml.safe_load(written)
        except yaml.YAMLError:
            value = None
        if not name or value is None or name in options:
            raise InvalidArgument(f"write each option once as name=value, such as keep=0.5 or bits=[3, 4], not {item!r}")
        options[name] = value
    return options


def job_recipe(path: Path | None, **flags: Any) -> Recipe:
    """The recipe that the command line's flags describe, or the file at ``path`` with the flags laid over it.

    Args:
        path: A YAML recipe.
        **flags: ``method``, ``bits``, ``group_size``, ``sparsity``, ``size``, ``ratio``, ``search``, ``calibration``, ``correction``,
            ``evaluation``, ``tune``, ``target``, ``seed``; ``None`` for those not given. ``options`` holds further options of the method.

    Raises:
        InvalidArgument: If flags contradict each other or a value is not allowed.
    """
    if flags["size"] is not None and flags["ratio"] is not None:
        raise InvalidArgument("give --size or --ratio, not both")
    budget = flags["size"] if flags["size"] is not None else flags["ratio"]
    data: dict[str, Any] = load_recipe(path).model_dump(mode="json") if path is not None else {}
    given = {key: flags[key] for key in ("bits", "group_size", "sparsity") if flags[key] is not None}
    if twice := given.keys() & flags["options"].keys():
        raise InvalidArgument(f"{min(twice)} is given twice; write it as --{min(twice).replace('_', '-')} or as --option, not both")
    given |= flags["options"]
    if path is not None and (flags["method"] or given):
        raise InvalidArgument(
            "a recipe names its own methods; give --recipe or --method, --bits, --group-size, --sparsity and --option, not both"
        )
    if path is None:
        if flags["method"] is None and budget is None:
            raise InvalidArgument("say how small: --size 60MB, --ratio 0.25, --method gptq --bits 3, or a --recipe")
        data["levels"] = [default_menu(flags["method"], given, budget is not None)]
        if budget is not None:
            data["embeddings"] = [{"method": "rtn", "bits": EMBEDDING_BITS, "clip": "hessian"}]
    if budget is not None:
        data["budget"] = budget
    if flags["target"] is not None:
        data["target"] = flags["target"]
    for flag, section, key in _SECTIONS:
        if (value := flags[flag]) is not None:
            data[section] = {**data.get(section, {}), key: value}
    if flags["seed"] is not None:
        for section in ("search", "calibration", "finetuning"):
            data[section] = {**data.get(section, {}), "seed": flags["seed"]}
    return parse_recipe(data, "the flags" if path is None else f"the recipe {path}")
