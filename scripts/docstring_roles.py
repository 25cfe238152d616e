"""Lets the site show docstrings whose cross-references are Sphinx roles: ``:func:`name``` becomes the name as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`~?(?:[\w.]+\.)?(\w+)`")


class Roles(griffe.Extension):
    """Rewrites the roles of every docstring that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
