"""Errors that a user can act on. Each carries the exit status that the command line returns.

The message is one line: what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class CmmaError(Exception):
    """Base of every error that is reported as one line, without a traceback."""

    exit_code = 1


class ConfigError(CmmaError):
    """A wrong key, type, value or combination of values in the configuration."""

    exit_code = 2


class MissingParent(CmmaError):
    """A stage needs an artifact that does not exist yet; the message holds the command that makes it."""

    exit_code = 3


class DataError(CmmaError):
    """Input data (image, caption file, word list, model folder) that cannot be used."""

    exit_code = 4


class ArtifactError(CmmaError):
    """A damaged, foreign or unwritable artifact."""

    exit_code = 5
