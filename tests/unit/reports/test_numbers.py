from __future__ import annotations

import pytest

from bench.results import Row
from reports.numbers import decimals, show


def row(value: float | None, low: float | None, high: float | None, definition: str) -> Row:
    return Row(
        suite="s",
        dataset="d",
        recognizer="r",
        seed=0,
        metric="m",
        definition=definition,
        value=value,
        ci_low=low,
        ci_high=high,
    )


@pytest.mark.parametrize(
    ("half_width", "places"),
    [(40, 0), (3, 0), (2.9, 1), (0.4, 1), (0.29, 2), (0.004, 3), (1e-9, 4)],
)
def test_a_number_has_the_digits_that_its_interval_supports(half_width: float, places: int) -> None:
    assert decimals(half_width) == places


Fields = tuple[float | None, float | None, float | None, str]

SSIM = "ssim:wang11-valid-rgb"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ((0.8333, 0.71, 0.91, "rank-1"), "83\N{NO-BREAK SPACE}% [71, 91]"),
        ((0.9531, 0.9493, 0.9571, SSIM), "0.953 [0.949, 0.957]"),
        ((-0.00001, -0.004, 0.004, SSIM), "0.000 [-0.004, 0.004]"),
        ((1.0, 1.0, 1.0, SSIM), "1.00 [1.00, 1.00]"),
        ((float("inf"), 31.0, float("inf"), "psnr:rgb-uint8"), "∞ dB [31, ∞]"),
        ((float("inf"), None, None, "psnr:rgb-uint8"), "∞ dB"),
        ((0.000286, None, None, "eer"), "0.03\N{NO-BREAK SPACE}%"),
        ((802816.0, None, None, "bytes-per-record"), "802,816 B"),
        ((16.0, None, None, "bytes-per-record"), "16 B"),
        ((16.0, 16.0, 16.0, "bytes-per-record"), "16 B exact"),
        ((0.05123, None, None, "ms-per-record"), "0.0512 ms"),
        ((None, None, None, SSIM), "–"),
    ],
)
def test_numbers_as_text(fields: Fields, text: str) -> None:
    assert str(show(row(*fields))) == text


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("null-mean=0.021 null-p95=0.029", "0.0700 chance 0.02\N{EN DASH}0.03"),
        ("null-mean=0.021", "0.0700"),
        ("null-mean=x null-p95=y", "0.0700"),
    ],
)
def test_linkability_stands_beside_what_chance_gives(flags: str, text: str) -> None:
    found = row(0.07, None, None, "d-sys").model_copy(update={"flags": flags})
    assert str(show(found)) == text
    bounded = found.model_copy(update={"ci_low": 0.02, "ci_high": 0.12})
    assert str(show(bounded)) == text.replace("0.0700", "0.07 [0.02, 0.12]")
