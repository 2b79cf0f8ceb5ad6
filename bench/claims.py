"""Claims: which process makes which artifact, so that several processes share one store's work.

A claim is a file created exclusively, which its owner touches while it works. A claim whose owner
is gone is not deleted but followed by one of a higher number: creating that is exclusive too, so
only one of those who wait takes over. An owner that was only asleep then works in vain and writes
the same bytes: claims save work, and what is stored is right without them.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

HEARTBEAT = 5.0
"""Seconds between two touches of a claim."""

STALE = 60.0
"""Seconds without a touch after which an owner on another machine counts as gone."""


class Board(Protocol):
    """Where claims hang: small texts by name, "KEY.NUMBER".

    All of it raises OSError where it cannot be read or written.
    """

    poll: float
    """Seconds between two looks at what another process is making."""

    def names(self, key: str) -> list[str]:
        """Return the names of the claims on a key."""

    def create(self, name: str, text: str) -> bool:
        """Hang up a claim; False if there is one of that name, also if it came just before."""

    def read(self, name: str) -> tuple[str, object] | None:
        """Return the text of a claim, and what changes with every touch; None if it is gone."""

    def touch(self, name: str, text: str) -> None:
        """Show that the owner of a claim still works."""

    def delete(self, name: str) -> None:
        """Take a claim down, if it is there."""


class FolderBoard:
    """Claims as files of one folder, which is made with the first.

    Args:
        folder: The folder. Its file system creates files exclusively, as POSIX and NFSv4 do.
    """

    poll = 0.1

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self, key: str) -> list[str]:
        """Return the names of the claims on a key."""
        return [path.name for path in self._folder.glob(f"{key}.*")]

    def create(self, name: str, text: str) -> bool:
        """Create a file; False if it exists."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with (self._folder / name).open("x") as stream:
                stream.write(text)
        except FileExistsError:
            return False
        return True

    def read(self, name: str) -> tuple[str, object] | None:
        """Return a file's text and time; None if it is gone."""
        path = self._folder / name
        try:
            return path.read_text(), path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def touch(self, name: str, text: str) -> None:
        """Set a file's time."""
        os.utime(self._folder / name)

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self._folder / name).unlink(missing_ok=True)


class Claims:
    """The claims of one process on one board.

    Args:
        board: Where claims hang.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._held: set[str] = set()
        self._holding = threading.Lock()
        self._seen: dict[str, tuple[object, float]] = {}
        self._heart: threading.Thread | None = None

    @contextmanager
    def holding(self, key: str, done: Callable[[], bool]) -> Iterator[bool]:
        """Hold the claim on a key inside the block, once nobody else does.

        Args:
            key: What is claimed; letters and digits.
            done: Says whether somebody has finished the work.

        Yields:
            Whether the work is still to be done.

        Raises:
            OSError: The board cannot be read or written.
        """
        while not done():
            name = self._take(key)
            if name is None:
                time.sleep(self._board.poll)
                continue
            try:
                yield not done()
            finally:
                self._release(key, name)
            return
        yield False

    def _take(self, key: str) -> str | None:
        newest = max(map(_number, self._board.names(key)), default=0)
        if newest and self._alive(f"{key}.{newest}"):
            return None
        name = f"{key}.{newest + 1}"
        if not self._board.create(name, _owner()):
            return None
        with self._holding:
            self._held.add(name)
        self._keep_beating()
        return name

    def _release(self, key: str, name: str) -> None:
        with self._holding:
            self._held.discard(name)
        # In rising order: as long as the own claim stands, nobody believes an older one.
        with suppress(OSError):
            for claim in sorted(self._board.names(key), key=_number):
                if _number(claim) <= _number(name):
                    self._board.delete(claim)

    def _alive(self, name: str) -> bool:
        """Say whether a claim's owner still works: by its process here, by its touches elsewhere.

        Touches are timed by this process's own clock: those of two machines may differ.
        """
        found = self._board.read(name)
        if found is None:
            return False
        text, touched = found
        # An owner that was killed before it wrote its name is told by its touches alone.
        owner = json.loads(text) if text.endswith("}") else {}
        if owner.get("host") == _host() and not _runs(owner["process"]):
            return False
        before, since = self._seen.get(name, (None, 0.0))
        if touched != before:
            self._seen[name] = (touched, time.monotonic())
            return True
        return time.monotonic() - since < STALE

    def _keep_beating(self) -> None:
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, daemon=True)
            self._heart.start()

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            # A touch may write anew: none may come after the release that takes the claim down.
            with self._holding:
                for name in self._held:
                    with suppress(OSError):
                        self._board.touch(name, _owner())


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])


def _owner() -> str:
    """Return who holds a claim, and until when it has surely worked by its own clock."""
    return json.dumps({"host": _host(), "process": os.getpid(), "time": time.time()})


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _host() -> str:
    """Return a name within which process numbers mean something: machine, boot and container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    parts = [platform.node()]
    parts += [boot.read_text().strip()] if boot.is_file() else []
    parts += [os.readlink(space)] if space.is_symlink() else []
    return " ".join(parts)
