"""Result files whose every row follows from raw values: what a gate and a leaderboard read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np

from bench.cost import costs
from bench.leaks import Leak
from bench.linkage import LINKAGE, linkability, linked_pairs
from bench.result_file import CellValues, FileRow, Member, PairList, Photo, ResultFile, Seed
from bench.results import Row, Score
from bench.threats import Threat
from reports.samples import estimate, sample

DEFINITIONS = {
    "rank-1": "rank-1",
    "sar-1": "sar-1",
    "ssim": "ssim:wang11-valid-rgb",
    "psnr": "psnr:rgb-uint8",
    "accuracy.stored-vs-stored": "accuracy:folds-exact",
    "eer.stored-vs-stored": "eer",
}
WAY = "stored-vs-stored"

Kind = Literal["attack", "reference", "worst-case", "utility", "linkage"]


@cache
def photos(identities: tuple[str, ...]) -> list[Photo]:
    """Return a photo for each of these people."""
    return [Photo(photo=f"{who}/{place}", identity=who) for place, who in enumerate(identities)]


@cache
def members(shown: tuple[Photo, ...]) -> list[Member]:
    """Return photos as members of a role."""
    return [Member(**photo.model_dump(), sha256=photo.photo) for photo in shown]


@dataclass
class Maker:
    """Adds cells and their rows to a result file.

    Attributes:
        people: Victims.
        each: Probes per victim.
        seed: Seed of the split.
        dataset: Name of the dataset.
        scored: Whether rows get their numbers; a comparison looks at raw values alone.
        linked: Pairs of records of two applications, if there are any.
    """

    people: int = 40
    each: int = 3
    seed: int = 0
    dataset: str = "faces"
    scored: bool = True
    rows: list[FileRow] = field(default_factory=list)
    cells: dict[str, CellValues] = field(default_factory=dict)
    linked: PairList | None = None

    def __post_init__(self) -> None:
        count = self.people * self.each
        self.identities = [f"v{place // self.each}" for place in range(count)]
        self.photos = photos(tuple(self.identities))
        # Half of the pairs are of one person: neighbours; the others of people far apart.
        self.left = list(range(count)) * 2
        self.right = [
            (place // self.each) * self.each + (place + 1) % self.each for place in range(count)
        ] + [(place + count // 2) % count for place in range(count)]
        self.same = np.repeat([True, False], count)

    def references(self) -> Maker:
        """Add the floors and the ceiling."""
        for name, level in (("mean-face", 0.0), ("other-person", 0.0), ("original", 1.0)):
            self.attack(level, attack=name)
        return self

    def attack(self, level: float | np.ndarray, **about: Any) -> Maker:
        """Add an attack or reference; `level` is the rank-1 hits, or their share."""
        count = len(self.identities)
        hits = level if isinstance(level, np.ndarray) else np.arange(count) < level * count
        ssim = np.linspace(0.2, 0.4, count) + 0.5 * np.mean(hits)
        columns = {"dlib/rank-1": hits.astype(float), "ssim": ssim, "psnr": 40 * ssim}
        kind: Kind = "attack" if "defense" in about else "reference"
        kind = "worst-case" if about["attack"] == "worst-case" else kind
        for key in columns:
            judge, _, metric = key.rpartition("/")
            self._row(kind, columns, metric=metric, judge=judge or None, **about)
        return self

    def utility(
        self, wrong: np.ndarray | float, *, measure: str = "accuracy", **about: Any
    ) -> Maker:
        """Add a defense's utility; `wrong` says of each pair whether it is decided wrongly."""
        count = len(self.left)
        missed = wrong if isinstance(wrong, np.ndarray) else np.arange(count) % 100 < 100 * wrong
        scores = np.where(self.same ^ missed, 0.9, 0.1)
        self._row("utility", {WAY: scores}, metric=f"{measure}.{WAY}", judge=None, **about)
        return self

    def linkage(self, strength: float, *, one_for_all: bool = False, **about: Any) -> Maker:
        """Add how well two applications of a defense can be linked, and what its records cost."""
        people = np.array(self.identities)
        pairs = linked_pairs(people)
        if one_for_all:
            homes = np.unique(people, return_inverse=True)[1]
            pairs = replace(pairs, homes=homes, one_for_all=True)
        folds = np.full(len(pairs.left), -1) if one_for_all else pairs.homes[pairs.left]
        noise = np.random.default_rng(0).normal(size=len(pairs.left))
        scores = noise + strength * ~pairs.non_mated
        self.linked = PairList(
            photos=self.photos,
            left=pairs.left.tolist(),
            right=pairs.right.tolist(),
            fold=folds.tolist(),
        )
        facts = {"count": 100, "shape": [512], "protect_seconds": 0.5, "bytes_per_record": 64.0}
        self._recorded("linkage", linkability(scores, pairs), {LINKAGE: scores.tolist()}, {}, about)
        self._recorded("cost", costs(facts), {}, facts, about)
        return self

    def _recorded(
        self,
        name: str,
        scores: list[Score],
        values: dict[str, list[float]],
        facts: dict[str, Any],
        about: dict[str, Any],
    ) -> None:
        kind: Kind = "linkage" if values else "utility"
        self.cells[name] = CellValues(
            kind=kind, seed=self.seed, pairs="linked", values=values, facts=facts
        )
        for score in scores:
            found = score.estimate
            low, high = (None if np.isnan(x) else x for x in (found.low, found.high))
            numbers: dict[str, Any] = {
                "value": found.value,
                "ci_low": low,
                "ci_high": high,
                "n": found.n,
            }
            names: dict[str, Any] = {"metric": score.metric, "definition": score.definition}
            flags = " ".join(score.flags)
            self.rows.append(
                FileRow(**self._common(), **names, **numbers, flags=flags, cell=name, **about)
            )

    def failed(self, reason: str, **about: Any) -> Maker:
        """Add the row of a failure."""
        fields: dict[str, Any] = {"metric": "rank-1", "definition": "", "value": None}
        self.rows.append(
            FileRow(**self._common(), **fields, status="error", reason=reason, **about)
        )
        return self

    def file(self) -> ResultFile:
        """Return the result file."""
        made = self._file()
        return made.model_copy(update={"sha256": made.content()})

    def _row(
        self,
        kind: Kind,
        columns: dict[str, np.ndarray],
        *,
        metric: str,
        judge: str | None,
        **about: Any,
    ) -> None:
        key = "-".join(str(part) for part in (kind, *about.values()))
        pairs = "pairs" if kind == "utility" else None
        values = {name: column.tolist() for name, column in columns.items()}
        self.cells[key] = CellValues(kind=kind, seed=self.seed, pairs=pairs, values=values)
        fields: dict[str, Any] = {
            "metric": metric,
            "judge": judge,
            "definition": DEFINITIONS[metric],
            "cell": key,
        }
        blank = Row(**self._common(), **fields, value=0.0, **about)
        if not self.scored:
            self.rows.append(FileRow(**blank.model_dump()))
            return
        found = estimate(sample(self._file(), [blank]), 0.95)
        numbers = {"value": found.value, "ci_low": found.low, "ci_high": found.high, "n": found.n}
        self.rows.append(FileRow(**blank.model_dump() | numbers))

    def _common(self) -> dict[str, Any]:
        about = {"suite": "made", "dataset": self.dataset, "recognizer": "sface"}
        return {**about, "seed": self.seed}

    def _file(self) -> ResultFile:
        fold = [place % 2 for place in range(len(self.left))]
        roles = {
            role: [
                Member(photo=f"{role}{n}", identity=f"{role}{n}", sha256=f"{role}{n}")
                for n in range(3)
            ]
            for role in ("attacker", "defender")
        }
        roles["victims"] = members(tuple(self.photos))
        return ResultFile.model_construct(
            version=1,
            sha256="",
            run={"suite": {"name": "made", "title": "Made up", "fmr": 0.001}, "versions": {}},
            seeds={str(self.seed): Seed.model_construct(probes=self.photos, roles=roles)},
            pairs={
                "pairs": PairList.model_construct(
                    photos=self.photos, left=self.left, right=self.right, fold=fold
                ),
                **({} if self.linked is None else {"linked": self.linked}),
            },
            cells=self.cells,
            rows=self.rows,
        )


ADVFACE = {"leak": Leak.FEATURES, "defense": "advface", "defense_params": '{"eps": 0.6}'}
ADAPTIVE = {**ADVFACE, "threat": Threat.ADAPTIVE}
TRANSFER = {**ADVFACE, "threat": Threat.TRANSFER}


def small() -> Maker:
    """Return references, and AdvFace that stops one attack and not the other."""
    maker = Maker().references().utility(0.02, **ADVFACE)
    maker.attack(0.05, attack="unet", **TRANSFER).attack(0.05, attack="worst-case", **TRANSFER)
    maker.attack(0.9, attack="unet", **ADAPTIVE).attack(0.9, attack="worst-case", **ADAPTIVE)
    return maker


def started(file: ResultFile, date: str) -> ResultFile:
    """Return the file as a run of another day."""
    run = {
        "suite": {
            "name": "made",
            "title": "Made <up>",
            "dataset": file.rows[0].dataset,
            "recognizer": {"name": "sface"},
            "fmr": 0.001,
        },
        "versions": {},
        "command": [],
        "device": "cpu",
        "credits": [],
        "started": date,
        "seconds": 1,
    }
    changed = file.model_copy(update={"run": run, "sha256": ""})
    return changed.model_copy(update={"sha256": changed.content()})
