"""The state of a search on disk: a killed search goes on as if nothing had happened."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tersor.allocation.problem import Choices, Problem
from tersor.errors import CorruptFile, InvalidArgument
from tersor.files import write_json

FORMAT = 1


@dataclass
class SearchState:
    """What a search is after a whole generation.

    The random stream of a generation is a function of the seed (in ``settings``) and the generation's number, so these two are the whole
    state of the generator.

    Attributes:
        problem: Digest of the problem.
        settings: Everything else the result depends on, apart from the fitness and the number of generations.
        parent: Its choices for the original units.
        generation: Generations done; 0 after the choice of the first parent.
        fitness: Of the parent on the last minibatch; ``None`` if it was never judged or is not finite.
        evaluations: Candidates judged.
        tokens: Candidates times tokens.
        history: One row a generation.
    """

    problem: str
    settings: dict[str, Any]
    parent: Choices = ()
    generation: int = 0
    fitness: float | None = None
    evaluations: int = 0
    tokens: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the state so that ``path`` holds either the old or the new one, whenever the process dies.

        Raises:
            TersorError: If the file cannot be written.
        """
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path, problem: Problem, settings: dict[str, Any]) -> SearchState | None:
        """The state in ``path``; ``None`` if there is no file.

        Raises:
            InvalidArgument: If it belongs to another problem or to other settings.
            CorruptFile: If it is not a state or contradicts ``problem``.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT:
                raise ValueError("another format")
            state = cls(**data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptFile(f"the search state {path} cannot be read ({error}); delete it to start again") from None
        if state.problem != problem.digest:
            raise InvalidArgument(f"the search state {path} was made for another problem; delete it or name another file")
        for key in settings.keys() | state.settings.keys():
            before, now = state.settings.get(key), settings.get(key)
            if before != now:
                raise InvalidArgument(
                    f"the search state {path} was made with {key}={before!r}, not {now!r}; delete it or name another file"
                )
        try:
            state.parent = problem.check(state.parent, "its parent")
            if state.generation != len(state.history):
                raise ValueError("its history is incomplete")
        except (TypeError, ValueError) as error:
            raise CorruptFile(f"the search state {path} contradicts the problem ({error}); delete it to start again") from None
        return state
