"""Grids of originals against reconstructions, of probes that a rule picks and no hand does."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reports.run import CEILING, GUESSES, WORST_CASE, Line, Run, probes, read_column, unusable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Images = NDArray[np.uint8]

QUANTILES = {"lowest": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "highest": 1.0}
"""Columns of every grid."""

RULE = (
    "Probes are ordered by their mean SSIM over all attacks of the run; shown are the lowest, "
    "the quartiles and the highest. Every grid shows the same probes in the same columns."
)


@dataclass(frozen=True)
class Strip:
    """One row of a grid.

    Attributes:
        name: The attack or reference, or "original".
        faces: (Q, H, W, 3), one per column.
        scores: SSIM of each face as text; empty for originals.
    """

    name: str
    faces: Images
    scores: tuple[str, ...]

    def jpeg(self) -> bytes:
        """Return the faces side by side as a JPEG."""
        stream = io.BytesIO()
        Image.fromarray(self.row()).save(stream, "JPEG", quality=85)
        return stream.getvalue()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the faces side by side."""
        columns, height, width, _ = self.faces.shape
        return columns * width, height

    def row(self) -> Images:
        """Return the faces side by side as one image (H, Q * W, 3)."""
        return np.concatenate(list(self.faces), axis=1)


@dataclass(frozen=True)
class Grid:
    """Originals on top, reconstructions below.

    Attributes:
        title: What the reconstructions were made from.
        detail: The threat, empty for references.
        strips: Rows, the originals first.
    """

    title: str
    detail: str
    strips: tuple[Strip, ...]


def grids(run: Run) -> list[Grid]:
    """Return the references' grid, then one per defense and threat, all of the first seed.

    Raises:
        ReportError: Images or raw values are missing or do not fit together.
    """
    seed = min((line.seed for line in run.lines), default=0)
    lines = [line for line in run.lines if line.seed == seed and run.has_cell(line.cell)]
    attacks = [line for line in lines if line.protection and line.attack not in {None, WORST_CASE}]
    if not attacks:
        return []
    album = _Album(run, seed)
    chosen = album.choose(attacks)
    # The best of guesses is several images of a probe, the ceiling the original.
    references = [
        line for line in run.references if line in lines and line.attack not in {CEILING, GUESSES}
    ]
    found = [album.grid("References", "", references, chosen)]
    for protection in run.protections:
        for threat in run.threats(protection):
            members = [line for line in run.attacks(protection, threat) if line in attacks]
            if members:
                found.append(album.grid(run.title(protection), threat, members, chosen))
    return found


def overviews(found: Iterable[Grid]) -> list[Grid]:
    """Return one grid per leak that holds every attack on every defense, for a README or a talk."""
    by_leak: dict[str, list[Grid]] = defaultdict(list)
    for grid in found:
        if grid.detail:
            by_leak[grid.title.partition(" · ")[0]].append(grid)
    return [
        Grid(
            leak,
            "",
            (
                members[0].strips[0],
                *(
                    replace(strip, name=f"{_defense(grid)}: {strip.name}, {grid.detail}")
                    for grid in members
                    for strip in grid.strips[1:]
                ),
            ),
        )
        for leak, members in by_leak.items()
    ]


def _defense(grid: Grid) -> str:
    return grid.title.partition(" · ")[2].removesuffix(" (undefended)")


class _Album:
    """The images of one seed's probes."""

    def __init__(self, run: Run, seed: int) -> None:
        self._run = run
        self._probes = probes(run.folder, seed)
        self._originals = self._images(run.folder / "seeds" / str(seed) / "originals.npy")

    def choose(self, attacks: Iterable[Line]) -> NDArray[np.intp]:
        """Return the probes at the quantiles of mean SSIM over attacks."""
        mean = np.mean([self._ssim(line) for line in attacks], axis=0)
        order = np.argsort(mean, kind="stable")
        places = np.round(np.array(list(QUANTILES.values())) * (len(order) - 1))
        return np.asarray(order[places.astype(int)])

    def grid(
        self, title: str, detail: str, lines: Iterable[Line], chosen: NDArray[np.intp]
    ) -> Grid:
        strips = [Strip("original", self._originals[chosen], ())]
        for line in lines:
            faces = self._images(self._cell(line) / "reconstructions.npy")[chosen]
            scores = tuple(f"{value:.2f}" for value in self._ssim(line)[chosen])
            strips.append(Strip(self._run.attack_name(line), faces, scores))
        return Grid(title, detail, tuple(strips))

    def _images(self, path: Path) -> Images:
        try:
            images: Images = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise unusable(path, str(error)) from error
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(self._probes):
            raise unusable(path, f"{images.dtype} {images.shape} for {len(self._probes)} probes")
        return images

    def _ssim(self, line: Line) -> NDArray[np.float64]:
        path = self._cell(line) / "values.csv"
        if tuple(read_column(path, "probe")) != self._probes.photos:
            raise unusable(path, "its probes are not those of the seed")
        return np.array(read_column(path, "ssim"), dtype=np.float64)

    def _cell(self, line: Line) -> Path:
        return self._run.folder / "cells" / line.cell
