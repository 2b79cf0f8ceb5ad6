"""Keys and seeds: what must change them, and what must not."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cell import Cells
from bench.keys import derived_seed, digest
from bench.leaks import Leak
from bench.plan import Spec, cells
from bench.plugin import _source_files, source_fingerprint
from bench.store import Store
from bench.threats import Threat
from bench.world import World


def test_a_key_depends_on_values_and_not_on_the_order_of_names() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_changed_source_changes_the_key_and_not_the_seed() -> None:
    one = {"defense": {"name": "advface", "source": "x"}, "seed": 0}
    two = {"defense": {"name": "advface", "source": "y"}, "seed": 0}
    assert digest(one) != digest(two)
    assert derived_seed([one, "reconstruct"]) == derived_seed([two, "reconstruct"])
    assert derived_seed([one]) != derived_seed([{**one, "seed": 1}])


def test_what_else_of_a_package_is_loaded_changes_no_fingerprint() -> None:
    for name in ("dct_drop_dc", "minusface"):
        importlib.import_module(f"defenses.frequency.{name}")
    found = _source_files("defenses.frequency.dct_drop_dc", "defenses.frequency.dct_drop_dc", {})
    assert {"defenses.frequency", "defenses.frequency.block_dct"} <= found.keys()
    assert "defenses.frequency.minusface" not in found


def test_what_is_no_number_has_no_key() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"value": float("nan")})


PLUGIN = """
import json
from helper_of_{name} import EPS
import {name}_more
"""


def fingerprint(folder: Path, name: str, texts: dict[str, str]) -> str:
    """Return the fingerprint of a plug-in with files beside it, as a new process would."""
    folder.mkdir(exist_ok=True)
    for module, text in texts.items():
        (folder / f"{module}.py").write_text(text)
        sys.modules.pop(module, None)
    importlib.invalidate_caches()
    importlib.import_module(name)
    return source_fingerprint(name)


def test_the_source_of_a_plugin_and_of_its_helpers_is_in_the_key_and_its_place_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    texts = {
        "mine": PLUGIN.format(name="mine"),
        "helper_of_mine": "EPS = 1",
        "mine_more": "import mine_deep",
        "mine_deep": "",
    }
    keys = []
    for place, changed in enumerate([None, *texts]):
        now = {name: text + "\n#" * (name == changed) for name, text in texts.items()}
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / str(place))
            keys.append(fingerprint(tmp_path / str(place), "mine", now))
    assert len(set(keys)) == 1 + len(texts)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "elsewhere")
        assert fingerprint(tmp_path / "elsewhere", "mine", texts) == keys[0]
    for name in texts:
        del sys.modules[name]


def test_device_workers_paths_and_batches_are_not_in_the_key_of_a_cell(
    world: World, tmp_path: Path
) -> None:
    other = World(world.suite, world.seed, Store(tmp_path), "cpu", None, print)
    [cell] = cells(world.suite)
    fields = Cells(world).fields(cell)
    assert digest(Cells(other).fields(cell)) == digest(fields)
    text = json.dumps(fields)
    for word in ("device", "cpu", str(tmp_path), str(world.store.root), "workers", "threads"):
        assert word not in text


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"leak": Leak.TEMPLATE},
        {"threat": Threat.ADAPTIVE},
        {"attack": Spec("attack", "unet", ())},
        {"attack": Spec("attack", "unet", (("steps", 3),))},
        {"defense": Spec("defense", "sign-noise", (("eps", 0.2),))},
        {"defense": Spec("defense", "gaussian-noise", (("eps", 0.1),))},
    ],
    ids=str,
)
def test_all_that_a_cell_is_made_of_is_in_its_key(change: dict[str, Any], world: World) -> None:
    [cell] = cells(world.suite)
    attack = Spec("attack", "unet", (("steps", 2),))
    first = replace(cell, defense=Spec("defense", "gaussian-noise", (("eps", 0.2),)), attack=attack)
    made = [Cells(world).fields(item) for item in (first, replace(first, **change))]
    assert digest(made[0]) != digest(made[1])


@pytest.mark.parametrize("change", ["photo", "weights", "precision"])
def test_data_and_weights_are_in_the_key_of_a_cell(
    change: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    [cell] = cells(world.suite)
    other = World(world.suite, world.seed, world.store, "cpu", None)
    match change:
        case "photo":
            read, photo = other.dataset.read, other.dataset.photos[other.split.probes[0]]
            file = bytearray(read(photo))
            file[-1] ^= 1
            monkeypatch.setattr(
                other.dataset,
                "read",
                lambda wanted: bytes(file) if wanted == photo else read(wanted),
            )
            del other._contents
        case "weights":
            monkeypatch.setattr(other.recognizer, "weights_sha256", "0" * 64)
        case "precision":
            monkeypatch.setattr(other.recognizer, "precision", "another")
    assert digest(Cells(other).fields(cell)) != digest(Cells(world).fields(cell))


@pytest.mark.parametrize(
    "change",
    [{"fresh_instances": 3}, {"query_budget": 41}, {"score_budget": 7}],
)
def test_a_budget_is_in_the_key_of_a_cell(change: dict[str, int], world: World) -> None:
    suite = world.suite.model_copy(update=change)
    other = World(suite, world.seed, world.store, "cpu", None)
    [cell] = cells(suite)
    assert digest(Cells(other).fields(cell)) != digest(Cells(world).fields(cell))


def test_a_table_is_a_parameter_too() -> None:
    one, two = (Spec("attack", "unet", (("losses", {"pixel": 1.0}),)) for _ in range(2))
    assert one == two
    assert one != Spec("attack", "unet", (("losses", {"pixel": 2.0}),))
    assert {one: 1}[two] == 1
    assert pickle.loads(pickle.dumps(one)) == one
