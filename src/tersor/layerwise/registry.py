"""The one list of layerwise methods: what each needs, makes and comes from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from tersor.errors import InvalidArgument
from tersor.weights.base import CompressedWeight

Needs = Literal["nothing", "inputs", "gradients"]
MethodFunction = Callable[..., CompressedWeight]
F = TypeVar("F", bound=MethodFunction)


@dataclass(frozen=True)
class Method:
    """A registered layerwise method ``function(weight, stats, **options) -> CompressedWeight``.

    Attributes:
        name: What the user types.
        needs: ``"nothing"``, ``"inputs"`` (a :class:`LayerStats`) or ``"gradients"``.
        makes: Kind of the weight it returns.
        paper: Authors, title and year.
        function: The method itself; its keyword-only parameters are its options.
    """

    name: str
    needs: Needs
    makes: str
    paper: str
    function: MethodFunction

    @property
    def options(self) -> dict[str, Any]:
        """Option name to default value; ``inspect.Parameter.empty`` marks a required one."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check_options(self, options: dict[str, Any]) -> None:
        """Refuse an option that the method does not take, naming those that it does.

        Raises:
            InvalidArgument: On an unknown option.
        """
        known = self.options
        for key in options:
            if key not in known:
                raise InvalidArgument(f"method {self.name!r} takes no option {key!r}; it takes {', '.join(known)}")


METHODS: dict[str, Method] = {}


def register(name: str, *, needs: Needs, makes: str, paper: str) -> Callable[[F], F]:
    """Register a function as the layerwise method ``name``."""

    def wrap(function: F) -> F:
        METHODS[name] = Method(name, needs, makes, paper, function)
        return function

    return wrap


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        InvalidArgument: If there is none; the sentence lists those that there are.
    """
    if name not in METHODS:
        raise InvalidArgument(f"unknown method {name!r}; known methods are {', '.join(sorted(METHODS))}")
    return METHODS[name]
