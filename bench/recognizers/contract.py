"""What recognizers that users bring share: a file, an input contract, and a check of that contract.

A file of weights does not say what it wants to be fed. The user states it, as data, in the suite:
`recognizer = { name = "onnx", path = "w600k_r50.onnx", color = "rgb", offset = 127.5 }`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from bench.datasets.align import Aligner
from bench.datasets.images import decode, reading
from bench.datasets.orl import ORL
from bench.errors import DataError, UserError
from bench.plugin import Plugin
from bench.recognizers.base import CROP, Recognizer, first_mixed

MAX_WEIGHTS_BYTES = 1 << 30
"""Largest file of weights that is read; an IResNet-100 in float32 has 261 MB."""

_REFERENCE_PHOTOS = {"s1/1.pgm", "s1/2.pgm", "s2/1.pgm", "s2/2.pgm"}
_MARGIN = 0.25
_DARK = 1 / 8
_WARM = torch.tensor([1.0, 0.4, 0.15]).reshape(3, 1, 1)
_COLOR_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class Contract(Plugin):
    """What a network wants to be fed; every field is a parameter of the recognizer.

    The defaults are insightface's: RGB, -1 to 1, the ArcFace crop at 112x112, no mirror image.

    Attributes:
        size: Height of the input in pixels; crops of another height are resized bilinearly.
        color: Order of the channels.
        offset: What is subtracted from values of 0 to 255.
        scale: What the difference is divided by.
        crop: "arcface" is the whole crop; "sphereface" its middle 96 of 112 columns, which is the
            template of SphereFace, CosFace and the first ArcFace files.
        flip: Whether the embedding of the mirror image is added. The map at the cut then holds the
            channels of both.
    """

    size: Annotated[int, Field(ge=32, le=512)] = 112
    color: Literal["rgb", "bgr"] = "rgb"
    offset: Annotated[float, Field(allow_inf_nan=False)] = 127.5
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 127.5
    crop: Literal["arcface", "sphereface"] = "arcface"
    flip: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (3, H, W) of what the network is fed."""
        width = self.size if self.crop == "arcface" else round(self.size * 96 / 112)
        return (3, self.size, width)

    def prepare(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 112, 112) in [0, 1] to what the network is fed, (N, *shape)."""
        if self.crop == "sphereface":
            images = images[..., 8:104]
        if self.color == "bgr":
            images = images.flip(1)
        if images.shape[1:] != self.shape:
            images = functional.interpolate(images, self.shape[1:], mode="bilinear", antialias=True)
        return (images * 255 - self.offset) / self.scale

    def __str__(self) -> str:
        low, high = ((value - self.offset) / self.scale for value in (0, 255))
        _, height, width = self.shape
        return f"{self.color}, {low:.4g} to {high:.4g}, {self.crop} crop {width}x{height}"


class ContractRecognizer(Recognizer):
    """A recognizer that a user brings: a network in two halves behind an input contract.

    A subclass sets `front` and `back` and calls `_settle`.

    Attributes:
        contract: What the network is fed.
        front: Network from what it is fed to the map at the cut.
        back: Network from the map at the cut to the embedding, of any length.
        file: Where the weights came from.
    """

    contract: Contract
    front: nn.Module
    back: nn.Module
    file: Path

    @property
    def credit(self) -> str:
        """Whom to credit: nothing is known but the file."""
        return f"{self.file.name}, brought by the user (sha256 {self.weights_sha256})"

    @property
    def settings(self) -> dict[str, Any]:
        """What can change the outputs besides weights, cut shape and precision."""
        return {"contract": self.contract.parameters}

    def head(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 112, 112) in [0, 1] to the map at the cut."""
        views = [images, images.flip(3)] if self.contract.flip else [images]
        prepared = [self.contract.prepare(view) for view in views]
        return torch.cat([self._compute(self.front, x) for x in prepared], dim=1)

    def tail(self, features: Tensor) -> Tensor:
        """Map the map at the cut to embeddings of unit length."""
        views = self._views(features)
        embeddings = torch.stack([self._compute(self.back, view) for view in views])
        return functional.normalize(embeddings.sum(0), dim=1)

    def first_reading(self, features: Tensor) -> Tensor | None:
        """Map features to what the tail's first convolution over neighbours makes of every view."""
        back = partial(self._compute, self.back)
        found = [first_mixed(back, view) for view in self._views(features)]
        readings = [reading for reading in found if reading is not None]
        return torch.cat(readings, dim=1) if readings else None

    def _views(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return the map of the image, and that of its mirror image where the contract adds it."""
        return features.chunk(2, dim=1) if self.contract.flip else (features,)

    @torch.no_grad()
    def _settle(self) -> None:
        """Freeze the weights, measure the shapes, and check the contract.

        Raises:
            UserError: The network does not fit a recognizer, or its contract.
        """
        self.requires_grad_(False).eval()
        features = self.head(torch.zeros(2, *CROP))
        embeddings = self.tail(features)
        if features.ndim != 4 or embeddings.ndim != 2 or len(embeddings) != 2:
            raise UserError(
                f"{self.file} maps two images to features {list(features.shape)} and embeddings "
                f"{list(embeddings.shape)}: give a network that maps (N, 3, H, W) to a map "
                "(N, C, h, w) at the cut and to (N, D) at the end."
            )
        channels, height, width = features.shape[1:]
        self.feature_shape = (channels, height, width)
        self.embedding_size = embeddings.shape[1]
        check_contract(self)


def read_weights(path: Path, sha256: str | None) -> tuple[bytes, str]:
    """Read a file of weights once, so that what is hashed is what is used.

    Args:
        path: The file.
        sha256: Its hash in hexadecimal, if the user pins it.

    Returns:
        The bytes and their sha256 in hexadecimal.

    Raises:
        DataError: The file is absent, too large, or not the pinned one.
    """
    with reading(path, max_bytes=MAX_WEIGHTS_BYTES) as stream:
        data = stream.read()
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise DataError(
            f"{path} has the sha256 {found} and not {sha256}: give the pinned file, or change "
            "the sha256 in the suite."
        )
    return data, found


@cache
def reference_faces() -> Tensor:
    """Return two aligned photos each of two people of ORL, gray, (4, 3, 112, 112) in [0, 1]."""
    dataset, aligner = ORL(), Aligner()
    photos = [photo for photo in dataset.photos if photo.key in _REFERENCE_PHOTOS]
    crops = [aligner.crop(decode(dataset.read(item), where=item.key), item.key) for item in photos]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def check_contract(recognizer: Recognizer) -> None:
    """Refuse a recognizer whose input contract does not fit its network.

    Two photos each of two people must be told apart by cosine, in full light and at 1/8 of it; and
    warm light must move embeddings less than cold light.

    What it catches, with SFace's figures: 0 to 255 fed to a network that wants -1 to 1 (the margin
    falls from .61 to .02 in full light); 0 to 1, or half the contrast (from .54 to .10 or less in
    the dark, where a wrong offset weighs most); weights that are not a face network's; red and blue
    swapped. Gray faces cannot show the last, hence the light: photos are often warm and hardly ever
    blue, so warm light should leave more of a face (cosine to the gray one .95) than cold light
    (.85). dlib's network agrees (.995 and .987).

    What it cannot catch: a range that is off by a few hundredths (127.5 or 128), a crop that is off
    by a tenth, swapped colors before a network that does not look at color, a mirror image left
    out. A crop of another shape is refused earlier, by the dense layer. The rules rest on these two
    networks, the thresholds on SFace: a network too weak for them is refused although its contract
    is right.

    Args:
        recognizer: Any recognizer whose embeddings are compared by cosine.

    Raises:
        UserError: An embedding is not finite, or a rule is broken.
    """
    faces = reference_faces()
    lights = torch.stack([faces, faces * _DARK, faces * _WARM, faces * _WARM.flip(0)])
    embeddings = functional.normalize(recognizer.embed(lights.flatten(0, 1)), dim=1)
    if not embeddings.isfinite().all():
        raise _misfit(recognizer, "its embeddings of reference faces are not finite")
    full, dark, warm, cold = embeddings.unflatten(0, (4, -1))
    for light, found in (("full", _margin(full)), ("1/8 of the", _margin(dark))):
        if found < _MARGIN:
            reason = f"in {light} light two photos of one person are only {found:.2f} more alike "
            raise _misfit(recognizer, f"{reason}than two people, where {_MARGIN} is the least")
    warmer, colder = ((full * light).sum(1).mean().item() for light in (warm, cold))
    if warmer < colder - _COLOR_TOLERANCE:
        reason = f"faces in cold light look more natural to it ({colder:.2f}) than in warm light"
        raise _misfit(recognizer, f"{reason} ({warmer:.2f}), so red and blue are swapped")


def _margin(embeddings: Tensor) -> float:
    """Return how much more alike (by cosine) are mates than strangers among four faces."""
    cosine = embeddings @ embeddings.T
    return float((cosine[0, 1] + cosine[2, 3]) / 2 - cosine[:2, 2:].mean())


def _misfit(recognizer: Recognizer, reason: str) -> UserError:
    stated = getattr(recognizer, "contract", "fixed")
    return UserError(
        f"The input contract of the recognizer {recognizer.name!r} ({stated}) does not fit its "
        f"weights ({reason}): mend color, offset, scale or crop, or give other weights."
    )
