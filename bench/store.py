"""The content-addressed store: what was computed once is not computed again.

An artifact's key is the sha256 of the canonical JSON of everything that can change its bytes. It is
written to a temporary file, flushed, and renamed, so a reader sees all of it or nothing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.errors import UserError
from bench.keys import digest

SCHEMA = 1
"""Raised when the meaning of stored artifacts changes; part of every key."""


class StoreError(UserError):
    """The store cannot be written or read. It ends the run: other cells would fail alike."""


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


Made = tuple[dict[str, Tensor], dict[str, Any]]


def default_root() -> Path:
    """Return the user's cache folder for veilbench."""
    return Path(pooch.os_cache("veilbench"))


class Store:
    """Artifacts under one folder.

    Args:
        root: The folder; made when the first artifact is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def artifact(self, stage: str, fields: dict[str, Any], make: Callable[[], Made]) -> Artifact:
        """Return the artifact of a stage, making and writing it if it is absent.

        Args:
            stage: Name of the stage: "crops", "records", "reconstructions".
            fields: Everything that can change the bytes, as plain values.
            make: Computes the tensors, and the facts to record beside them.

        Raises:
            StoreError: The store cannot be read or written.
        """
        full = {"schema": SCHEMA, "stage": stage, **fields}
        key = digest(full)
        data, note = self._paths(stage, key)
        if not (data.is_file() and note.is_file()):
            started = time.perf_counter()
            tensors, facts = make()
            facts = {**facts, "seconds": round(time.perf_counter() - started, 3)}
            with self._writing(data) as path:
                save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path)
            with self._writing(note) as path:
                path.write_text(json.dumps({"key": full, "facts": facts}, indent=1))
        return self._read(key, data, note)

    def _paths(self, stage: str, key: str) -> tuple[Path, Path]:
        base = self.root / stage / key[:2] / key
        return base.with_suffix(".safetensors"), base.with_suffix(".json")

    def _read(self, key: str, data: Path, note: Path) -> Artifact:
        try:
            return Artifact(key, load_file(data), json.loads(note.read_text())["facts"])
        except Exception as error:
            raise StoreError(
                f"The stored artifact {data} cannot be read ({error}): delete it and run again."
            ) from error

    @contextmanager
    def _writing(self, target: Path) -> Iterator[Path]:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as path:
                yield path
        except OSError as error:
            raise _store_error(self.root, error) from error
        except SafetensorError as error:
            # It reports the system's errors as text of its own: "... (os error 28)".
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else errno.EIO
            raise _store_error(self.root, OSError(number, os.strerror(number))) from error


def _store_error(root: Path, error: OSError) -> StoreError:
    if error.errno == errno.ENOSPC:
        return StoreError(
            f"There is no space left on the disk of the store {root}: free some, or give another "
            "folder with --store; what is finished is kept."
        )
    return StoreError(
        f"The store {root} cannot be written ({error.strerror}): give another folder with --store."
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
