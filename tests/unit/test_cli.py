"""The command line: what is wrong is said in one sentence, with exit code 2 and nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from bench import __version__, cli
from bench.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def veilbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Return a function that runs a command in an empty folder: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["veilbench", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        found = capsys.readouterr()
        return int(stop.value.code or 0), found.out, found.err

    return run


COMMANDS = ("run", "list", "report", "new", "doctor", "data", "store")

SUITE = """
name = "broken"
title = "Broken"
dataset = "orl"
recognizer = { name = "sface" }
split = { victims = 6, probes = 6, attacker_images = 9, defender_images = 9, gallery_people = 0 }
[[group]]
leak = "features"
defenses = [{ name = "none" }]
attacks = [{ name = "unet", threats = ["adaptiv"] }]
"""

WRONG = {
    "unknown suite": (["run", "demoo"], "no suite 'demoo': choose one of demo"),
    "suite file": (["run", "gone.toml"], "no suite 'gone.toml'"),
    "broken suite": (["run", "broken.toml"], "broken.toml has a wrong field 'group.0.attacks.0.th"),
    "missing plug-in": (["run", "smoke", "--plugin", "gone.py"], "gone.py does not exist"),
    "failing plug-in": (["run", "smoke", "--plugin", "fails.py"], "(ZeroDivisionError: division"),
    "plug-in of list": (["list", "--plugin", "gone.py"], "gone.py does not exist"),
    "defense": (["run", "smoke", "--defense", "advfase"], "did you mean 'advface'?"),
    "attack": (["run", "smoke", "--attack", "unett"], "did you mean 'unet'?"),
    "nothing left": (
        ["run", "smoke", "--attack", "dct-inverse", "--defense", "biohash"],
        "Nothing",
    ),
    "dataset": (["run", "smoke", "--dataset", "orll"], "did you mean 'orl'?"),
    "no root": (["run", "lfw"], "lfw is not shipped: give the folder that holds lfw.tar"),
    "empty root": (["run", "lfw", "--data-root", "."], "holds neither lfw.tar nor a folder lfw"),
    "split": (["run", "smoke", "--dataset", "lfw", "--data-root", "."], "holds neither lfw.tar"),
    "device": (["run", "smoke", "--device", "gpu"], "The device 'gpu' cannot be used"),
    "absent device": (["run", "smoke", "--device", "cuda:77"], "'cuda:77' cannot be used"),
    "out is a file": (["run", "smoke", "--out", "fails.py/a"], "cannot be made (Not a directory)"),
    "report": (["report", "."], "holds no results.parquet: give the --out folder of a run."),
    "name": (["new", "defense", "My Own"], "The name 'My Own' cannot be used"),
    "taken": (["new", "attack", "unet"], "The attack 'unet' exists already"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence_and_exit_code_two(
    case: str, veilbench: Command, tmp_path: Path
) -> None:
    (tmp_path / "broken.toml").write_text(SUITE)
    (tmp_path / "fails.py").write_text("1 / 0")
    arguments, sentence = WRONG[case]
    store = ["--store", str(tmp_path / "store")] if arguments[0] == "run" else []
    code, out, err = veilbench(*arguments, *store)
    assert code == 2
    assert out.strip() == ""
    assert err.startswith("veilbench: ")
    assert sentence in err
    assert err.rstrip()[-1] in ".?"
    assert err.count("\n") == 1
    assert "Traceback" not in err
    left = {path.name for path in tmp_path.iterdir()} - {"broken.toml", "fails.py", "store"}
    assert not left, "something was half-written"


def test_ctrl_c_says_how_to_continue(veilbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.plan.load_suite", stop)
    code, _, err = veilbench("run", "smoke")
    assert code == 130
    assert err == "veilbench: stopped; run the same command again to continue.\n"


@pytest.mark.parametrize("option", ["--defence", "--epsilon"])
def test_an_unknown_option_is_exit_code_two(option: str, veilbench: Command) -> None:
    code, _, err = veilbench("run", option, "x")
    assert code == 2
    assert option in err


def test_version(veilbench: Command) -> None:
    assert veilbench("--version") == (0, f"{__version__}\n", "")


def test_help_names_every_command(veilbench: Command) -> None:
    code, out, _ = veilbench("--help")
    assert code == 0
    for command in COMMANDS:
        assert f" {command} " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, veilbench: Command) -> None:
    code, out, _ = veilbench(command, "--help")
    assert code == 0
    assert "Usage" in out


def test_list_shows_everything_or_one_kind(veilbench: Command) -> None:
    code, everything, _ = veilbench("list")
    assert code == 0
    for kind in cli.Listing:
        code, one, _ = veilbench("list", kind)
        assert code == 0
        assert one.startswith(f"{kind}:\n")
        assert one in everything
    for name in ("advface", "gradient", "mean-face", "orl", "sface", "insider", "smoke", "ssim"):
        assert f"  {name}" in everything
    assert "[features, transfer, " not in everything.split("defenses:")[1].split("datasets:")[0]


@pytest.mark.usefixtures("registries")
def test_new_writes_a_plugin_that_list_shows(veilbench: Command, tmp_path: Path) -> None:
    code, out, _ = veilbench("new", "defense", "my-own")
    assert code == 0
    assert "veilbench run smoke --plugin my_own.py --defense my-own" in out
    assert (tmp_path / "my_own.py").is_file()
    code, out, _ = veilbench("list", "defenses", "--plugin", "my_own.py")
    assert code == 0
    assert "  my-own " in out


def test_the_store_is_listed_verified_and_collected(veilbench: Command, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for seed in (0, 1):
        store.artifact("records", {"seed": seed}, lambda: ({"x": torch.ones(300)}, {}))
    where = ["--store", str(store.root)]
    assert "        2     2.5 kB  records" in veilbench("store", "ls", *where)[1]
    assert veilbench("store", "verify", *where) == (0, "", "")
    damaged = store.root / f"{min(store.artifacts())}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, out, err = veilbench("store", "verify", *where)
    assert code == 1
    assert out == f"{damaged.with_suffix('')}: its sha256 is another\n"
    assert "makes them again" in err
    code, _, err = veilbench("store", "gc", "--keep", ".", *where)
    assert code == 2
    assert "holds no run.json that names its artifacts" in err
    kept = max(store.used)
    (tmp_path / "run.json").write_text(json.dumps({"artifacts": [kept]}))
    code, out, _ = veilbench("store", "gc", "--keep", ".", *where)
    assert code == 0
    assert out.startswith("Deleted 2 files, ")
    assert list(store.artifacts()) == [kept]


def test_doctor_tells_weights_and_versions(veilbench: Command) -> None:
    code, out, _ = veilbench("doctor")
    assert code == 0
    assert "sface: found, sha256 checked (Apache-2.0; SFace" in out


def test_the_program_itself_ends_with_exit_code_two() -> None:
    command = [sys.executable, "-m", "bench.cli", "run", "demoo"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("veilbench: There is no suite 'demoo'")
    assert done.stderr.count("\n") == 1
