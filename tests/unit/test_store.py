"""The store: computed once, whole or absent, and one sentence when the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import claims
from bench import store as module
from bench.claims import Claims, FolderBoard
from bench.errors import UserError
from bench.keys import digest
from bench.store import Made, Store, StoreError, atomic_path, default_root

FIELDS = {"seed": 1, "who": ["Ann", "Bob"]}


GRID = torch.arange(12).reshape(3, 4)


def numbers() -> Made:
    tensors = {"grid": GRID, "turned": GRID.T, "half": torch.ones(2, dtype=torch.bfloat16)}
    return tensors, {"rows": 3}


def never() -> Made:
    raise AssertionError("it is there already")


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_an_artifact_is_made_once_and_read_afterwards(tmp_path: Path) -> None:
    made = []

    def make() -> Made:
        made.append(1)
        return numbers()

    store = Store(tmp_path / "new" / "store")
    first = store.artifact("records", FIELDS, make)
    again = store.artifact("records", dict(reversed(FIELDS.items())), make)
    other = Store(tmp_path / "new" / "store").artifact("records", FIELDS, make)
    assert made == [1]
    assert first.key == again.key == other.key
    assert first.facts == again.facts == other.facts


def test_tensors_and_facts_come_back_as_they_were(tmp_path: Path) -> None:
    found = Store(tmp_path).artifact("records", FIELDS, numbers)
    wanted, _ = numbers()
    assert found.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert found.facts.keys() == {"rows", "seconds"}
    assert found.facts["rows"] == 3
    assert found.facts["seconds"] >= 0


def test_another_stage_or_field_is_another_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = {
        store.artifact(stage, fields, numbers).key
        for stage, fields in (
            ("records", FIELDS),
            ("crops", FIELDS),
            ("records", {**FIELDS, "seed": 2}),
            ("records", {**FIELDS, "more": None}),
        )
    }
    assert len(keys) == 4
    assert len(files(tmp_path)) == 8


def test_a_new_schema_leaves_the_old_artifacts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Store(tmp_path).artifact("records", FIELDS, numbers)
    monkeypatch.setattr(module, "SCHEMA", module.SCHEMA + 1)
    assert Store(tmp_path).artifact("records", FIELDS, numbers).key != old.key


def test_what_was_keyed_is_written_beside_the_tensors(tmp_path: Path) -> None:
    key = Store(tmp_path).artifact("records", FIELDS, numbers).key
    folder = tmp_path / "records" / key[:2]
    assert files(tmp_path) == [folder / f"{key}.json", folder / f"{key}.safetensors"]
    note = json.loads((folder / f"{key}.json").read_text())
    assert {name: note["key"][name] for name in FIELDS} == FIELDS


def test_a_failure_while_making_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Made:
        raise ZeroDivisionError("the plug-in's own")

    with pytest.raises(ZeroDivisionError, match="the plug-in's own"):
        Store(tmp_path).artifact("records", FIELDS, fail)
    assert files(tmp_path) == []
    assert Store(tmp_path).artifact("records", FIELDS, numbers).facts["rows"] == 3


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, r"no space left on the disk of the store .*: free some, or .*--store; what"),
        (errno.EROFS, r"store .* cannot be written \(Read-only file system\): give .* --store\.$"),
        (errno.EACCES, r"store .* cannot be written \(Permission denied\): give .* --store\.$"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_disk_that_refuses_ends_in_one_sentence_and_leaves_nothing(
    number: int, sentence: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, refuse)
        with pytest.raises(StoreError, match=sentence) as caught:
            Store(tmp_path).artifact("records", FIELDS, numbers)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == []


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"store .*file/store cannot be written \(Not a directory"):
        Store(tmp_path / "file" / "store").artifact("records", FIELDS, numbers)


def test_store_errors_are_for_the_user() -> None:
    assert issubclass(StoreError, UserError)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "a bit at the end", "a bit in the middle"])
def test_what_the_disk_has_damaged_is_told_and_made_again(
    suffix: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Store(tmp_path).artifact("records", FIELDS, numbers)
    [path] = [path for path in files(tmp_path) if path.suffix == suffix]
    size = path.stat().st_size
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[: size // 2])
        case "a bit at the end":
            flip(path, size - 3)
        case "a bit in the middle":
            flip(path, size // 2)
    [(damaged, _)] = Store(tmp_path).verify()
    assert damaged == path.relative_to(tmp_path).with_suffix("").as_posix()
    again = Store(tmp_path)
    assert torch.equal(again.artifact("records", FIELDS, numbers).tensors["grid"], GRID)
    assert again.made["records"] == 1
    assert "is damaged" in caplog.text
    assert not list(Store(tmp_path).verify())
    assert Store(tmp_path).artifact("records", FIELDS, never).facts["rows"] == 3


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_half_an_artifact_is_made_again(suffix: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.artifact("records", FIELDS, numbers)
    [path] = [path for path in files(tmp_path) if path.suffix == suffix]
    path.unlink()
    assert torch.equal(
        store.artifact("records", FIELDS, numbers).tensors["grid"], numbers()[0]["grid"]
    )
    assert path.is_file()


# --- atomic files -------------------------------------------------------------------------------


def test_an_atomic_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    with atomic_path(target) as path:
        path.write_text("new")
        assert target.read_text() == "old"
        assert path.parent == target.parent
    assert target.read_text() == "new"
    assert files(tmp_path) == [target]
    assert target.stat().st_mode & 0o777 == 0o644


def test_an_atomic_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as path:  # noqa: PT012
        path.write_text("ne")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert files(tmp_path) == [target]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from bench import store
store.save_file = lambda tensors, path: (Path(path).write_bytes(b"half"), os.kill(os.getpid(), 9))
store.Store(Path(sys.argv[1])).artifact("records", {"a": 1}, lambda: ({"x": torch.ones(1)}, {}))
"""


def test_a_run_that_is_killed_while_writing_leaves_no_artifact_and_a_claim_that_falls(
    tmp_path: Path,
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert {path.suffix for path in files(tmp_path)} == {".part", ".1"}
    made = Store(tmp_path).artifact("records", {"a": 1}, numbers)
    assert torch.equal(made.tensors["grid"], GRID)
    assert not list((tmp_path / "claims").iterdir())


def test_the_default_store_is_a_folder_of_the_user() -> None:
    assert default_root().name == "veilbench"
    assert default_root().is_absolute()


# --- several processes --------------------------------------------------------------------------


SHARING = """
import sys, time
from pathlib import Path
import torch
from bench.store import Store
def make():
    with open(sys.argv[2], "a") as log: log.write("made\\n")
    time.sleep(0.2)
    return {"x": torch.ones(1000)}, {}
store = Store(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(5):
    store.artifact("records", {"number": number}, make)
store.rows("crops", {}, ["a", "b"], lambda rows: make()[0]["x"][: len(rows)])
"""


def test_processes_on_one_store_share_the_work(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", SHARING, str(tmp_path / "store"), str(log)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.communicate("go\n")
        assert process.returncode == 0
    assert log.read_text().count("made") == 6
    assert not list(Store(tmp_path / "store").verify())


def leave_claim(root: Path, owner: dict[str, object]) -> Path:
    key = digest({"schema": module.SCHEMA, "stage": "records", **FIELDS})
    claim = root / "claims" / f"{key}.1"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps(owner))
    return claim


def test_a_claim_of_another_machine_falls_when_nobody_touches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = leave_claim(tmp_path, {"host": "elsewhere", "process": 1})
    monkeypatch.setattr(claims, "STALE", 0.3)
    ticks = []

    def touched(seconds: float) -> None:
        ticks.append(seconds)
        if len(ticks) < 8:
            os.utime(claim, ns=(0, len(ticks)))
        sleep(seconds)

    sleep = time.sleep
    monkeypatch.setattr("bench.claims.time.sleep", touched)
    Store(tmp_path).artifact("records", FIELDS, numbers)
    assert len(ticks) >= 8 + 2, "as long as it is touched it stands"
    assert not list(claim.parent.iterdir())


def test_only_one_takes_a_fallen_claim_over(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leave_claim(tmp_path, {"host": claims._host(), "process": dead.pid})
    key = digest({"schema": module.SCHEMA, "stage": "records", **FIELDS})
    first, second = (Claims(FolderBoard(tmp_path / "claims")) for _ in range(2))
    taken = first._take(key)
    assert taken == f"{key}.2"
    assert second._take(key) is None
    first._release(key, taken)
    assert not list((tmp_path / "claims").iterdir())


# --- rows ---------------------------------------------------------------------------------------


def test_rows_are_made_once_whatever_is_asked_for_together(tmp_path: Path) -> None:
    values = {name: float(place) for place, name in enumerate("abcdef")}
    made: list[str] = []

    def ask(names: str, fields: dict[str, int]) -> list[float]:
        def make(rows: list[int]) -> torch.Tensor:
            made.extend(names[row] for row in rows)
            return torch.tensor([[values[names[row]]] for row in rows])

        return Store(tmp_path).rows("crops", fields, list(names), make).flatten().tolist()

    assert ask("abc", {"size": 1}) == [0, 1, 2]
    assert ask("fcbdb", {"size": 1}) == [5, 2, 1, 3, 1]
    assert made == list("abcfd")
    assert ask("ab", {"size": 2}) == [0, 1]
    assert made == list("abcfdab")
    for path in (tmp_path / "crops").rglob("*.safetensors"):
        flip(path, -1)
    assert ask("dcba", {"size": 1}) == [3, 2, 1, 0]
    assert made == [*"abcfdab", *"dcba"]


# --- upkeep -------------------------------------------------------------------------------------


def test_what_a_run_does_not_need_is_collected_with_what_the_dead_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed in range(3):
        store.artifact("records", {"seed": seed}, numbers)
    kept = Store(tmp_path)
    kept.artifact("records", {"seed": 1}, never)
    (tmp_path / "claims" / "0.1").write_text("{}")
    part = tmp_path / "records" / ".x.safetensors.1.part"
    unfinished = kept.unfinished("parts", {"seed": 4})
    for path in (part, unfinished, tmp_path / "claims" / "1.1"):
        path.write_text("{}")
        os.utime(path, (0, 0))
    deleted, size = kept.collect(kept.used)
    assert deleted == 2 * 2 + 3
    assert size > 0
    assert len(kept.artifacts()) == 1
    assert (tmp_path / "claims" / "0.1").is_file()
    assert not part.exists()
    assert not unfinished.exists()
    Store(tmp_path).artifact("records", {"seed": 1}, never)


def test_tensors_are_mapped_from_the_file_and_cannot_change_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    mapped = store.artifact("records", FIELDS, numbers).tensors["grid"]
    mapped += 1
    assert torch.equal(store.artifact("records", FIELDS, never).tensors["grid"], GRID)
    maps = Path("/proc/self/maps")
    if maps.is_file():
        assert str(tmp_path) in maps.read_text()
