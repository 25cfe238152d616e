"""The whole job declared: what the YAML file says, what the command line builds, what a run is checked against."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tersor.errors import InvalidArgument

SearchName = Literal["evopress", "sparse", "knapsack", "greedy", "random", "uniform"]
Fusion = Literal["auto", "none", "inputs", "sublayer", "block"]
STAGES = ((3, 256), (1, 2048))
CORRECTION = 0.25  # of what was lost before: more fits the calibration text rather than the model


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LevelSpec(BaseModel):
    """A method and its options. A list as the value of an option stands for one level a value.

    ``{method: gptq, bits: [2, 3, 4], group_size: 64}`` is three levels.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    method: str

    @model_validator(mode="after")
    def _known(self) -> LevelSpec:
        from tersor.layerwise import find_method

        find_method(self.method).check_options(self.options)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The method's options as given, lists not yet expanded."""
        return dict(self.model_extra or {})

    def expand(self) -> list[tuple[str, dict[str, Any]]]:
        """``(method, options)`` for each combination of the listed values."""
        keys = list(self.options)
        values = [value if isinstance(value, list) else [value] for value in self.options.values()]
        return [(self.method, dict(zip(keys, combination, strict=True))) for combination in itertools.product(*values)]


class Search(_Strict):
    """How the budget is spread over the layers.

    Attributes:
        method: ``uniform`` asks nothing of the data, ``knapsack`` adds up layer errors, ``evopress`` measures whole models, ``sparse`` a
            few of them.
        generations: Rounds of evopress; for ``sparse``, models measured in all.
        offspring: Candidates a round; for ``random``, candidates in all.
        tokens: Tokens of calibration text set aside for the search, never used to fit a layer.
        stages: ``(survivors, tokens)`` of each selection stage; the last must leave one survivor. The default asks for no
            more than ``tokens``.
        groups: Layers between which evopress moves bytes: of equal ``size``, of equal ``name``, or any (``none``).
        initial: Where evopress starts. ``fittest`` is the better of uniform and a knapsack that weighs each layer by what it costs alone,
            and the end of the search is held against both, on all search tokens.
        seed: Of the search.
    """

    method: SearchName = "evopress"
    generations: Annotated[int, Field(ge=0, le=100_000)] = 30
    offspring: Annotated[int, Field(ge=1, le=4096)] = 12
    stages: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] = STAGES
    tokens: Annotated[int, Field(ge=64)] = 8192
    groups: Literal["size", "name", "none"] = "none"
    initial: Literal["fittest", "uniform", "knapsack", "random"] = "fittest"
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _no_more_than_tokens(cls, data: Any) -> Any:
        if isinstance(data, dict) and "stages" not in data and isinstance(given := data.get("tokens"), int):
            return {**data, "stages": tuple((survivors, min(tokens, given)) for survivors, tokens in STAGES)}
        return data

    @property
    def measures(self) -> bool:
        """Whether it measures whole models."""
        return self.method in ("evopress", "sparse", "random")

    @model_validator(mode="after")
    def _stages(self) -> Search:
        if not self.stages or self.stages[-1][0] != 1:
            raise ValueError("stages must end with one survivor, for example [[3, 256], [1, 2048]]")
        largest = max(tokens for _, tokens in self.stages)
        if self.method in ("evopress", "sparse") and largest > self.tokens:
            raise ValueError(f"a stage asks for {largest} tokens but tokens is {self.tokens}")
        if self.method == "sparse" and self.generations < 3:
            raise ValueError(f"generations is {self.generations}, but a sparse search measures at least 3 models")
        return self


class Calibration(_Strict):
    """Text that layers are fitted on.

    Attributes:
        text: A file, a name known to ``tersor.data``, or ``auto``: sampled from the model itself.
        tokens: Tokens to fit on; at least 16 for each input feature of the widest layer is wise.
        held_out: Tokens set aside to measure each layer's error on text it was not fitted to; the allocators that add up errors use it.
        context: Tokens of a sequence.
        batch_size: Sequences run through a block at once.
        correction: Share of what the blocks before have lost that a layer is to make up for, see ``tersor.layerwise.corrected``; takes
            another pass over the text. By default a quarter where a method is fitted to text anyway, else nothing.
        seed: Of the sampling and of the order of sequences.
    """

    text: str = "auto"
    tokens: Annotated[int, Field(ge=64)] = 20480
    held_out: Annotated[int, Field(ge=0)] = 2048
    context: Annotated[int, Field(ge=8)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 8
    correction: Annotated[float | None, Field(ge=0, le=1)] = None
    seed: int = 0


class Evaluation(_Strict):
    """Text for the numbers in the report; never the calibration text.

    Attributes:
        text: A file, a name known to ``tersor.data``, or ``auto``: the language reference that ships with Python.
        tokens: Tokens to use; 0 measures nothing.
        context: Tokens of a window.
    """

    text: str = "auto"
    tokens: Annotated[int, Field(ge=0)] = 8192
    context: Annotated[int, Field(ge=8)] = 512


class Finetuning(_Strict):
    """Training of the compressed model towards the original, with its format and size as they are; see ``tersor.finetuning.pv_tuning``.

    Attributes:
        steps: Optimiser steps on the calibration tokens; 0 trains nothing.
        mode: ``pv`` trains values and codes, ``p`` values alone, ``straight_through`` rounds anew after each step.
        batch: Sequences a step.
        pilot: Steps of each of three short tunings that choose the rates on the tokens held out; by default a fifth of ``steps``. 0 takes
            the defaults of ``tersor.finetuning.PVConfig``.
        seed: Of the order of sequences.
    """

    steps: Annotated[int, Field(ge=0)] = 0
    mode: Literal["pv", "p", "straight_through"] = "pv"
    batch: Annotated[int, Field(ge=1)] = 2
    pilot: Annotated[int | None, Field(ge=0)] = None
    seed: int = 0

    @model_validator(mode="after")
    def _pilot(self) -> Finetuning:
        if self.pilot is not None and self.pilot > self.steps:
            raise ValueError(f"a pilot of {self.pilot} steps does not fit before {self.steps}; take fewer")
        return self

    @property
    def short(self) -> int:
        """``pilot``, its default resolved."""
        from tersor.finetuning.rates import default_steps

        return default_steps(self.steps) if self.pilot is None else self.pilot


class Recipe(_Strict):
    """A compression job.

    Attributes:
        model: What ``tersor.load`` takes; the command line names it instead.
        calibration: Text to fit on.
        search: How the budget is spread.
        finetuning: Training of what was found.
        evaluation: Text to measure on.
        levels: Choices for every linear layer of the blocks (and an untied head).
        embeddings: Choices for the embedding table with its tied head; empty keeps it dense.
        budget: ``"60MB"``, ``"45MiB"``, a ratio such as ``0.25`` or ``"3.2bpw"``; ``None`` needs a single level, or a budget
            that is given with the job.
        propagate: Whether a block is fitted on the outputs of the compressed or of the dense blocks before it.
        fused: Which layers must take the same level: ``inputs`` those that read the same input (q/k/v, gate/up), ``sublayer`` and
            ``block`` whole units, for depth pruning; ``auto`` is ``inputs`` for targets that demand it, else ``none``.
        target: Format to be exported afterwards; checked before any work.
        skip: Layers whose name contains one of these strings stay dense.
    """

    model: str | None = None
    levels: tuple[LevelSpec, ...]
    embeddings: tuple[LevelSpec, ...] = ()
    budget: str | float | int | None = None
    search: Search = Search()
    calibration: Calibration = Calibration()
    finetuning: Finetuning = Finetuning()
    evaluation: Evaluation = Evaluation()
    propagate: Literal["compressed", "dense"] = "compressed"
    fused: Fusion = "auto"
    target: Literal["native", "gguf", "compressed-tensors", "safetensors"] = "native"
    skip: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _listify(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in ("levels", "embeddings"):
                if isinstance(data.get(key), dict):
                    data = {**data, key: [data[key]]}
        return data

    @model_validator(mode="after")
    def _coherent(self) -> Recipe:
        if not self.levels:
            raise ValueError("levels is empty: name at least one method")
        if self.calibration.correction and self.propagate == "dense":
            raise ValueError("calibration.correction makes up for compressed blocks; it needs propagate: compressed")
        if self.finetuning.steps and not self.calibration.held_out:
            raise ValueError("finetuning chooses its rates and the step that is kept on tokens held out; calibration.held_out is 0")
        return self

    def check_decided(self) -> None:
        """Refuse a recipe that leaves open which level a layer gets.

        Raises:
            InvalidArgument: If it has several levels and no budget.
        """
        if self.budget is None and (len(self.expanded()) > 1 or len(self.expanded("embeddings")) > 1):
            raise InvalidArgument("several levels need a budget (--size or --ratio) to choose between them")

    def expanded(self, which: Literal["levels", "embeddings"] = "levels") -> list[tuple[str, dict[str, Any]]]:
        """Every ``(method, options)`` pair, listed values expanded, duplicates removed."""
        pairs = [pair for spec in getattr(self, which) for pair in spec.expand()]
        return [pair for index, pair in enumerate(pairs) if pair not in pairs[:index]]

    @property
    def fusion(self) -> Literal["none", "inputs", "sublayer", "block"]:
        """``fused`` with ``auto`` resolved by the target."""
        if self.fused != "auto":
            return self.fused
        return "inputs" if self.target == "compressed-tensors" else "none"

    @property
    def needs_inputs(self) -> bool:
        """Whether any level is fitted to calibration inputs."""
        from tersor.layerwise import find_method

        pairs = self.expanded() + self.expanded("embeddings")
        fitted = any(find_method(method).needs != "nothing" or options.get("clip") == "hessian" for method, options in pairs)
        return fitted or bool(self.calibration.correction)

    @property
    def correction(self) -> float:
        """The share of what was lost before that layers make up for, its default resolved."""
        if self.calibration.correction is not None:
            return self.calibration.correction
        return CORRECTION if self.propagate == "compressed" and self.needs_inputs else 0.0


def parse_recipe(data: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A :class:`Recipe` from plain data.

    Raises:
        InvalidArgument: Naming the key, what was given and what is allowed.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise InvalidArgument(f"{where}: {_sentence(error)}") from None


def load_recipe(path: str | Path) -> Recipe:
    """Read a YAML recipe.

    Raises:
        InvalidArgument: If the file is missing, is not YAML, or holds an unknown key or a value out of range.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(f"cannot read the recipe {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the recipe {path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise InvalidArgument(f"the recipe {path} must be a mapping with at least the key 'levels'")
    return parse_recipe(data, f"the recipe {path}")


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "recipe"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed are {', '.join(_allowed(first['loc']))}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], (dict, BaseModel)) else f" (given {first['input']!r})"
    return f"{key}: {message}{given}"


def _allowed(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Recipe
    for part in location[:-1]:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        model = field.annotation if field is not None else model
    return list(getattr(model, "model_fields", Recipe.model_fields))
