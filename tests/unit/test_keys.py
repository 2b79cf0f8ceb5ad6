"""Keys and seeds."""

from __future__ import annotations

import pytest

from bench.keys import derived_seed, digest


def test_a_key_depends_on_values_and_not_on_the_order_of_names() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_changed_source_changes_the_key_and_not_the_seed() -> None:
    one = {"defense": {"name": "advface", "source": "x"}, "seed": 0}
    two = {"defense": {"name": "advface", "source": "y"}, "seed": 0}
    assert digest(one) != digest(two)
    assert derived_seed([one, "reconstruct"]) == derived_seed([two, "reconstruct"])
    assert derived_seed([one]) != derived_seed([{**one, "seed": 1}])


def test_what_is_no_number_has_no_key() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"value": float("nan")})
