"""What every plug-in does with parameters that it cannot use."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from bench.errors import UserError

if TYPE_CHECKING:
    from attacks.base import Attack
    from defenses.base import Defense


def refuse_wrong_parameters(kind: type[Attack | Defense], where: str) -> None:
    """Check that a plug-in names the parameter that is unknown or of the wrong type."""
    with pytest.raises(UserError, match=f"'no_such_thing' of {where}"):
        kind.create(where, {"no_such_thing": 1})
    for field in dataclasses.fields(kind):
        with pytest.raises(UserError, match=f"'{field.name}.*' of {where}"):
            kind.create(where, {field.name: object()})
