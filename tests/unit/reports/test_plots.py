from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from run_folder import HOSTILE, build

from bench.errors import UserError
from bench.metrics.verification import roc
from reports.plots import Plot, _corners, plots
from reports.run import read_run

if TYPE_CHECKING:
    from pathlib import Path

    from bench.results import Row


@pytest.fixture(scope="module")
def found(synthetic: Path) -> dict[str, Plot]:
    return {plot.name: plot for plot in plots(read_run(synthetic))}


def test_a_run_gives_every_kind_of_figure_that_it_has_values_for(found: dict[str, Plot]) -> None:
    assert list(found) == [
        "heat-map-features",
        "roc-det-features",
        "cmc-features",
        "scores-features",
        "learning-features",
        "unlinkability",
    ]


def test_the_heat_map_has_the_value_of_every_attack_on_every_defense(
    found: dict[str, Plot],
) -> None:
    text = found["heat-map-features"].description
    assert "unet, adaptive on advface: 95 %" in text
    assert "linear, transfer on none: 95 %" in text
    assert "unet, adaptive on <script>" in text
    assert text.endswith("nan %")
    (axes,) = found["heat-map-features"].figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["none", "advface"]
    values = axes.images[0].get_array()
    assert values is not None
    assert values[0, 0] == pytest.approx(97)


def test_the_tries_until_a_person_is_found_come_from_raw_ranks(found: dict[str, Plot]) -> None:
    text = found["cmc-features"].description
    assert "none under transfer: 50 % at the first try, 100 % within five" in text
    assert "advface under transfer: 0 % at the first try, 0 % within five" in text


def test_scores_are_drawn_beside_genuine_ones_and_the_threshold(found: dict[str, Plot]) -> None:
    plot = found["scores-features"]
    assert "advface under adaptive: median 0.95" in plot.description
    for axes in plot.figure.axes:
        assert [np.asarray(line.get_xdata())[0] for line in axes.lines] == [0.35]


def test_every_trained_network_has_a_panel_with_both_losses(found: dict[str, Plot]) -> None:
    plot = found["learning-features"]
    assert (
        "unet, adaptive on advface: training loss 1 to 0.25, on people held out 2 to 0.05 at step "
        "30, more budget helps"
    ) in plot.description
    assert "unet, transfer on advface: training loss 1 to 0.25, on" in plot.description
    panels = [axes for axes in plot.figure.axes if axes.get_title()]
    assert len(panels) == 4
    assert list(np.asarray(panels[0].lines[1].get_ydata())) == pytest.approx([2, 1.5, 0.03])


def test_one_training_that_serves_two_defenses_is_shown_once(tmp_path: Path) -> None:
    folder = build(tmp_path)
    paths = [x for x in folder.glob("cells/*/cell.json") if "UNet" in x.read_text()]
    for path in paths:
        path.write_text(paths[0].read_text())
    (plot,) = (x for x in plots(read_run(folder)) if x.name == "learning-features")
    assert "unet, transfer on none, advface, <script>" in plot.description
    paths[0].write_text('{"facts": {"training": [{"steps": [1]}]}}')
    with pytest.raises(UserError, match=r"cell\.json .*0\.network: Field required"):
        plots(read_run(folder))


def test_linkability_stands_beside_chance(found: dict[str, Plot]) -> None:
    told = "advface: 0.20 [0.13, 0.27] chance 0.05\N{EN DASH}0.09"
    assert told in found["unlinkability"].description


def test_a_curve_keeps_its_corners_and_loses_nothing_between(found: dict[str, Plot]) -> None:
    rng = np.random.default_rng(0)
    curve = roc(rng.normal(2, 1, 300), rng.normal(0, 1, 2000))
    far, tar = _corners(curve)
    assert len(far) < 0.5 * len(curve.far)
    assert np.allclose(np.interp(curve.far, far, tar), np.interp(curve.far, curve.far, curve.tar))
    assert [axes.get_title() for axes in found["roc-det-features"].figure.axes] == ["ROC", "DET"]


def test_a_parameter_that_varies_alone_gives_a_curve(tmp_path: Path) -> None:
    def change(row: Row) -> Row:
        if row.defense == "none" and row.attack is not None:
            return row.model_copy(
                update={"defense": "advface", "defense_params": '{"eps": 0.1, "steps": 10}'}
            )
        if row.attack == "linear":
            return row.model_copy(update={"attack": "unet", "attack_params": '{"steps": 5}'})
        if row.attack == "unet":
            return row.model_copy(update={"attack_params": '{"steps": 50}'})
        return row

    made = {x.name: x for x in plots(read_run(build(tmp_path, change=change)))}
    eps, steps = made["sweep-defense-advface-eps"], made["sweep-attack-unet-steps"]
    assert "features, transfer, seed 0, eps 0.1: Identified" in eps.description
    assert "eps 0.6: SSIM 0.30" in eps.description
    assert "steps 5: SSIM 0.28" in steps.description
    assert HOSTILE not in "".join(made)


def test_a_run_without_raw_values_gives_what_its_rows_allow(tmp_path: Path) -> None:
    folder = build(tmp_path)
    for path in folder.glob("cells/*/values.csv"):
        path.write_text("probe,identity\n")
    for path in list(folder.glob("cells/*")):
        path.rename(folder / path.name)
    assert [plot.name for plot in plots(read_run(folder))] == ["heat-map-features", "unlinkability"]
