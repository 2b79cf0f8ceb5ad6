"""Errors that a user can mend.

Every message is one sentence that names what is wrong, where, and how to mend it. The command line
prints it and exits with code 2; nothing is left half-written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """Bad input: the message is one sentence for the person at the command line."""


class MissingAssetError(UserError):
    """A weight or data file is absent, or its sha256 is not the recorded one."""


class DataError(UserError):
    """An image, a list of pairs or another data file cannot be used."""


class MetricError(UserError, ValueError):
    """The inputs of a metric have a wrong shape, range, type or definition."""


@dataclass(frozen=True)
class Fault:
    """What a check of fields found wrong; as text "field: reason".

    Attributes:
        field: Its name, with dots where tables are nested.
        value: What was given.
        reason: What is wrong with it.
    """

    field: str
    value: object
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


def first_fault(error: ValidationError) -> Fault:
    """Return the first of the faults that pydantic found."""
    first = error.errors()[0]
    return Fault(".".join(str(part) for part in first["loc"]), first["input"], first["msg"])
