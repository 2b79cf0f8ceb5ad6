from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from run_folder import PROBES, build

from reports.grids import grids
from reports.run import ReportError, read_run

if TYPE_CHECKING:
    from pathlib import Path

    from bench.results import Row


def test_probes_are_picked_at_quantiles_of_mean_ssim(synthetic: Path) -> None:
    found = grids(read_run(synthetic))
    assert [grid.strips[0].name for grid in found] == ["original"] * len(found)
    # SSIM rises with the probe's place, and so do the shades of the originals.
    shades = np.linspace(20, 235, PROBES).astype(np.uint8)
    for grid in found:
        assert grid.strips[0].faces[:, 0, 0, 0].tolist() == shades[[0, 2, 4, 5, 7]].tolist()


def test_there_is_a_grid_per_defense_and_threat_with_the_strongest_attack_first(
    synthetic: Path,
) -> None:
    found = grids(read_run(synthetic))
    titles = [(grid.title, grid.detail) for grid in found[:4]]
    assert titles == [
        ("References", ""),
        ("Features · none (undefended)", "transfer"),
        ("Features · advface", "transfer"),
        ("Features · advface", "adaptive"),
    ]
    assert [strip.name for strip in found[0].strips] == ["original", "other-person", "mean-face"]
    assert [strip.name for strip in found[3].strips] == ["original", "unet", "linear"]
    assert found[3].strips[1].scores == ("0.90", "0.93", "0.96", "0.97", "1.00")


def test_images_that_do_not_fit_the_probes_are_refused(tmp_path: Path) -> None:
    run = build(tmp_path)
    np.save(run / "seeds/0/originals.npy", np.zeros((PROBES, 112, 112, 3), np.float32))
    with pytest.raises(ReportError, match=r"originals\.npy cannot be used \(float32"):
        grids(read_run(run))


def test_pickled_images_are_not_loaded(tmp_path: Path) -> None:
    run = build(tmp_path)
    np.save(run / "seeds/0/originals.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ReportError, match="run the suite again"):
        grids(read_run(run))


def test_values_of_other_probes_are_refused(tmp_path: Path) -> None:
    run = build(tmp_path)
    for path in run.glob("cells/*/values.csv"):
        path.write_text(path.read_text().replace("p3.png", "p9.png"))
    with pytest.raises(ReportError, match="its probes are not those of the seed"):
        grids(read_run(run))


def test_cells_outside_the_run_are_not_read(tmp_path: Path) -> None:
    def change(row: Row) -> Row:
        return row.model_copy(update={"cell": "../../elsewhere"}) if row.cell else row

    assert grids(read_run(build(tmp_path, change=change))) == []
