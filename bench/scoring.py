"""From reconstructions, and from records, to rows: privacy, utility and cost with their intervals.

Scoring is a step of its own: it reads 8-bit reconstructions and knows nothing of the attack that
made them. Raw values per probe come first; a row is their mean with an interval by identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cost import costs
from bench.datasets.base import Indices
from bench.leaks import Leak
from bench.linkage import Pairs
from bench.metrics import (
    Estimate,
    acceptance_from_scores,
    clustered_mean,
    clustered_rate,
    equal_error_rate,
    equal_errors,
    identification_from_scores,
    mse,
    pair_rate,
    psnr,
    ssim,
    tar_at_far,
    verification_accuracy,
)
from bench.metrics.perceptual import Reference as PerceptualReference
from bench.metrics.perceptual import has_trunk
from bench.plan import Spec
from bench.profile import MODELS, profile
from bench.results import Score
from bench.world import World

Values = dict[str, NDArray[np.float64]]
"""Raw values per probe, by "metric" or "judge/metric"; NaN where a probe has none."""

PIXELS = {
    "ssim": "ssim:wang11-valid-rgb",
    "ssim-luma": "ssim:wang11-valid-luma",
    "psnr": "psnr:rgb-uint8",
    "mse": "mse:rgb-uint8",
    "st-lpips": "lpips:st-alex-v0.0",
    "lpips": "lpips:alex-v0.1",
}
RATES = {"sar-1", "sar-2", "rank-1"}
RANK = "rank"
"""Raw value of a judge that makes no row: the place of the probe's person in the gallery."""

LOWER_IS_CLOSER = {"mse", "st-lpips", "lpips", RANK}
"""Metrics whose smallest value is the best attack."""

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def perceptual_nets() -> dict[str, str]:
    """Return the perceptual metrics to take with their nets: LPIPS only where its trunk is."""
    return {"st-lpips": "st-alex", **({"lpips": "alex"} if has_trunk("alex") else {})}


def to_bytes(images: Tensor) -> Tensor:
    """Quantise images in [0, 1] to 8 bits, as an attacker would publish them."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


class Scorer:
    """Scores reconstructions of one world's probes.

    Args:
        world: The world whose probes were attacked.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._probes = world.split.probes
        self._originals = to_bytes(world.images(self._probes))
        self.identities = world.identities(self._probes)

    @cached_property
    def _perceptual(self) -> dict[str, PerceptualReference]:
        """The originals, whose features all reconstructions are compared with, by metric."""
        originals = self._originals.float() / 255
        return {
            metric: PerceptualReference(originals, net=net)
            for metric, net in perceptual_nets().items()
        }

    def probe_values(self, images: Tensor, shown: Indices | None = None) -> Values:
        """Return raw values per probe.

        Args:
            images: (N, 3, 112, 112) uint8, one per probe.
            shown: For a reference that shows a photo of the person, which one; that photo is then
                neither a mate nor in the gallery of its probe.
        """
        pair = (images, self._originals)
        with profile.span("score pixels"):
            values: Values = {
                "ssim": _floats(ssim(*pair, data_range=255)),
                "ssim-luma": _floats(ssim(*pair, definition="wang11-valid-luma", data_range=255)),
                "psnr": _floats(psnr(*pair, data_range=255)),
                "mse": _floats(mse(*pair)),
            }
        with profile.span("score by perceptual networks", MODELS):
            for metric, reference in self._perceptual.items():
                values[metric] = _floats(reference.lpips(images.float() / 255))
        for name in self._world.judges:
            for metric, column in self._identity_values(name, images, shown).items():
                values[f"{name}/{metric}"] = column
        return values

    def _identity_values(self, judge: str, images: Tensor, shown: Indices | None) -> Values:
        world, recognizer = self._world, self._world.judges[judge]
        with profile.span(f"embed reconstructions with {judge}", MODELS):
            found = recognizer.leaking(Leak.TEMPLATE, images.to(world.device).float() / 255)

        def similarity(photos: Indices) -> NDArray[np.float64]:
            return _floats(recognizer.similarity(found, world.embeddings(judge, photos)))

        others = np.unique(np.concatenate(world.split.mates))
        accepted = acceptance_from_scores(
            similarity(self._probes).diagonal(),
            similarity(others),
            self._mates_among(others, shown),
            self.identities,
            world.operating_point(judge).threshold,
        )
        gallery = world.split.gallery
        ranked = identification_from_scores(
            similarity(gallery), self.identities, world.identities(gallery)
        )
        hits, places = np.where(ranked.rank == 1, 1.0, 0.0), ranked.rank.astype(float)
        if shown is not None:
            hits[np.isin(shown, gallery)] = places[np.isin(shown, gallery)] = np.nan
        return {
            "similarity": accepted.similarity,
            "sar-1": accepted.type1.astype(float),
            "sar-2": accepted.type2,
            "rank-1": hits,
            RANK: places,
        }

    def _mates_among(self, photos: Indices, shown: Indices | None) -> NDArray[np.bool_]:
        """Return (probes, photos): whether a photo is a mate other than the one shown."""
        mates = np.stack([np.isin(photos, mates) for mates in self._world.split.mates])
        return mates if shown is None else mates & (photos != shown[:, None])

    def scores(self, values: Values) -> list[Score]:
        """Turn raw values into estimates with intervals by identity."""
        found = []
        for key, column in values.items():
            judge, _, metric = key.rpartition("/")
            if metric == RANK:
                continue
            definition = self._definition(judge, metric)
            estimate = self._estimate(metric, column)
            flags = self._flags(judge, metric)
            found.append(Score(metric, definition, estimate, judge or None, flags))
        return found

    def _definition(self, judge: str, metric: str) -> str:
        if not judge:
            return PIXELS[metric]
        own = metric == "similarity"
        return self._world.judges[judge].similarity_definition if own else metric

    def _estimate(self, metric: str, column: NDArray[np.float64]) -> Estimate:
        known = ~np.isnan(column)
        if not known.any():
            return Estimate(np.nan, np.nan, np.nan, 0, 0, "none")
        function = clustered_rate if metric in RATES else clustered_mean
        return function(column[known], self.identities[known])

    def _flags(self, judge: str, metric: str) -> tuple[str, ...]:
        flags = []
        if metric in {"sar-1", "sar-2"} and not self._world.operating_point(judge).supported:
            flags.append("indicative-fmr")
        if metric == "rank-1":
            flags.append(f"gallery={len(self._world.split.gallery)}")
        if judge == self._world.suite.recognizer.label:
            flags.append("target-judge")
        return tuple(flags)


def worst_case(cells: Iterable[Values]) -> Values:
    """Return the best attack per probe and metric over several cells of one defense."""
    gathered = list(cells)

    def pick(key: str) -> NDArray[np.float64]:
        columns = np.stack([values[key] for values in gathered])
        metric = key.rpartition("/")[2]
        return columns.min(0) if metric in LOWER_IS_CLOSER else columns.max(0)

    return {key: pick(key) for key in gathered[0]}


# --- utility and cost ---------------------------------------------------------------------------


def utility(world: World, spec: Spec, leak: Leak) -> list[Score]:
    """Score recognition with a defense, and what it costs.

    Stored records are compared with fresh probes that carry no protection, where the defense
    allows that, and with other stored records.
    """
    pairs = world.split.pairs
    people = world.identities(pairs.left), world.identities(pairs.right)
    artifact = world.pair_scores(spec, leak)
    found = [
        score
        for way, tensor in sorted(artifact.tensors.items())
        for score in verification_scores(_floats(tensor), pairs.same, pairs.folds, people, way)
    ]
    settled = tuple(f"{name}={value:.3g}" for name, value in artifact.facts["found"].items())
    found = [replace(score, flags=(*score.flags, *settled)) for score in found]
    return [*found, *costs(artifact.facts)]


def protection(world: World, spec: Spec, leak: Leak) -> tuple[Pairs, NDArray[np.float64]] | None:
    """Return how alike the records of two applications are, where secrets can be renewed."""
    if not spec.create().renewable:
        return None
    return world.linked_pairs, _floats(world.linkage_scores(spec, leak).tensors["scores"])


def verification_scores(
    scores: NDArray[np.float64],
    same: NDArray[np.bool_],
    folds: NDArray[np.int_],
    people: tuple[NDArray[np.str_], NDArray[np.str_]],
    way: str,
) -> list[Score]:
    """Return accuracy over the folds, EER, and TAR at every FAR that the pairs support."""
    folded = folds >= 0
    accuracy = verification_accuracy(scores[folded], same[folded], folds[folded])
    count = f"folds={len(accuracy.accuracies)}"
    correct = pair_rate(accuracy.correct, people[0][folded], people[1][folded])
    found = [
        Score(f"accuracy.{way}", "accuracy:folds-exact", correct, flags=(count,)),
        Score(f"eer.{way}", "eer", equal_error_rate(equal_errors(scores, same), *people)),
    ]
    for point in tar_at_far(scores[same], scores[~same], FARS):
        if point.supported:
            hits = scores[same] > point.threshold
            estimate = clustered_rate(hits.astype(float), people[0][same])
            metric = f"tar@far={point.far:g}.{way}"
            found.append(Score(metric, "tar-at-far:floor-ties-conservative", estimate))
    return found


def _floats(values: Any) -> NDArray[np.float64]:
    return torch.as_tensor(values).detach().cpu().double().numpy()
