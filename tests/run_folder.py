"""A synthetic run folder: every kind of row, hostile names, failures, odd numbers."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import results
from bench.results import Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOSTILE = "<script>alert(1)</script>\"'&$\\_%|*`\N{RIGHT-TO-LEFT MARK}\N{RIGHT-TO-LEFT OVERRIDE}x"
FAILURE = "RuntimeError: <img src=x onerror=alert(2)>\nsecond line | $x_{1}$"
WAYS = ("stored-vs-fresh", "stored-vs-stored")
PROBES = 8
PEOPLE = 4

PIXELS = {
    "ssim": "ssim:wang11-valid-rgb",
    "ssim-luma": "ssim:wang11-valid-luma",
    "psnr": "psnr:rgb-uint8",
    "mse": "mse:rgb-uint8",
    "st-lpips": "lpips:st-alex-v0.0",
}
IDENTITY = {"rank-1": "rank-1", "sar-1": "sar-1", "sar-2": "sar-2", "similarity": "cosine"}
PARAMETERS = {"advface": '{"eps": 0.6, "steps": 10}', HOSTILE: '{"</td>": "\\u202e"}'}


@dataclass
class Builder:
    """Writes rows and cells of one seed as a run would."""

    folder: Path
    seed: int
    rows: list[Row]

    def probes(self) -> None:
        folder = self.folder / "seeds" / str(self.seed)
        folder.mkdir(parents=True)
        np.save(folder / "originals.npy", self._faces("original"))
        _write_csv(folder / "probes.csv", {"probe": _photos(), "identity": _people()})

    def row(self, **fields: Any) -> None:
        about: dict[str, Any] = {
            "suite": "synthetic",
            "dataset": "faces",
            "recognizer": "sface",
        }
        self.rows.append(Row(**about, **({"seed": self.seed} | fields)))

    def scored(self, level: float, **about: Any) -> None:
        """Add a cell whose every score is about `level`, in rows and on disk."""
        key = f"cell{len(self.rows):03d}"
        psnr = float("inf") if about["attack"] == "original" else 10 + 20 * level
        pixels = {"ssim": level, "ssim-luma": level, "psnr": psnr, "mse": 100.0, "st-lpips": 0.2}
        for metric, value in pixels.items():
            low, high = (value - 0.05, value + 0.05) if np.isfinite(value) else (None, None)
            self._score(metric, PIXELS[metric], value, low, high, cell=key, **about)
        for judge, flag in (("sface", "target-judge"), ("dlib", "")):
            for metric, definition in IDENTITY.items():
                gallery = "gallery=9" if metric == "rank-1" else ""
                # The mean face has no mates to be accepted by: NaN in the raw values, None here.
                lost = about["attack"] == "mean-face" and metric == "sar-2"
                self._score(
                    metric,
                    definition,
                    None if lost else level,
                    None if lost else max(0.0, level - 0.1),
                    None if lost else min(1.0, level + 0.1),
                    judge=judge,
                    flags=f"{gallery} {flag}".strip(),
                    cell=key,
                    **about,
                )
        self._cell(key, level, images=about["attack"] != "worst-case", name=about["attack"])
        training = [_curve(level)] if about["attack"] == "unet" else []
        facts = {"kind": "attack", "seed": self.seed, "facts": {"training": training}}
        (self.folder / "cells" / key / "cell.json").write_text(json.dumps(facts))

    def failed(self, **about: Any) -> None:
        fields = {"metric": "rank-1", "definition": "", "value": None, "status": "error"}
        self.row(**fields, reason=FAILURE, **about)

    def utility(self, accuracy: float, fresh: bool, **about: Any) -> None:
        about["cell"] = f"cell{len(self.rows):03d}"
        self._pairs(about["cell"], WAYS if fresh else WAYS[1:])
        for way in WAYS if fresh else WAYS[1:]:
            interval = {"ci_low": accuracy - 0.02, "ci_high": min(1.0, accuracy + 0.02)}
            common = {"value": accuracy, "n": 600, **interval, **about}
            self.row(metric=f"accuracy.{way}", definition="accuracy:folds-exact", **common)
            tar = "tar-at-far:floor-ties-conservative"
            self.row(metric=f"tar@far=0.01.{way}", definition=tar, flags="folds=5", **common)
        null = "null-mean=0.050 null-p95=0.090"
        interval = {"ci_low": 0.13, "ci_high": 0.27}
        self.row(
            metric="d-sys", definition="d-sys", value=0.2, n=30, flags=null, **interval, **about
        )
        for metric, value in (("ms-per-record", 0.0512), ("bytes-per-record", 802816.0)):
            self.row(metric=metric, definition=metric, value=value, n=100, **about)

    def _score(
        self,
        metric: str,
        definition: str,
        value: float | None,
        low: float | None,
        high: float | None,
        **about: Any,
    ) -> None:
        interval = {"value": value, "ci_low": low, "ci_high": high}
        self.row(metric=metric, definition=definition, n=PROBES, **interval, **about)

    def _cell(self, key: str, level: float, *, images: bool, name: str) -> None:
        folder = self.folder / "cells" / key
        folder.mkdir(parents=True)
        spread = np.linspace(-0.05, 0.05, PROBES)
        columns = {"probe": _photos(), "identity": _people(), "ssim": list(level + spread)}
        for judge in ("sface", "dlib"):
            columns[f"{judge}/similarity"] = list(level + spread)
            columns[f"{judge}/rank"] = [1 + round(9 * (1 - level)) + n % 2 for n in range(PROBES)]
        _write_csv(folder / "values.csv", columns)
        if images:
            np.save(folder / "reconstructions.npy", self._faces(name))

    def _pairs(self, key: str, ways: tuple[str, ...]) -> None:
        """Write the scores of pairs, half of them genuine."""
        folder = self.folder / "cells" / key
        folder.mkdir(parents=True)
        same = [n % 2 for n in range(40)]
        scores = [0.1 + 0.5 * x + 0.01 * n for n, x in enumerate(same)]
        _write_csv(folder / "values.csv", {"same": same, **dict.fromkeys(ways, scores)})

    def _faces(self, name: str) -> np.ndarray:
        """Return probes whose brightness tells them apart."""
        shades = np.linspace(20, 235, PROBES) - 20 * (name != "original")
        return np.broadcast_to(shades.astype(np.uint8)[:, None, None, None], (PROBES, 112, 112, 3))


def build(
    folder: Path, seeds: tuple[int, ...] = (0,), change: Callable[[Row], Row] = lambda row: row
) -> Path:
    """Write a run folder.

    Args:
        folder: Where.
        seeds: Seeds to write, all with the same rows.
        change: Applied to every row.
    """
    rows: list[Row] = []
    for seed in seeds:
        _seed(Builder(folder, seed, rows))
    results.write([change(row) for row in rows], folder)
    (folder / "run.json").write_text(json.dumps(_facts()))
    return folder


def _seed(builder: Builder) -> None:
    builder.probes()
    for name, level in (("original", 1.0), ("mean-face", 0.05), ("other-person", 0.02)):
        builder.scored(level, attack=name)
    for defense, threats in (
        ("advface", {"transfer": 0.3, "adaptive": 0.95}),
        ("none", {"transfer": 0.97}),
        (HOSTILE, {"transfer": 0.1}),
    ):
        about = {"defense": defense, "defense_params": PARAMETERS.get(defense, "{}")}
        about["leak"] = "features"
        builder.utility(0.95, defense != HOSTILE, **about)
        for threat, level in threats.items():
            builder.scored(level - 0.02, attack="linear", threat=threat, **about)
            builder.scored(level, attack="unet", threat=threat, **about)
            builder.scored(level, attack="worst-case", threat=threat, **about)
    hostile = {"leak": "features", "defense": HOSTILE, "defense_params": PARAMETERS[HOSTILE]}
    builder.failed(attack="unet", threat="adaptive", **hostile)


def _curve(level: float) -> dict[str, Any]:
    held_out = [2.0, 1.5, 1 - level]
    falls = {"training": [1.0, 0.5, 0.25], "held_out": held_out, "best": 30}
    return {"network": "UNet", "steps": [10, 20, 30], "more_budget_helps": level > 0.9, **falls}


def _facts() -> dict[str, Any]:
    suite = {"name": "synthetic", "title": "A <b>title</b>", "dataset": "faces", "fmr": 0.001}
    return {
        "suite": {**suite, "recognizer": {"name": "sface"}, "seeds": [0]},
        "versions": {"veilbench": "0.1.0"},
        "command": ["veilbench", "run", "a suite"],
        "device": "cpu",
        "credits": ["Faces <made up>"],
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.5,
        "thresholds": {"sface": {"threshold": 0.35}},
    }


def _photos() -> list[str]:
    return [f"p{place}.png" for place in range(PROBES)]


def _people() -> list[str]:
    return [f"s{place % PEOPLE}" for place in range(PROBES)]


def _write_csv(path: Path, columns: dict[str, list[Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
