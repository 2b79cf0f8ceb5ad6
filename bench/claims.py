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

HEARTBEAT = 5.0
"""Seconds between two touches of a claim."""

STALE = 60.0
"""Seconds without a touch after which an owner on another machine counts as gone."""

POLL = 0.1
"""Seconds between two looks at what another process is making."""


class Claims:
    """The claims of one process in one folder.

    Args:
        folder: Where claims are files; made with the first claim.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: set[Path] = set()
        self._seen: dict[Path, tuple[int, float]] = {}
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
            OSError: The folder cannot be written.
        """
        while not done():
            path = self._take(key)
            if path is None:
                time.sleep(POLL)
                continue
            try:
                yield not done()
            finally:
                self._release(key, path)
            return
        yield False

    def _take(self, key: str) -> Path | None:
        self._folder.mkdir(parents=True, exist_ok=True)
        newest = max((_number(path) for path in self._folder.glob(f"{key}.*")), default=0)
        if newest and self._alive(self._folder / f"{key}.{newest}"):
            return None
        path = self._folder / f"{key}.{newest + 1}"
        try:
            with path.open("x") as stream:
                json.dump({"host": _host(), "process": os.getpid()}, stream)
        except FileExistsError:
            return None
        self._held.add(path)
        self._keep_beating()
        return path

    def _release(self, key: str, path: Path) -> None:
        self._held.discard(path)
        # In rising order: as long as the own claim stands, nobody believes an older one.
        for claim in sorted(self._folder.glob(f"{key}.*"), key=_number):
            if _number(claim) <= _number(path):
                with suppress(OSError):
                    claim.unlink()

    def _alive(self, path: Path) -> bool:
        """Say whether a claim's owner still works: by its process here, by its touches elsewhere.

        Touches are timed by this process's own clock: those of two machines may differ.
        """
        try:
            touched, text = path.stat().st_mtime_ns, path.read_text()
        except FileNotFoundError:
            return False
        # An owner that was killed before it wrote its name is told by its touches alone.
        owner = json.loads(text) if text.endswith("}") else {}
        if owner.get("host") == _host() and not _runs(owner["process"]):
            return False
        before, since = self._seen.get(path, (0, 0.0))
        if touched != before:
            self._seen[path] = (touched, time.monotonic())
            return True
        return time.monotonic() - since < STALE

    def _keep_beating(self) -> None:
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, daemon=True)
            self._heart.start()

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            for path in list(self._held):
                with suppress(OSError):
                    os.utime(path)


def _number(path: Path) -> int:
    return int(path.suffix[1:])


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
