"""A synthetic list of template pairs with the counts of IJB-C 1:1, and features to pool for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

SUBJECTS = 3_531  # one gallery template each
TEMPLATES = 23_124
IMAGES = 469_375
PAIRS = 15_658_489
GENUINE = 19_557
DIMENSION = 512


@dataclass(frozen=True)
class TemplateList:
    """Templates and the pairs to compare, sorted by the left one as the official list is.

    Attributes:
        embeddings: (23,124, 512) float32 unit vectors; the gallery comes first.
        left: (15,658,489,) rows in the gallery.
        right: (15,658,489,) rows of probes.
        same: (15,658,489,) true for the 19,557 genuine pairs.
    """

    embeddings: npt.NDArray[np.float32]
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    same: npt.NDArray[np.bool_]


def template_list(seed: int = 0) -> TemplateList:
    """Return a list in which every pair is a gallery template and a probe, no pair twice."""
    rng = np.random.default_rng(seed)
    probes = TEMPLATES - SUBJECTS
    owner = rng.integers(0, SUBJECTS, probes)
    genuine = (owner * probes + np.arange(probes))[:GENUINE]
    # Multiples of a number that shares no factor with the number of cells visit distinct cells.
    cells = SUBJECTS * probes
    visited = np.arange(PAIRS - GENUINE + probes) * 48_271_001 % cells
    impostor = visited[owner[visited % probes] != visited // probes][: PAIRS - GENUINE]
    pairs = np.sort(np.concatenate([genuine, impostor]))
    left, right = np.divmod(pairs, probes)

    centres = rng.standard_normal((SUBJECTS, DIMENSION), dtype=np.float32)
    people = np.concatenate([np.arange(SUBJECTS), owner])
    embeddings = centres[people] + rng.standard_normal((TEMPLATES, DIMENSION), dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return TemplateList(embeddings, left, right + SUBJECTS, owner[right] == left)


def image_features(
    seed: int = 0,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return features (469,375, 512) with the template, in ascending order, and medium of each."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((IMAGES, DIMENSION), dtype=np.float32)
    more = rng.integers(0, TEMPLATES, IMAGES - TEMPLATES)
    templates = np.sort(np.concatenate([np.arange(TEMPLATES), more]))
    return features, templates, rng.integers(0, 8, IMAGES)
