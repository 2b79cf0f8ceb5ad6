"""Errors that a user can mend.

Every message is one sentence that names what is wrong, where, and how to mend it. The command line
prints it and exits with code 2; nothing is left half-written.
"""

from __future__ import annotations


class UserError(Exception):
    """Bad input: the message is one sentence for the person at the command line."""


class MissingAssetError(UserError):
    """A weight or data file is absent, or its sha256 is not the recorded one."""


class DataError(UserError):
    """An image, a list of pairs or another data file cannot be used."""


class MetricError(UserError, ValueError):
    """The inputs of a metric have a wrong shape, range, type or definition."""
