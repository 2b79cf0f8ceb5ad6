"""Proof that the attacks bite: planted weak defenses, limits, budgets and floors.

An evaluation in which attacks fail says nothing unless they succeed where success is certain
(Zimmermann et al., NeurIPS 2022; Carlini et al., 2019; Tramer et al., 2020). Every check here has
an answer that is known beforehand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cell import Cells
from bench.leaks import Leak
from bench.metrics.intervals import clustered_mean
from bench.plan import Cell, Spec, parse_suite
from bench.registry import ATTACKS, DEFENSES
from bench.store import Store
from bench.threats import Threat
from bench.world import Progress, World
from defenses.base import Defender, Defense

Parameters = dict[str, Any]
Doubles = NDArray[np.float64]

SIMILARITY, SSIM = "sface/similarity", "ssim"
KEPT = 0.7
"""Share of its undefended gain over the floor that an attack must keep on a planted defense."""
WEAK = 0.1
"""Gain over the floor below which an attack is too weak at this size to say anything."""
SLACK = 0.05
"""How far values that must be ordered may lie on the wrong side."""


@dataclass
class _Planted(Defense):
    """A template multiplied with a matrix that has an inverse: it hides nothing from an insider."""

    leaks = frozenset({Leak.TEMPLATE})

    def fit(self, world: Defender) -> None:
        """Draw the matrix."""
        size = world.recognizer.embedding_size
        self.matrix = self.draw(size, world.generator()).to(world.device)

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Return a (size, size) matrix."""
        raise NotImplementedError

    @property
    def plain_probes(self) -> bool:
        """A probe goes through the same matrix."""
        return False

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return x times the matrix."""
        return x @ self.matrix


@DEFENSES.register("planted-permutation")
@dataclass
class PlantedPermutation(_Planted):
    """The numbers of a template in another order.

    Leaks: template. Secrets: the order. Known weakness: one order for all records, which an insider
    undoes and a few pairs give away.
    """

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Return a permutation matrix."""
        return torch.eye(size)[torch.randperm(size, generator=generator)]


@DEFENSES.register("planted-linear")
@dataclass
class PlantedLinear(_Planted):
    """A template times a random matrix of moderate condition.

    Leaks: template. Secrets: the matrix. Known weakness: it has an inverse, which an insider
    applies and a few hundred pairs give away.
    """

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Return the identity plus half a random rotation."""
        gaussian = torch.randn(size, size, generator=generator)
        return torch.eye(size) + 0.5 * torch.linalg.qr(gaussian).Q


PLANTED: dict[Leak, tuple[tuple[str, Parameters], ...]] = {
    Leak.IMAGE: (("dct-drop-dc", {}),),
    Leak.FEATURES: (("gaussian-noise", {"eps": 0.05}),),
    Leak.TEMPLATE: (
        ("planted-permutation", {}),
        ("planted-linear", {}),
        ("random-projection", {"numbers": 128}),
        ("gaussian-noise", {"eps": 0.05}),
    ),
}
"""Defenses that are known to protect nothing from an attacker that has their secrets."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        kind: What it is about: "planted", "limit", "budget", "order" or "floor".
        subject: Who met what.
        value: The value measured.
        demand: What it must be, in words.
        holds: Whether it is; None where the attack is too weak or the probes are too few to say.
    """

    kind: str
    subject: str
    value: float
    demand: str
    holds: bool | None


def validate(
    store: Store,
    attacks: Sequence[str] = (),
    *,
    quick: bool = False,
    device: str = "cpu",
    progress: Progress = lambda _: None,
) -> Iterator[Check]:
    """Run every check on ORL and SFace.

    Args:
        store: Where artifacts are kept.
        attacks: Attacks to check on planted defenses; all of them if left out.
        quick: Half the victims and the steps, a third of the calls.
        device: Torch device.
        progress: Told what is being done.
    """
    bench = _Bench(store, quick, device, progress)
    yield from bench.floors()
    for name in attacks or ATTACKS.names():
        yield from bench.planted(name)
    yield from bench.limits()
    yield from bench.budgets()
    yield from bench.orders()


def table(checks: Sequence[Check]) -> str:
    """Return the checks as text, one to a line."""
    words = {True: "holds", False: "FAILS", None: "undecided"}
    rows = [(c.kind, c.subject, f"{c.value:.3f}", c.demand, words[c.holds]) for c in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Meeting:
    """An attack, the defense that it meets, what leaks, and the threat."""

    attack: str
    defense: str
    leak: Leak
    threat: Threat


class _Bench:
    """Runs small cells and gives their mean values."""

    def __init__(self, store: Store, quick: bool, device: str, progress: Progress) -> None:
        self._quick = quick
        self.people = people = 6 if quick else 12
        suite = parse_suite(
            {
                "name": "validate",
                "title": "Checks whose answers are known beforehand",
                "dataset": "orl",
                "recognizer": {"name": "sface"},
                "query_budget": 10**6,
                "score_budget": 10**6,
                "split": {
                    "victims": people,
                    "probes": people,
                    "attacker_images": 120,
                    "defender_images": 20,
                    "gallery_people": 8,
                },
                "group": [
                    {
                        "leak": "template",
                        "defenses": [{"name": "none"}],
                        "attacks": [{"name": "retrieval", "threats": ["transfer"]}],
                    }
                ],
            },
            "validate",
        )
        self._cells = Cells(World(suite, 0, store, device, None, progress))
        self._cached = cache(self._measured)
        self._reference = cache(self._reference_means)

    def values(
        self,
        met: _Meeting,
        metric: str,
        *,
        guard: Parameters | None = None,
        budget: Parameters | None = None,
    ) -> Doubles:
        """Return one metric of one cell, (probes,).

        Args:
            met: Who meets whom.
            metric: Name of the raw value.
            guard: Parameters of the defense.
            budget: Parameters of the attack that differ from this size's.
        """
        parameters = {**self._size(met.attack), **(budget or {})}
        attack = Spec("attack", met.attack, tuple(parameters.items()))
        defense = Spec("defense", met.defense, tuple((guard or {}).items()))
        return self._cached(Cell(met.leak, defense, attack, met.threat, 0))[metric]

    def _measured(self, cell: Cell) -> dict[str, Doubles]:
        return {name: column.astype(float) for name, column in self._cells.values(cell)[1].items()}

    def _size(self, attack: str) -> dict[str, int]:
        """Return budgets that fit this size, for an attack that has such parameters."""
        wanted = {"steps": 30, "calls": 60} if self._quick else {"steps": 60, "calls": 180}
        known = {field.name for field in dataclasses.fields(ATTACKS.get(attack))}
        return {name: value for name, value in wanted.items() if name in known}

    def _reference_means(self, name: str) -> dict[str, float]:
        values = self._cells.reference(name)[1]
        return {metric: float(np.nanmean(column)) for metric, column in values.items()}

    def floor(self, metric: str) -> float:
        """Return what the mean face scores."""
        return self._reference("mean-face")[metric]

    def floors(self) -> Iterator[Check]:
        """Check that floors and ceilings are where they must be."""
        for name, metric, low, high in (
            ("mean-face", "sface/sar-1", 0.0, 0.1),
            ("other-person", "sface/sar-1", 0.0, 0.2),
            ("other-person", "sface/rank-1", 0.0, 0.4),
            ("original", "ssim", 1.0, 1.0),
            ("original", "sface/sar-1", 1.0, 1.0),
            ("same-person-other-photo", "sface/rank-1", 0.8, 1.0),
        ):
            value = self._reference(name)[metric]
            demand = f"in [{low:g}, {high:g}]"
            yield Check("floor", f"{name}: {metric}", value, demand, low <= value <= high)

    def planted(self, attack: str) -> Iterator[Check]:
        """Check that an attack breaks the planted defenses of every leak that it reads."""
        kind = ATTACKS.get(attack)
        order = (Threat.INSIDER, Threat.ADAPTIVE, Threat.QUERY, Threat.SCORE, Threat.TRANSFER)
        threat = next(threat for threat in order if threat in kind.threats)
        for leak in sorted(kind.leaks):
            metric, gains = self._undefended(attack, leak, threat)
            for defense, parameters in PLANTED[leak]:
                met = _Meeting(attack, defense, leak, threat)
                yield self._broken(met, parameters, metric, gains)

    def _broken(self, met: _Meeting, guard: Parameters, metric: str, gains: Doubles) -> Check:
        """Check that an attack keeps what it gains without the defense, probe by probe."""
        name = f"{met.attack} on {met.defense} ({met.leak}, {met.threat}): {metric} gain"
        gain = float(gains.mean())
        if gain <= WEAK:
            return Check("planted", f"{name} undefended", gain, f"> {WEAK}", None)
        found = self.values(met, metric, guard=guard) - self.floor(metric)
        kept = float(found.mean()) / gain
        return Check("planted", f"{name} kept", kept, f">= {KEPT}", decided(found - KEPT * gains))

    def _undefended(self, attack: str, leak: Leak, threat: Threat) -> tuple[str, Doubles]:
        """Return the metric in which an attack does best without a defense, and its gains there."""
        if attack.startswith("dct-"):  # it reads block DCT alone; the image itself is its measure
            return SSIM, 1 - np.full(self.people, self.floor(SSIM))
        gains = {
            metric: self.values(_Meeting(attack, "none", leak, threat), metric) - self.floor(metric)
            for metric in (SIMILARITY, SSIM)
        }
        best = max(gains, key=lambda metric: gains[metric].mean())
        return best, gains[best]

    def limits(self) -> Iterator[Check]:
        """Check that no strength is no defense, and that boundless strength leaves the floor."""
        bare = _Meeting("gradient", "none", Leak.TEMPLATE, Threat.INSIDER)
        noisy = dataclasses.replace(bare, defense="gaussian-noise")
        none = self.values(bare, SIMILARITY)
        little = self.values(noisy, SIMILARITY, guard={"eps": 1e-4})
        yield self._ordered("limit", "gradient, noise of 1e-4", little, none)
        much = float(self.values(noisy, SIMILARITY, guard={"eps": 1e3}).mean())
        top = self.floor(SIMILARITY) + 0.2
        yield Check("limit", "gradient, noise of 1e3", much, f"<= {top:.3f}", much <= top)

    def budgets(self) -> Iterator[Check]:
        """Check that more budget does not hurt."""
        for attack, threat, field in (
            ("gradient", Threat.TRANSFER, "steps"),
            ("hill-climb", Threat.SCORE, "calls"),
        ):
            full = self._size(attack)[field]
            met = _Meeting(attack, "none", Leak.TEMPLATE, threat)
            few = self.values(met, SIMILARITY, budget={field: full // 4})
            subject = f"{attack}, {field} from {full // 4} to {full}"
            yield self._ordered("budget", subject, self.values(met, SIMILARITY), few)

    def orders(self) -> Iterator[Check]:
        """Check that knowing more does not hurt: adaptive and transfer, gradient and none."""
        transfer, adaptive = (
            self.values(_Meeting("unet", "sign-noise", Leak.FEATURES, threat), SSIM)
            for threat in (Threat.TRANSFER, Threat.ADAPTIVE)
        )
        yield self._ordered("order", "unet on sign-noise, adaptive", adaptive, transfer)
        gradient, blind = (
            self.values(_Meeting(attack, "none", Leak.TEMPLATE, threat), SIMILARITY)
            for attack, threat in (("gradient", Threat.TRANSFER), ("hill-climb", Threat.SCORE))
        )
        yield self._ordered("order", "gradient beside hill-climb", gradient, blind)

    def _ordered(self, kind: str, subject: str, values: Doubles, least: Doubles) -> Check:
        """Check that values lie no more than the slack below others of the same probes."""
        demand = f">= {least.mean() - SLACK:.3f}"
        return Check(kind, subject, float(values.mean()), demand, decided(values - least + SLACK))


def decided(margins: Doubles) -> bool | None:
    """Return whether margins (people,) are at least 0 on average; None where that may be chance.

    False only where the 95 % interval of the mean lies below 0: a few probes decide nothing.
    """
    estimate = clustered_mean(margins, np.arange(len(margins)))
    if estimate.value >= 0:
        return True
    return False if estimate.high < 0 else None
