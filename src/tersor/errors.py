"""The one exception for what a user can mend, so that the command line can print it as one sentence."""

from __future__ import annotations


class TersorError(Exception):
    """A problem that the caller can fix: the message names the thing, the rule and the mend."""


class InvalidArgument(TersorError, ValueError):
    """An argument, a recipe key or a flag outside what is allowed; the command line exits with 2."""


class CorruptFile(TersorError):
    """A file whose sizes, checksums or structure contradict themselves."""
