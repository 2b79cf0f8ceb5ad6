"""The content-addressed store: what was computed once is not computed again.

An artifact's key is the sha256 of the canonical JSON of everything that can change its bytes. It is
written to a temporary file, flushed, and renamed, so a reader sees all of it or nothing. Beside the
tensors stands their sha256: what a disk has damaged is noticed when it is read, and made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.claims import Claims, FolderBoard
from bench.errors import UserError
from bench.keys import digest
from bench.profile import profile

SCHEMA = 2
"""Raised when the meaning of stored artifacts changes; part of every key."""

CLAIMS = "claims"
"""The sub-folder that holds no artifacts."""

LEFT_BEHIND = 3600.0
"""Seconds after which an unfinished file or a claim belongs to nobody."""

_log = logging.getLogger("veilbench")


class StoreError(UserError):
    """The store cannot be written."""


@dataclass(frozen=True)
class Artifact:
    """A stored result.

    Attributes:
        key: Its sha256.
        tensors: Named tensors, mapped from the file.
        facts: What was recorded beside them and is not part of the key, such as timings.
    """

    key: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class File:
    """What is known of a file of a store: bytes, and seconds since the epoch of its writing."""

    size: int
    written: float


Made = tuple[dict[str, Tensor], dict[str, Any]]


def default_root() -> Path:
    """Return the user's cache folder for veilbench."""
    return Path(pooch.os_cache("veilbench"))


def open_store(where: str | None = None) -> Store:
    """Return the store at a place.

    Args:
        where: A folder; or the URL of an object store, such as s3://bucket/prefix; None for the
            user's cache folder.

    Raises:
        UserError: The URL cannot be used.
    """
    if where is None or "://" not in where:
        return Store(Path(where) if where else default_root())
    from bench.object_store import ObjectStore

    return ObjectStore(where, default_root() / "object-stores" / digest(where)[:16])


class Store:
    """Artifacts under one folder, which processes and machines may share.

    Args:
        root: The folder; made when the first artifact is written.

    Attributes:
        where: What `open_store` opens it by.
        used: Path below the root, without suffix, of every artifact that was read or written.
        made: How many artifacts were made, by stage.
        refusal: Why nothing is computed any more, once that is so.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = str(root)
        self.used: set[str] = set()
        self.made: Counter[str] = Counter()
        self._claims = Claims(FolderBoard(root / CLAIMS))
        self._checked: dict[Path, dict[str, Any]] = {}
        self.refusal: StoreError | None = None

    def artifact(self, stage: str, fields: dict[str, Any], make: Callable[[], Made]) -> Artifact:
        """Return the artifact of a stage, making and writing it if it is absent or damaged.

        If another process is making it, wait for that one.

        Args:
            stage: Name of the stage: "records", "reconstructions".
            fields: Everything that can change the bytes, as plain values.
            make: Computes the tensors, and the facts to record beside them.

        Raises:
            StoreError: The store cannot be written. From then on it computes nothing: it gives out
                what is there, and raises the same for the rest.
        """
        full = _full(stage, fields)
        key = digest(full)
        data = self._data(stage, key)
        while (note := self._note(data)) is None:
            with self._claimed(key, lambda: self._note(data) is not None) as mine:
                if mine:
                    self._make(data, full, make)
        return self._load(data, note)

    def unfinished(self, stage: str, fields: dict[str, Any]) -> Path:
        """Return the file on this machine for what is known so far of an artifact in the making.

        Whoever makes the artifact deletes the file; what is left behind goes with `collect`.

        Args:
            stage: As in `artifact`.
            fields: As in `artifact`.

        Raises:
            StoreError: The store cannot be written.
        """
        data = self._data(stage, digest(_full(stage, fields)))
        with self._refusing():
            data.parent.mkdir(parents=True, exist_ok=True)
        return data.with_suffix(".unfinished.part")

    def close(self, refusal: StoreError | None = None) -> None:
        """Compute nothing any more: from now on, what is not there raises.

        Args:
            refusal: What it raises.
        """
        self.refusal = refusal or StoreError(
            f"The store {self.where} lacks what the workers should have put there: give all of "
            "them the same veilbench, the same kind of processor, and the same --store."
        )

    def rows(
        self,
        stage: str,
        fields: dict[str, Any],
        names: Sequence[str],
        make: Callable[[list[int]], Tensor],
    ) -> Tensor:
        """Return one row per name, making only the rows that no run has made before.

        A row must depend on the fields and its own name alone, whatever is made beside it.

        Args:
            stage: Name of the stage: "crops", "embeddings".
            fields: Everything that can change the bytes of every row, as plain values.
            names: What each row is made of, such as the sha256 of a photo.
            make: Computes the rows (N, ...) at some positions of `names`.

        Raises:
            StoreError: The store cannot be written.
        """
        family = f"{stage}/{digest(fields)}"
        while self._missing(family, names):
            with self._claimed(digest(family), lambda: not self._missing(family, names)) as mine:
                if mine:
                    self._make_rows(family, fields, names, make)
        parts = {path: note["key"]["rows"] for path, note in self._parts(family).items()}
        found: dict[str, Tensor] = {}
        for path, held in parts.items():
            rows = self._load(path, self._checked[path]).tensors["rows"]
            if held == list(names):
                return rows
            found.update(zip(held, rows, strict=True))
        return torch.stack([found[name] for name in names])

    def _make_rows(
        self,
        family: str,
        fields: dict[str, Any],
        names: Sequence[str],
        make: Callable[[list[int]], Tensor],
    ) -> None:
        missing = self._missing(family, names)
        part = {**fields, "rows": [names[position] for position in missing]}
        self.artifact(family, part, lambda: ({"rows": make(missing)}, {}))

    def _missing(self, family: str, names: Sequence[str]) -> list[int]:
        """Return the position of the first of each name that no part of a family holds."""
        known = {name for note in self._parts(family).values() for name in note["key"]["rows"]}
        first = {name: position for position, name in reversed(list(enumerate(names)))}
        return sorted(position for name, position in first.items() if name not in known)

    def _parts(self, family: str) -> dict[Path, dict[str, Any]]:
        """Return the undamaged parts of a family of rows, with their notes."""
        paths = sorted(self._family(family))
        return {path: note for path in paths if (note := self._note(path)) is not None}

    def _family(self, family: str) -> Iterable[Path]:
        """Return the tensors of every part of a family of rows, whole or not."""
        return (self.root / family).glob("*/*.safetensors")

    def _data(self, stage: str, key: str) -> Path:
        """Return the file of an artifact's tensors."""
        return self.root / stage / key[:2] / f"{key}.safetensors"

    # --- one artifact ---------------------------------------------------------------------------

    def _note(self, data: Path) -> dict[str, Any] | None:
        """Return what is recorded beside whole tensors; None if they are absent or damaged.

        They are checked once: what damages them later is noticed by the next process.
        """
        if not data.is_file() or not data.with_suffix(".json").is_file():
            return None
        if data not in self._checked:
            try:
                with profile.span("check hashes"):
                    self._checked[data] = checked_note(data)
            except (OSError, ValueError, KeyError) as error:
                _log.warning("The stored artifact %s is damaged (%s): replacing it.", data, error)
                with suppress(OSError):
                    data.with_suffix(".json").unlink()
                return None
        return self._checked[data]

    def _load(self, data: Path, note: dict[str, Any]) -> Artifact:
        self.used.add(data.relative_to(self.root).with_suffix("").as_posix())
        with profile.span("read the store"):
            return Artifact(data.stem, load_file(data), note["facts"])

    def _make(self, data: Path, full: dict[str, Any], make: Callable[[], Made]) -> None:
        started = time.perf_counter()
        tensors, facts = make()
        facts = {**facts, "seconds": round(time.perf_counter() - started, 3)}
        self.made[full["stage"].partition("/")[0]] += 1
        with profile.span("write the store"):
            with self._writing(data) as path:
                save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path)
                sha256 = _sha256(path)
            note = {"key": full, "facts": facts, "sha256": sha256}
            with self._writing(data.with_suffix(".json")) as path:
                path.write_text(json.dumps({**note, "check": digest(note)}, indent=1))
        self._checked[data] = note

    @contextmanager
    def _claimed(self, key: str, done: Callable[[], bool]) -> Iterator[bool]:
        if self.refusal:
            raise self.refusal
        with ExitStack() as stack:
            with self._refusing():
                mine = stack.enter_context(self._claims.holding(key, done))
            yield mine

    @contextmanager
    def _writing(self, target: Path) -> Iterator[Path]:
        with self._refusing():
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as path:
                yield path

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn what the disk refuses into one sentence, and remember it."""
        try:
            yield
        except OSError as error:
            self.refusal = _store_error(self.where, error)
            raise self.refusal from error
        except SafetensorError as error:
            # It reports the system's errors as text of its own: "... (os error 28)".
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else errno.EIO
            self.refusal = _store_error(self.where, OSError(number, os.strerror(number)))
            raise self.refusal from error

    # --- upkeep ---------------------------------------------------------------------------------

    def artifacts(self) -> dict[str, int]:
        """Return every artifact, whole or not: path below the root without suffix, and bytes."""
        return {
            _name(name): file.size
            for name, file in sorted(self._files().items())
            if name.endswith(".safetensors") and not name.rpartition("/")[2].startswith(".")
        }

    def verify(self) -> Iterator[tuple[str, str]]:
        """Yield the artifacts that are not what was written, each with the reason."""
        for name in self.artifacts():
            try:
                self._check(name)
            except (OSError, ValueError, KeyError) as error:
                yield name, str(error)

    def collect(self, keep: Set[str]) -> tuple[int, int]:
        """Delete all artifacts but some, and what killed processes have left behind.

        Args:
            keep: What to keep, as in `used`.

        Returns:
            How many files were deleted, and their bytes.

        Raises:
            StoreError: The store cannot be written.
        """
        left = time.time() - LEFT_BEHIND
        gone = {
            name: file.size
            for name, file in self._files().items()
            if (
                file.written < left
                if name.endswith(".part") or name.startswith(f"{CLAIMS}/")
                else _name(name) not in keep
            )
        }
        with self._refusing():
            for name in gone:
                self._delete(name)
        return len(gone), sum(gone.values())

    def _check(self, name: str) -> None:
        """Raise what `checked_note` raises of an artifact."""
        checked_note(self.root / f"{name}.safetensors")

    def _files(self) -> dict[str, File]:
        """Return every file by its path below the root."""
        return {
            path.relative_to(self.root).as_posix(): File(path.stat().st_size, path.stat().st_mtime)
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def _delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)


def _full(stage: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return all that an artifact's key is made of."""
    return {"schema": SCHEMA, "stage": stage, **fields}


def _name(file: str) -> str:
    """Return a file's path without suffix."""
    return file.rpartition(".")[0]


def checked_note(data: Path) -> dict[str, Any]:
    """Return what is recorded beside tensors, if both are as they were written.

    Raises:
        OSError: They cannot be read.
        ValueError: They are not what was written.
        KeyError: The record lacks a field.
    """
    note: dict[str, Any] = json.loads(data.with_suffix(".json").read_text())
    if note.pop("check") != digest(note) or digest(note["key"]) != data.stem:
        raise ValueError("the record beside it is another")
    if note["sha256"] != _sha256(data):
        raise ValueError("its sha256 is another")
    return note


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _store_error(where: str, error: OSError) -> StoreError:
    if error.errno == errno.ENOSPC:
        return StoreError(
            f"There is no space left on the disk of the store {where}: free some, or give another "
            "folder with --store; what is finished is kept."
        )
    # An error of fsspec may carry no system error beside its own words.
    reason = error.strerror or str(error)
    return StoreError(
        f"The store {where} cannot be written ({reason}): give another folder with --store."
    )


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes the target when the block ends without an error."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
