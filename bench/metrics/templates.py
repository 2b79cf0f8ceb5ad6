"""Templates of several images, and scores of long lists of template pairs (IJB-B, IJB-C 1:1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import embedding_bag

from bench.errors import MetricError
from bench.metrics.arrays import as_floats, as_indices, as_labels, row_products

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.metrics.arrays import Doubles, Floats, Integers, Numbers

_BLOCK_ROWS = 256
_BLOCK_SCORES = 1 << 23
# Float32 sums of 512 products are within 2e-7 of the exact ones below; above they lose more.
_EXACT_ABOVE = 0.2


@dataclass(frozen=True)
class Templates:
    """One unit vector for each template.

    Attributes:
        ids: (T,) template ids, ascending.
        embeddings: (T, d) L2-normalised, in the precision of the features.
        variant: How the images were weighted, such as "N1D1F1": whether the norm of the features
            is kept, whether the detector's score is a weight, whether the flipped image is added.
            Results of different variants do not compare.
        images: (T,) number of images.
        media: (T,) number of media.
    """

    ids: npt.NDArray[np.generic]
    embeddings: Floats
    variant: str
    images: Integers
    media: Integers

    def rows(self, ids: Numbers) -> Integers:
        """Return the row of each template id.

        Raises:
            MetricError: An id that no template has.
        """
        wanted = as_labels(ids, "ids", np.size(ids))
        rows = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        missing = self.ids[rows] != wanted
        if missing.any():
            raise MetricError(f"no template has the id {wanted[np.argmax(missing)].item()!r}")
        return rows


def pool_templates(
    features: Numbers,
    templates: Numbers,
    media: Numbers,
    *,
    keep_norm: bool = True,
    detector_scores: Numbers | None = None,
    flipped: Numbers | None = None,
) -> Templates:
    """Return the template of each set of images, as deepinsight's `ijb_11.py` forms it.

    The feature of an image is the sum of those of the image and of its mirror image (if given),
    divided by its norm (unless that is kept) and multiplied by the detector's score (if given). A
    template is the sum over its media of the mean over the images of each, L2-normalised.

    Args:
        features: (images, d) features as the network returns them, not normalised.
        templates: (images,) template id of each image, integers or strings, in any order.
        media: (images,) media id of each image; it counts within its template only.
        keep_norm: N1 if true, N0 if false. Scripts that share the flag's name `use_norm_score`
            differ in its sense.
        detector_scores: (images,) weights >= 0, for D1.
        flipped: (images, d) features of the mirror images, for F1.

    Raises:
        MetricError: Unequal lengths, weights that are negative or not finite, or a template whose
            sum has no direction.
    """
    plain = as_floats(features, "features", 2)
    count = len(plain)
    ids, template = np.unique(as_labels(templates, "templates", count), return_inverse=True)
    _, medium = np.unique(as_labels(media, "media", count), return_inverse=True)
    _, first, group, size = np.unique(
        template * (medium.max() + 1) + medium,
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    weights = 1 / size[group]
    parts = [plain]
    if flipped is not None:
        parts.append(as_floats(flipped, "flipped", 2).astype(plain.dtype, copy=False))
        if parts[1].shape != plain.shape:
            raise MetricError(f"flipped has shape {parts[1].shape} and features {plain.shape}")
    if not keep_norm:
        norms = _norms(parts)
        if not (norms > 0).all():
            row = int(np.argmin(norms > 0))
            raise MetricError(f"row {row} of features is zero or not a number: it has no direction")
        weights /= norms
    if detector_scores is not None:
        weights *= _as_weights(detector_scores, count)

    order = np.argsort(template, kind="stable")
    images = np.bincount(template)
    sums = _weighted_sums(parts, weights, order, np.cumsum(images) - images)
    norms = _norms([sums])
    usable = (norms > 0) & np.isfinite(norms)
    if not usable.all():
        broken = ids[np.argmin(usable)].item()
        raise MetricError(f"the features of template {broken!r} sum to zero or are not finite")
    return Templates(
        ids=ids,
        embeddings=np.divide(sums, norms[:, None].astype(sums.dtype), out=sums),
        variant=f"N{keep_norm:d}D{detector_scores is not None:d}F{flipped is not None:d}",
        images=images,
        media=np.bincount(template[first]),
    )


def pair_scores(embeddings: Numbers, left: Numbers, right: Numbers) -> Floats:
    """Return the inner products of listed pairs of rows: cosines, if the rows are unit vectors.

    Pairs are taken in blocks of neighbouring left rows. All left rows of a block are multiplied
    with all right rows that it needs, and the listed products are picked: much less work than
    gathering both rows of every pair, as long as lists are as dense as those of IJB. The few high
    scores, which float32 sums blur most, are computed again in float64.

    Args:
        embeddings: (T, d), such as `Templates.embeddings`.
        left: (pairs,) row of one template of each pair.
        right: (pairs,) row of the other.

    Returns:
        (pairs,) scores in the precision of the embeddings; in float32 within 2e-7 of the exact
        ones at d = 512.

    Raises:
        MetricError: Wrong shapes, or a row that does not exist.
    """
    matrix = as_floats(embeddings, "embeddings", 2)
    count = len(matrix)
    left, right = as_indices(left, "left", count), as_indices(right, "right", count)
    if len(left) != len(right):
        raise MetricError(f"left has {len(left)} rows and right {len(right)}")
    scores = np.empty(len(left), matrix.dtype)
    used, place = _compact(left, count)
    height = max(1, min(_BLOCK_ROWS, _BLOCK_SCORES // count))
    for first, pairs in _blocks(place[left], height, len(used)):
        needed, column = _compact(right[pairs], count)
        products = matrix[used[first : first + height]] @ matrix[needed].T
        row = place[left[pairs]].astype(np.int64) - first
        scores[pairs] = products.ravel().take(row * len(needed) + column[right[pairs]])
    if matrix.dtype == np.float32:
        high = np.flatnonzero(np.abs(scores) > _EXACT_ABOVE)
        scores[high] = row_products(matrix, left[high], right[high])
    return scores


def _norms(parts: list[Floats]) -> Doubles:
    """Return the norm of each row of the sum of the parts."""
    squares = np.zeros(len(parts[0]))
    for one in parts:
        for other in parts:
            squares += np.einsum("ij,ij->i", one, other, dtype=np.float64)
    return np.sqrt(squares)


def _as_weights(detector_scores: Numbers, count: int) -> Floats:
    weights = as_floats(detector_scores, "detector_scores", 1)
    if len(weights) != count:
        raise MetricError(f"detector_scores has {len(weights)} entries for {count} images")
    if not ((weights >= 0) & np.isfinite(weights)).all():
        raise MetricError("detector_scores must be finite and not negative")
    return weights


def _weighted_sums(
    parts: list[Floats], weights: Doubles, order: Integers, starts: Integers
) -> Floats:
    """Return the weighted sum of the features of each template: (templates, d).

    Mean within media and sum over media are one weighted sum, so that each feature is read once.
    """
    dtype = parts[0].dtype
    sums = [
        embedding_bag(
            torch.from_numpy(order),
            torch.from_numpy(np.ascontiguousarray(part)),
            torch.from_numpy(starts),
            mode="sum",
            per_sample_weights=torch.from_numpy(weights[order].astype(dtype)),
        ).numpy()
        for part in parts
    ]
    return sum(sums[1:], sums[0])


def _compact(rows: Integers, count: int) -> tuple[Integers, npt.NDArray[np.int32]]:
    """Return the distinct rows in ascending order, and a table from each to its place among them.

    The table has `count` entries; those of other rows mean nothing.
    """
    used = np.zeros(count, np.bool_)
    used[rows] = True
    return np.flatnonzero(used), (np.cumsum(used) - 1).astype(np.int32)


def _blocks(
    place: npt.NDArray[np.int32], height: int, places: int
) -> Iterator[tuple[int, slice | Integers]]:
    """Yield the first place of each block of `height` places, and the pairs that belong to it."""
    block: npt.NDArray[np.integer] = place // height
    if places <= height << 16:
        block = block.astype(np.uint16)  # sorted by radix, in linear time
    order = None
    if not (block[1:] >= block[:-1]).all():
        order = np.argsort(block, kind="stable")
    stops = np.cumsum(np.bincount(block))
    for number, (start, stop) in enumerate(zip(np.append(0, stops), stops, strict=False)):
        pairs = slice(start, stop)
        yield number * height, pairs if order is None else order[pairs]
