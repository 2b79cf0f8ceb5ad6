"""Jobs done here, in other processes or on Ray; killed, hanging, or before a full disk."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file

from attacks.retrieval import Retrieval
from bench import executors
from bench.claims import Claims
from bench.errors import UserError
from bench.object_store import ObjectStore
from bench.plan import Suite, parse_suite
from bench.profile import profile
from bench.registry import ATTACKS, RECOGNIZERS, load_plugin
from bench.results import Row, read
from bench.run import Outcome, Workers, run_suite
from bench.store import Store

PLUGIN = Path(__file__).with_name("tiny.py")
TINY = load_plugin(PLUGIN)


def tiny(
    attacks: list[dict[str, Any]] | None = None,
    leak: str = "image",
    defenses: Sequence[dict[str, Any]] = ({"name": "none"},),
    **changes: Any,
) -> Suite:
    fields = tomllib.loads(TINY.SUITE) | changes
    if attacks:
        fields["group"] = [{"leak": leak, "defenses": defenses, "attacks": attacks}]
    return parse_suite(fields, "tiny.py")


def run(suite: Suite, folder: Path, store: Store, **how: Any) -> Outcome:
    workers = Workers(plugins=(PLUGIN,), **how)
    return run_suite(suite, folder, store, device="cpu", quiet=True, workers=workers)


def timeless(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.metric != "ms-per-record"]


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The plug-in is registered for the tests of this file alone."""
    load_plugin(PLUGIN)
    yield
    for registry, name in ((ATTACKS, "misbehaves"), (RECOGNIZERS, "tiny")):
        registry._table().pop(name, None)
        registry._classes.pop(name, None)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store]:
    folder = tmp_path_factory.mktemp("serial")
    store = Store(folder / "store")
    assert run(tiny(), folder / "out", store).failed == 0
    return folder, store


@pytest.fixture(scope="module")
def rows(serial: tuple[Path, Store]) -> list[Row]:
    found = timeless(read(serial[0] / "out"))
    assert {row.status for row in found} == {"ok"}
    return found


def test_a_folder_is_left_alone_until_there_is_something_new(
    serial: tuple[Path, Store], tmp_path: Path
) -> None:
    folder, store = serial
    facts = (folder / "out" / "run.json").read_text()
    assert not run(tiny(), folder / "out", Store(store.root)).changed
    assert (folder / "out" / "run.json").read_text() == facts
    shutil.copytree(folder / "out", tmp_path, dirs_exist_ok=True)
    (tmp_path / "run.json").write_text(facts.replace('"veilbench": "', '"veilbench": "0.'))
    assert run(tiny(), tmp_path, Store(store.root)).changed
    assert not run(tiny(), tmp_path, Store(store.root)).changed
    (tmp_path / "results.csv").unlink()
    assert run(tiny(), tmp_path, Store(store.root)).changed


def test_processes_give_the_rows_of_one_process(rows: list[Row], tmp_path: Path) -> None:
    run(tiny(), tmp_path, Store(tmp_path / "store"), executor="process", count=2)
    assert profile.processes == 2
    assert timeless(read(tmp_path)) == rows


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: veilbench[ray]"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_ray_gives_the_rows_of_one_process(
    place: str, rows: list[Row], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The workers find the store by its name alone; of a bucket they keep copies of their own."""
    if place == "folder":
        store = Store(tmp_path / "store")
    else:
        store = ObjectStore(f"{request.getfixturevalue('bucket')}/store", tmp_path / "copies")
    run(tiny(), tmp_path / "out", store, executor="ray", count=2)
    assert timeless(read(tmp_path / "out")) == rows


def test_without_ray_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'veilbench\[ray\]'"):
        run(tiny(), tmp_path, Store(tmp_path), executor="ray")


def test_what_raises_hangs_or_dies_is_a_row_and_the_others_finish(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "GRACE", 1.0)
    ways = ("raises", "hangs", "hangs-deaf", "dies")
    attacks = [{"name": "misbehaves", "how": way, "threats": ["adaptive"]} for way in ways]
    attacks.append({"name": "retrieval", "threats": ["adaptive"]})
    store = Store(tmp_path / "store")
    outcome = run(tiny(attacks), tmp_path, store, executor="process", count=1, time_limit=8.0)
    assert outcome.failed == len(ways)
    found = read(tmp_path)
    reasons = {
        way: row.reason
        for way in ways
        for row in found
        if row.attack == "misbehaves" and f'"{way}"' in row.attack_params
    }
    assert reasons["raises"] == "OSError: boom"
    assert reasons["hangs"] == "TimeLimitReached: it took longer than the limit of 8 s"
    assert reasons["hangs-deaf"].endswith("could not be interrupted")
    assert "killed by signal 9, as when memory runs out" in reasons["dies"]
    wanted = [row for row in rows if row.leak == "image" and row.defense == "none" and row.attack]
    mine = [
        row for row in timeless(found) if row.attack in {"retrieval", "worst-case"} and row.leak
    ]
    assert [row.value for row in mine] == [row.value for row in wanted]
    assert not list(Store(tmp_path / "store").verify())


def test_a_hanging_plugin_is_interrupted_in_this_process_too(tmp_path: Path) -> None:
    suite = tiny([{"name": "misbehaves", "how": "hangs", "threats": ["adaptive"]}])
    outcome = run(suite, tmp_path, Store(tmp_path / "store"), time_limit=1.0)
    assert outcome.failed == 1
    assert "longer than the limit of 1 s" in "".join(row.reason for row in outcome.rows)


def count_writes(monkeypatch: pytest.MonkeyPatch, allowed: float) -> None:
    """Let the disk be full after some artifacts."""
    left = [allowed]

    def save(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise SafetensorError("No space left on device (os error 28)")
        save_file(*arguments)

    monkeypatch.setattr("bench.store.save_file", save)


def test_a_full_disk_leaves_rows_that_say_so_and_a_store_that_continues(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        count_writes(patch, allowed=14)
        outcome = run(tiny(), tmp_path, Store(tmp_path / "store"))
    assert outcome.refusal is not None
    failed = [row for row in read(tmp_path) if row.status == "error"]
    assert len(failed) == outcome.failed > 0
    assert all("no space left on the disk of the store" in row.reason for row in failed)
    assert any(row.status == "ok" for row in read(tmp_path))
    store = Store(tmp_path / "store")
    assert run(tiny(), tmp_path, store).failed == 0
    assert timeless(read(tmp_path)) == rows
    assert sum(store.made.values()) > 0


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_readonly_store_gives_out_what_it_holds(
    serial: tuple[Path, Store],
    rows: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Claims, "_take", refuse)
    outcome = run(tiny(), tmp_path, Store(serial[0] / "store"))
    assert outcome.failed == 0
    assert timeless(read(tmp_path)) == rows
    other = tiny([{"name": "retrieval", "threats": ["transfer"]}])
    outcome = run(other, tmp_path, Store(serial[0] / "store"))
    assert outcome.failed == 1
    assert outcome.refusal is not None
    assert "Read-only file system" in str(outcome.refusal)


def test_what_cells_share_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    fit = Retrieval.fit

    def counted(*given: Any) -> None:
        trained.append(1)
        fit(*given)

    monkeypatch.setattr(Retrieval, "fit", counted)
    defenses = [{"name": "none"}, {"name": "gaussian-noise"}]
    attacks = [{"name": "retrieval", "threats": ["transfer", "adaptive"]}]
    suite = tiny(attacks, leak="template", defenses=defenses, seeds=[0, 1])
    store = Store(tmp_path / "store")
    assert run(suite, tmp_path, store).failed == 0
    # For each seed: one attacker that knows no defense, for both; and one that adapts.
    assert len(trained) == 2 * 2
    assert store.made["reconstructions"] == 2 * 3
    assert store.made["scores"] == store.made["reconstructions"] + store.made["references"]
    for stage in ("crops", "embeddings"):
        notes = (store.root / stage).rglob("*.json")
        photos = [name for path in notes for name in json.loads(path.read_text())["key"]["rows"]]
        assert len(photos) == len(set(photos)) > 0
    again = Store(store.root)
    run(suite, tmp_path, again)
    assert not again.made


def test_kills_at_random_moments_change_nothing(rows: list[Row], tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "15"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "15"
    for out in sorted(tmp_path.glob("*/out")):
        assert timeless(read(out)) == rows
        assert not list(Store(out.parent / "store").verify())
