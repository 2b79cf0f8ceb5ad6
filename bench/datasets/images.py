"""Untrusted files and images: opened and decoded under caps, or refused in one sentence."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP")
"""Formats that are decoded (PPM covers PGM); Pillow's other parsers are never reached."""

MAX_BYTES = 64 << 20
"""Largest encoded image, in bytes."""

MAX_PIXELS = 64_000_000
"""Largest decoded image, in pixels: 192 MB as RGB."""

_DEEP_MODES = ("I", "F")


@contextmanager
def reading(path: Path, *, max_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Open a regular file for reading bytes; every failure of the system becomes a `DataError`.

    Args:
        path: File to read. Pipes and devices are refused, they could block or never end.
        max_bytes: Largest accepted file, in bytes; None accepts any.

    Yields:
        The open binary stream, at its start.

    Raises:
        DataError: The file is absent, unreadable, not a regular file, or larger than `max_bytes`.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path} is not a file: check the path.")
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise DataError(
                f"{path} has {size:,} bytes where at most {max_bytes:,} are read: "
                "check that it is the right file."
            )
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): check its permissions."
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing bytes that appears under its name complete or not at all.

    Args:
        path: File to write or to replace; its folder exists.

    Yields:
        A binary stream into a temporary file beside it, synced and renamed on a clean exit and
        removed otherwise.

    Raises:
        DataError: The system refuses to write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}): "
            "make room or choose another folder."
        ) from error


def load(path: Path) -> NDArray[np.uint8]:
    """Read and decode one image file.

    Returns:
        Array of shape (height, width, 3), RGB, 0 to 255.

    Raises:
        DataError: The file cannot be read or is not a usable image.
    """
    with reading(path, max_bytes=MAX_BYTES) as stream:
        return decode(stream.read(), where=str(path))


def decode(data: bytes, *, where: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode one encoded image that may come from anybody.

    Gray images become three equal channels, an alpha channel is dropped, and the EXIF orientation
    is applied, as OpenCV's decoder does.

    Args:
        data: The encoded image, in one of `FORMATS`.
        where: Names the image in errors: a file, or a file and a record.
        max_pixels: Largest accepted image, in pixels, checked before anything is decoded.

    Returns:
        Array of shape (height, width, 3), RGB, 0 to 255.

    Raises:
        DataError: The image is truncated, corrupt, too large, of another format, or deeper than
            8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check(image, where, max_pixels)
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except DataError:
        raise
    # Pillow's parsers raise nearly every built-in exception when fed with damaged bytes.
    except Exception as error:
        raise DataError(
            f"{where} is not a usable image ({_reason(error)}): "
            f"replace it by an intact {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image."
        ) from error


def _check(image: Image.Image, where: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise DataError(
            f"{where} has {image.width} x {image.height} pixels where at most {max_pixels:,} are "
            "decoded: scale it down."
        )
    if image.mode.startswith(_DEEP_MODES):
        raise DataError(
            f"{where} has more than 8 bits per channel (mode {image.mode}): convert it to 8 bits."
        )


def _reason(error: Exception) -> str:
    """Return what Pillow said, without the address of the buffer that it likes to print."""
    if isinstance(error, UnidentifiedImageError):
        return "its format is not recognised"
    return str(error).strip().rstrip(".") or type(error).__name__
