"""A store in an object store such as S3, through fsspec, with a folder of each machine before it.

Objects have the names of the files of a folder's store. What a process needs is copied into the
machine's own folder and mapped from there. What it makes is sent before it appears in the folder,
the tensors before the record beside them, so that a record is there only if its tensors are.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fsspec.core import url_to_fs

from bench.claims import Claims
from bench.errors import UserError
from bench.store import CLAIMS, File, Store, atomic_path, checked_note


class ObjectStore(Store):
    """Artifacts in an object store, which processes and machines may share.

    Args:
        url: Where, such as s3://bucket/prefix.
        folder: This machine's copies.

    Raises:
        UserError: The URL cannot be used.
    """

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(folder)
        self.where = url.rstrip("/")
        self._objects = Objects(self.where)
        self._claims = Claims(ObjectBoard(self._objects))
        self._shared: set[Path] = set()

    def _note(self, data: Path) -> dict[str, Any] | None:
        """Return what is recorded beside whole tensors, copying both here if need be.

        A copy that the disk has damaged is copied again; what is damaged there is dropped. A copy
        of what others have deleted there is sent again, for other machines may need it.
        """
        note = super()._note(data)
        if note is not None:
            self._send(data)
        elif self._fetch(data):
            note = super()._note(data)
            if note is None:
                with self._refusing():
                    self._objects.delete(self._relative(data.with_suffix(".json")))
        return note

    def _send(self, data: Path) -> None:
        """Copy a whole artifact of the folder to where it is not; looked up once."""
        if data in self._shared:
            return
        with self._refusing():
            if self._objects.read(self._relative(data.with_suffix(".json"))) is None:
                for path in (data, data.with_suffix(".json")):
                    self._objects.upload(path, self._relative(path))
        self._shared.add(data)

    def _fetch(self, data: Path) -> bool:
        """Copy an artifact into the folder; False if it is not there."""
        record = data.with_suffix(".json")
        with self._refusing():
            text = self._objects.read(self._relative(record))
            if text is None:
                return False
            data.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(data) as path:
                self._objects.download(self._relative(data), path)
            with atomic_path(record) as path:
                path.write_bytes(text)
        self._shared.add(data)
        return True

    def _family(self, family: str) -> Iterable[Path]:
        with self._refusing():
            names = self._objects.files(f"{family}/")
        parts = (self.root / name for name in names if name.endswith(".safetensors"))
        return {*super()._family(family), *parts}

    @contextmanager
    def _writing(self, target: Path) -> Iterator[Path]:
        with super()._writing(target) as path:
            yield path
            self._objects.upload(path, self._relative(target))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    # --- upkeep ---------------------------------------------------------------------------------

    def _files(self) -> dict[str, File]:
        with self._refusing():
            return self._objects.files("")

    def _check(self, name: str) -> None:
        with TemporaryDirectory() as folder:
            data = Path(folder, name).with_suffix(".safetensors")
            data.parent.mkdir(parents=True)
            for path in (data, data.with_suffix(".json")):
                self._objects.download(path.relative_to(folder).as_posix(), path)
            checked_note(data)

    def _delete(self, name: str) -> None:
        self._objects.delete(name)
        super()._delete(name)


class ObjectBoard:
    """Claims as objects, which are written anew with every touch.

    Two owners of one claim are excluded where the object store creates exclusively: S3 does
    (If-None-Match). Elsewhere two may do the same work now and then, and write the same.

    Args:
        objects: The store's objects.
    """

    poll = 1.0

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def names(self, key: str) -> list[str]:
        """Return the names of the claims on a key."""
        names = (name.rpartition("/")[2] for name in self._objects.files(f"{CLAIMS}/"))
        return [name for name in names if name.startswith(f"{key}.")]

    def create(self, name: str, text: str) -> bool:
        """Create an object; False if it exists."""
        return self._objects.create(f"{CLAIMS}/{name}", text.encode())

    def read(self, name: str) -> tuple[str, object] | None:
        """Return an object's text, which every touch changes; None if it is gone."""
        found = self._objects.read(f"{CLAIMS}/{name}")
        return None if found is None else (found.decode(), found)

    def touch(self, name: str, text: str) -> None:
        """Write an object anew."""
        self._objects.write(f"{CLAIMS}/{name}", text.encode())

    def delete(self, name: str) -> None:
        """Delete an object."""
        self._objects.delete(f"{CLAIMS}/{name}")


class Objects:
    """Whole objects below a URL, by name.

    Every method raises OSError where the object store cannot be reached or refuses.

    Args:
        url: Where, such as s3://bucket/prefix.

    Raises:
        UserError: The URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        try:
            # What other machines have written must be seen at once: no listing is remembered.
            self._system, self._root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"The store {url} cannot be opened ({error}): give a folder, or a URL such as "
                "s3://bucket/prefix after pip install 'veilbench[s3]'."
            ) from error

    def files(self, prefix: str) -> dict[str, File]:
        """Return all objects by name.

        Args:
            prefix: What the names begin with: nothing, or whole parts and a slash.
        """
        with _told():
            found = self._system.find(self._path(prefix), detail=True)
        start = len(self._root) + 1
        # What was empty while it was listed, and no longer is, is reported as a directory.
        return {
            path[start:]: File(int(about["size"]), _written(about))
            for path, about in found.items()
            if about["type"] == "file"
        }

    def read(self, name: str) -> bytes | None:
        """Return an object; None if there is none."""
        try:
            with _told():
                content: bytes = self._system.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write an object, whether or not there is one."""
        with _told():
            self._system.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object; False if there is one, also if it came just before."""
        try:
            with _told():
                self._system.pipe_file(self._path(name), content, mode="create")
        except OSError:
            # Servers answer an object that exists, or comes at this moment, with various errors.
            if self.read(name) is None:
                raise
            return False
        return True

    def download(self, name: str, path: Path) -> None:
        """Copy an object into a file."""
        with _told():
            self._system.get_file(self._path(name), str(path))

    def upload(self, path: Path, name: str) -> None:
        """Copy a file into an object."""
        with _told():
            self._system.put_file(str(path), self._path(name))

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        try:
            with _told():
                self._system.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")


@contextmanager
def _told() -> Iterator[None]:
    """Turn errors of a client, such as botocore's of a connection, into OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, str(error)) from error


def _written(about: dict[str, Any]) -> float:
    """Return when an object was written, in seconds, by what the file system calls it."""
    time = about.get("LastModified") or about.get("created")
    if time is None:
        raise OSError(errno.ENOTSUP, "its objects carry no time")
    return float(time.timestamp() if isinstance(time, datetime) else time)
