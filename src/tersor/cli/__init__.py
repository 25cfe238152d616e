"""The command line: parse, call, print. Heavy imports wait until a command needs them, so that ``--help`` answers at once."""

# The order of these imports is that of the commands in --help.
from tersor.cli import models, training, communication, codecs, knowledge  # noqa: I001
from tersor.cli.common import app, main

__all__ = ["app", "codecs", "communication", "knowledge", "main", "models", "training"]
