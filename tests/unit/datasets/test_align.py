"""Alignment: five points to the ArcFace template, the same crop wherever the face is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bench.datasets.align import SIZE, TEMPLATE, Aligner, _similarity
from bench.datasets.images import decode
from bench.datasets.orl import ORL
from bench.errors import DataError

Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner()


@pytest.fixture(scope="module")
def photos() -> list[Picture]:
    """One photo of every second person of ORL, 112x92."""
    orl = ORL()
    return [decode(orl.read(photo), where=photo.key) for photo in orl.photos[::20]]


@pytest.fixture(scope="module")
def crops(aligner: Aligner, photos: list[Picture]) -> list[Picture]:
    return [aligner.crop(photo, "photo") for photo in photos]


def bgr(picture: Picture) -> Picture:
    return np.ascontiguousarray(picture[:, :, ::-1])


def placed(crop: Picture, canvas: int, scale: float, turn: float, x: float, y: float) -> Picture:
    """Put an aligned crop, scaled and turned by degrees about its middle, onto a gray canvas."""
    matrix: Any = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), turn, scale)
    matrix[:, 2] += [x - SIZE / 2, y - SIZE / 2]
    size = (canvas, canvas)
    made: Any = cv2.warpAffine(
        crop, matrix, size, borderMode=cv2.BORDER_CONSTANT, borderValue=(90,) * 3
    )
    return made


# --- the transform ------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "turn"), [(0.5, 0), (2, 30), (1, -90), (7.3, 170)])
def test_a_similarity_is_found_exactly(scale: float, turn: float) -> None:
    angle = np.deg2rad(turn)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = TEMPLATE @ rotation.T + [31, -17]
    matrix = _similarity(points)
    assert matrix.shape == (2, 3)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], TEMPLATE, atol=1e-9)


def test_the_transform_is_the_least_squares_similarity() -> None:
    points = TEMPLATE * 1.3 + np.random.default_rng(0).normal(0, 4, (5, 2))
    # x' = a x - b y + s and y' = b x + a y + t are linear in a, b, s and t.
    rows = [[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in points]
    (a, b, s, t), *_ = np.linalg.lstsq(np.reshape(rows, (10, 4)), TEMPLATE.ravel())
    np.testing.assert_allclose(_similarity(points), [[a, -b, s], [b, a, t]], atol=1e-9)


def test_the_template_is_that_of_arcface() -> None:
    assert SIZE == 112
    expected = [38.2946, 51.6963, 73.5318, 51.5014, 56.0252, 71.7366]
    assert TEMPLATE.ravel()[:6].tolist() == expected
    assert TEMPLATE.ravel()[6:].tolist() == [41.5493, 92.3655, 70.7299, 92.2041]


# --- crops --------------------------------------------------------------------------------------


def test_crops_have_the_shape_that_recognizers_read(crops: list[Picture]) -> None:
    for crop in crops:
        assert crop.shape == (112, 112, 3)
        assert crop.dtype == np.uint8
        assert crop.flags.c_contiguous
        assert crop.max() > 100


def test_the_points_land_on_the_template(aligner: Aligner, photos: list[Picture]) -> None:
    found = []
    for photo in photos:
        points = aligner._landmarks(bgr(photo), "photo")
        matrix = _similarity(points)
        found.append(points @ matrix[:, :2].T + matrix[:, 2])
    # A similarity cannot match every face; the mean face must match, and each one roughly.
    distances = np.linalg.norm(np.array(found) - TEMPLATE, axis=2)
    assert distances.mean() <= 3
    assert distances.max() <= 8
    assert np.linalg.norm(np.mean(found, axis=0) - TEMPLATE, axis=1).max() <= 4


def test_the_points_are_found_again_in_the_crops(aligner: Aligner, crops: list[Picture]) -> None:
    # In so tight a crop YuNet puts the mouth some 4 pixels higher than ArcFace's template does.
    found = np.mean([aligner._landmarks(bgr(crop), "crop") for crop in crops], axis=0)
    assert np.linalg.norm(found - TEMPLATE, axis=1)[:3].max() <= 3
    assert np.linalg.norm(found - TEMPLATE, axis=1)[3:].max() <= 6
    assert np.linalg.norm(found.mean(0) - TEMPLATE.mean(0)) <= 1.5


@pytest.mark.parametrize(
    ("scale", "turn", "x", "y"), [(1, 0, 150, 150), (2, 0, 160, 140), (1.5, 20, 150, 160)]
)
def test_the_crop_does_not_depend_on_where_the_face_is(
    scale: float, turn: float, x: float, y: float, aligner: Aligner, crops: list[Picture]
) -> None:
    middle = slice(24, 100)
    differences = []
    for crop in crops[:8]:
        again = aligner.crop(placed(crop, 300, scale, turn, x, y), "placed")
        differences.append(np.abs(again.astype(int) - crop)[middle, middle].mean())
    others = [np.abs(a.astype(int) - b)[middle, middle].mean() for a, b in pairwise(crops)]
    assert np.median(differences) < 0.6 * np.median(others)


def test_colors_keep_their_order(aligner: Aligner, photos: list[Picture]) -> None:
    tinted = (photos[0] * [1.0, 0.7, 0.4]).astype(np.uint8)
    red, green, blue = aligner.crop(tinted, "tinted").reshape(-1, 3).mean(0)
    assert green == pytest.approx(0.7 * red, rel=0.05)
    assert blue == pytest.approx(0.4 * red, rel=0.05)


def test_the_photo_is_not_changed_and_the_crop_is_repeatable(
    aligner: Aligner, photos: list[Picture], crops: list[Picture]
) -> None:
    before = photos[1].copy()
    assert np.array_equal(aligner.crop(photos[1], "photo"), crops[1])
    assert np.array_equal(photos[1], before)
    assert np.array_equal(Aligner().crop(photos[1], "photo"), crops[1])


def test_the_face_nearest_to_the_middle_is_taken(aligner: Aligner, photos: list[Picture]) -> None:
    canvas = np.full((240, 420, 3), 90, np.uint8)
    canvas[64:176, 164:256] = photos[0]
    alone = aligner.crop(canvas, "alone")
    canvas[20:132, 4:96] = photos[4]
    canvas[100:212, 320:412] = photos[6]
    assert np.abs(aligner.crop(canvas, "three").astype(int) - alone).mean() < 10
    moved = np.full((240, 420, 3), 90, np.uint8)
    moved[64:176, 164:256] = photos[4]
    assert np.abs(aligner.crop(moved, "other").astype(int) - alone).mean() > 20


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(23, 200), (200, 23), (1, 1)])
def test_a_photo_that_is_too_small_is_named(shape: tuple[int, int], aligner: Aligner) -> None:
    photo = np.zeros((*shape, 3), np.uint8)
    sentence = rf"image tiny\.png has {shape[1]}x{shape[0]} pixels, too few .*at least 24 on each"
    with pytest.raises(DataError, match=sentence):
        aligner.crop(photo, "tiny.png")


@pytest.mark.parametrize("kind", ["flat", "noise", "smallest"])
def test_a_photo_without_a_face_is_named(kind: str, aligner: Aligner) -> None:
    side = 24 if kind == "smallest" else 150
    photo = np.full((side, side, 3), 127, np.uint8)
    if kind == "noise":
        photo = np.random.default_rng(0).integers(0, 256, photo.shape, dtype=np.uint8)
    with pytest.raises(DataError, match=r"No face was found in the image wall\.png: remove it, or"):
        aligner.crop(photo, "wall.png")


def test_a_broken_file_never_reaches_alignment() -> None:
    orl = ORL()
    whole = orl.read(orl.photos[0])
    with pytest.raises(DataError, match=r"^s1/1\.pgm is not a usable image \(.*\): replace it by"):
        decode(whole[:500], where="s1/1.pgm")
