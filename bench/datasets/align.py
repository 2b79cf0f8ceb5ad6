"""Alignment to the ArcFace 112x112 template: five points by YuNet, one similarity transform.

Template and transform: insightface `face_align.py`; the same crop that OpenCV's SFace expects.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from bench import assets
from bench.errors import DataError

ALIGNMENT = "yunet-arcface112-bilinear-zero"
"""Names everything that changes a crop's bytes; part of a result's key."""

TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""Eyes, nose, mouth corners (x, y) in the 112x112 crop, image-left before image-right."""

SIZE = 112
_MIN_SIDE = 24
_SCORE = 0.5  # YuNet's usual .9 misses 2 of the 400 ORL faces; .5 finds every one and invents none.


class Aligner:
    """Finds the face nearest to the middle of a photo and warps it to the template."""

    def __init__(self) -> None:
        previous = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        self._detector = cv2.FaceDetectorYN.create(
            str(assets.locate("yunet")), "", (SIZE, SIZE), _SCORE
        )
        cv2.utils.logging.setLogLevel(previous)

    def crop(self, photo: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
        """Return the aligned crop of a photo.

        Args:
            photo: (H, W, 3) RGB, 0 to 255.
            where: File name for messages.

        Returns:
            (112, 112, 3) RGB, 0 to 255.

        Raises:
            DataError: The photo is too small, or no face is found in it.
        """
        height, width = photo.shape[:2]
        if min(height, width) < _MIN_SIDE:
            raise DataError(
                f"The image {where} has {width}x{height} pixels, too few to find a face in: "
                f"give at least {_MIN_SIDE} on each side."
            )
        bgr = np.ascontiguousarray(photo[:, :, ::-1])
        matrix = _similarity(self._landmarks(bgr, where))
        crop = cv2.warpAffine(bgr, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=0)
        return np.ascontiguousarray(crop[:, :, ::-1]).astype(np.uint8, copy=False)

    def _landmarks(self, bgr: NDArray[np.uint8], where: str) -> NDArray[np.float64]:
        height, width = bgr.shape[:2]
        self._detector.setInputSize((width, height))
        faces = self._detector.detect(bgr)[1]
        if faces is None:
            raise DataError(
                f"No face was found in the image {where}: remove it, or give a clearer photo."
            )
        middles = faces[:, :2] + faces[:, 2:4] / 2
        nearest = np.linalg.norm(middles - [width / 2, height / 2], axis=1).argmin()
        points: NDArray[np.float64] = faces[nearest, 4:14].reshape(5, 2).astype(np.float64)
        return points


def _similarity(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 2x3 matrix of the least-squares similarity (Umeyama 1991) to the template."""
    # Importing it takes a fifth of a second, which a run that aligns nothing need not spend.
    from skimage.transform import SimilarityTransform

    matrix: NDArray[np.float64] = SimilarityTransform.from_estimate(points, TEMPLATE).params[:2]
    return matrix
