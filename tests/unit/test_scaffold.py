"""`veilbench new`: a file of at most 40 lines that runs at once."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from bench.cell import Cells
from bench.errors import UserError
from bench.leaks import Leak
from bench.plan import Cell, Spec
from bench.registry import ATTACKS, DEFENSES, load_plugin
from bench.scaffold import write_contract_test, write_plugin

if TYPE_CHECKING:
    from pathlib import Path

    from bench.world import World

KINDS = ["defense", "attack"]
LONG = "a-fairly-long-name-of-a-new-thing"


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_short_and_clean(kind: str, tmp_path: Path) -> None:
    path = write_plugin(kind, LONG, tmp_path)
    assert path == tmp_path / "a_fairly_long_name_of_a_new_thing.py"
    assert len(path.read_text().splitlines()) <= 40
    test = write_contract_test(kind, LONG, path)
    assert test == tmp_path / "test_a_fairly_long_name_of_a_new_thing.py"
    # Import order depends on which packages count as one's own.
    for check in (["check", "--ignore", "I001"], ["format", "--check", "--line-length", "100"]):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ruff",
                *check,
                "--isolated",
                "--no-cache",
                path.name,
                test.name,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def runs(world: World, defense: str, attack: str, leak: Leak) -> None:
    for threat in sorted(ATTACKS.get(attack).threats):
        cell = Cell(leak, Spec("defense", defense, ()), Spec("attack", attack, ()), threat, 0)
        images = Cells(world).reconstructions(cell).tensors["images"]
        assert images.shape == (len(world.split.probes), 3, 112, 112)
        assert images.dtype == torch.uint8


@pytest.mark.usefixtures("registries")
def test_a_new_defense_runs_at_once(world: World, tmp_path: Path) -> None:
    load_plugin(write_plugin("defense", "mine-too", tmp_path))
    assert DEFENSES.get("mine-too").__name__ == "MineToo"
    for leak in DEFENSES.get("mine-too").leaks:
        runs(world, "mine-too", "retrieval", leak)
        clean = world.victim_records(Spec("defense", "none", ()), leak)
        made = world.victim_records(Spec("defense", "mine-too", ()), leak)
        assert not torch.equal(made.tensors["records"], clean.tensors["records"])


@pytest.mark.usefixtures("registries")
def test_a_new_attack_runs_at_once(world: World, tmp_path: Path) -> None:
    load_plugin(write_plugin("attack", "mine-too", tmp_path))
    assert ATTACKS.get("mine-too").leaks == set(Leak)
    for leak in Leak:
        runs(world, "none", "mine-too", leak)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["", "Mine", "my_own", "-mine", "mine-", "my--own", "1st", "../up", "a/b", "mäh", "a b"]
)
def test_a_name_that_cannot_be_used_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"name '.*' cannot be used: take lower-case letters"):
        write_plugin(kind, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "name"), [("defense", "advface"), ("attack", "unet")])
def test_a_name_that_is_taken_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"The {kind} '{name}' exists already: choose another"):
        write_plugin(kind, name, tmp_path)
    other = "attack" if kind == "defense" else "defense"
    assert write_plugin(other, name, tmp_path).is_file()


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "my_own.py"
    path.write_text("precious")
    with pytest.raises(UserError, match=r"my_own\.py exists already: choose another name"):
        write_plugin("defense", "my-own", tmp_path)
    assert path.read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone/mine\.py cannot be written \(No such file"):
        write_plugin("defense", "mine", tmp_path / "gone")
