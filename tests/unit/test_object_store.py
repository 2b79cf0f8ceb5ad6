"""The store in an object store: fsspec's own in memory, and S3 as moto plays it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from bench import claims
from bench.errors import UserError
from bench.object_store import ObjectBoard, Objects, ObjectStore
from bench.store import Made, StoreError, open_store

FIELDS = {"seed": 1}
GRID = torch.arange(12).reshape(3, 4)


def numbers() -> Made:
    return {"grid": GRID}, {"rows": 3}


def never() -> Made:
    raise AssertionError("it is there already")


@pytest.fixture
def url() -> str:
    return f"memory://{uuid4().hex}/store"


def held(url: str) -> list[str]:
    return sorted(Objects(url).files(""))


def test_what_one_machine_makes_another_reads(url: str, tmp_path: Path) -> None:
    first, second = ObjectStore(url, tmp_path / "one"), ObjectStore(url, tmp_path / "two")
    made = first.artifact("records", FIELDS, numbers)
    data = f"records/{made.key[:2]}/{made.key}.safetensors"
    assert held(url) == [data.replace("safetensors", "json"), data]
    read = second.artifact("records", FIELDS, never)
    assert torch.equal(read.tensors["grid"], GRID)
    assert read.facts == made.facts
    assert second.used == first.used


def test_rows_that_machines_made_apart_are_put_together(url: str, tmp_path: Path) -> None:
    made: list[str] = []

    def ask(folder: str, names: str) -> list[float]:
        def make(rows: list[int]) -> torch.Tensor:
            made.extend(names[row] for row in rows)
            return torch.tensor([[float(ord(names[row]))] for row in rows])

        rows = ObjectStore(url, tmp_path / folder).rows("crops", {}, list(names), make)
        return rows.flatten().tolist()

    ask("one", "ab")
    ask("two", "cb")
    assert ask("three", "abc") == [97, 98, 99]
    assert made == ["a", "b", "c"]


def test_a_copy_that_is_damaged_is_copied_again(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ObjectStore(url, tmp_path)
    store.artifact("records", FIELDS, numbers)
    [copy] = tmp_path.rglob("*.safetensors")
    copy.write_bytes(copy.read_bytes()[:-1])
    again = ObjectStore(url, tmp_path).artifact("records", FIELDS, never)
    assert torch.equal(again.tensors["grid"], GRID)
    assert "is damaged" in caplog.text


def test_a_copy_of_what_is_gone_there_is_sent_again(url: str, tmp_path: Path) -> None:
    ObjectStore(url, tmp_path / "one").artifact("records", FIELDS, numbers)
    before = held(url)
    for name in before:
        Objects(url).delete(name)
    ObjectStore(url, tmp_path / "one").artifact("records", FIELDS, never)
    assert held(url) == before
    ObjectStore(url, tmp_path / "two").artifact("records", FIELDS, never)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_what_is_damaged_there_is_found_and_made_again(
    suffix: str, url: str, tmp_path: Path
) -> None:
    key = ObjectStore(url, tmp_path / "one").artifact("records", FIELDS, numbers).key
    objects, name = Objects(url), f"records/{key[:2]}/{key}{suffix}"
    content = objects.read(name)
    assert content is not None
    objects.write(name, content[:-2] + b"??")
    other = ObjectStore(url, tmp_path / "two")
    [(damaged, _)] = other.verify()
    assert damaged == f"records/{key[:2]}/{key}"
    assert torch.equal(other.artifact("records", FIELDS, numbers).tensors["grid"], GRID)
    assert other.made["records"] == 1
    assert not list(other.verify())
    ObjectStore(url, tmp_path / "three").artifact("records", FIELDS, never)


def test_two_writers_share_the_work(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectBoard, "poll", 0.01)
    made: list[int] = []
    ready = threading.Barrier(2)

    def make() -> Made:
        made.append(1)
        return numbers()

    def work(folder: str) -> None:
        store = ObjectStore(url, tmp_path / folder)
        ready.wait()
        for number in range(5):
            store.artifact("records", {"number": number}, make)

    both = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(made) == 5
    assert not [name for name in held(url) if name.startswith("claims/")]


def test_a_claim_stands_while_it_is_touched_and_falls_afterwards(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "STALE", 0.2)
    board = ObjectBoard(Objects(url))
    assert board.create("0.1", '{"host": "elsewhere", "process": 1}')
    assert not board.create("0.1", "{}")
    waiting = claims.Claims(board)
    for beat in range(3):
        time.sleep(0.1)
        board.touch("0.1", f'{{"host": "elsewhere", "process": 1, "time": {beat}}}')
        assert waiting._take("0") is None
    time.sleep(0.3)
    assert waiting._take("0") == "0.2"
    waiting._release("0", "0.2")
    assert held(url) == []


def test_an_owner_touches_its_claim(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.01)
    board = ObjectBoard(Objects(url))
    with claims.Claims(board).holding("0", lambda: False):
        before, limit = board.read("0.1"), time.monotonic() + 10
        while board.read("0.1") == before:
            assert time.monotonic() < limit
            time.sleep(0.01)
    time.sleep(0.05)
    assert board.names("0") == []


def test_an_object_store_that_refuses_ends_in_one_sentence(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        # botocore's errors of a connection are no OSErrors either.
        raise RuntimeError("Could not connect to the endpoint")

    monkeypatch.setattr(MemoryFileSystem, "put_file", refuse)
    store = ObjectStore(url, tmp_path)
    sentence = rf"The store {url} cannot be written \(Could not connect to the endpoint\): give"
    for _ in range(2):
        with pytest.raises(StoreError, match=sentence):
            store.artifact("records", FIELDS, numbers)
    assert held(url) == []
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_object_store_is_collected_with_the_copies(url: str, tmp_path: Path) -> None:
    store = ObjectStore(url, tmp_path)
    for seed in range(2):
        store.artifact("records", {"seed": seed}, numbers)
    kept = ObjectStore(url, tmp_path)
    kept.artifact("records", {"seed": 1}, never)
    assert ObjectBoard(Objects(url)).create("0.1", "{}")
    deleted, size = kept.collect(kept.used)
    assert deleted == 2
    assert size > 0
    assert list(kept.artifacts()) == sorted(kept.used)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert "claims/0.1" in held(url)


def test_a_place_is_a_folder_or_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_store(str(tmp_path / "store")).root == tmp_path / "store"
    store = open_store("memory://somewhere/store/")
    assert isinstance(store, ObjectStore)
    assert store.where == "memory://somewhere/store"
    assert store.root.is_relative_to(open_store().root)


@pytest.mark.parametrize("url", ["sea://bucket/prefix", "s3://bucket"])
def test_a_url_that_cannot_be_opened_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # what was used is kept
    with pytest.raises(UserError, match=rf"store {url} cannot be opened .*veilbench\[s3\]"):
        open_store(url)


def test_a_folder_that_fills_while_it_is_listed_is_no_object(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(_: MemoryFileSystem, path: str, **__: Any) -> dict[str, Any]:
        return {path: {"name": path, "size": 0, "type": "directory"}}

    monkeypatch.setattr(MemoryFileSystem, "find", find)
    assert held(url) == []


# --- S3 -----------------------------------------------------------------------------------------


SHARING = """
import sys, time
from pathlib import Path
import torch
from bench.object_store import ObjectBoard, ObjectStore
ObjectBoard.poll = 0.05
def make():
    print("made", flush=True)
    time.sleep(0.2)
    return {"x": torch.ones(1000)}, {}
store = ObjectStore(sys.argv[1], Path(sys.argv[2]))
for number in range(4):
    store.artifact("records", {"number": number}, make)
store.rows("crops", {}, ["a", "b"], lambda rows: make()[0]["x"][: len(rows)])
assert not list(store.verify())
"""


def test_two_processes_share_a_store_on_s3(bucket: str, tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, f"{bucket}/some/prefix", str(tmp_path / name)],
            stdout=subprocess.PIPE,
            env=os.environ,
            text=True,
        )
        for name in ("one", "two")
    ]
    made = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(made).count("made") == 5
