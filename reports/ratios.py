"""Ratios of two times that pytest-benchmark measured in one run: speed as a gate can hold it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from scipy import special

from bench.errors import UserError
from bench.metrics import Estimate

_MEDIAN_OVER_MEAN = math.sqrt(math.pi / 2)
"""Standard error of a median over that of a mean, for a normal distribution."""

_QUARTILES = 1.349
"""Interquartile range of a normal distribution, in deviations."""


class Ratio(BaseModel):
    """A bound on a ratio of times: a `[[ratio]]` table.

    Attributes:
        name: What reports call it.
        file: What pytest-benchmark wrote with --benchmark-json, relative to the gate's file.
        numerator: Name of a benchmark.
        denominator: Name of the one it is compared with.
        direction: On which side of the limit the true ratio is guaranteed to lie.
        limit: The limit.
        alpha: Chance of a wrong answer in each direction.
        min_n: With fewer rounds the answer is inconclusive.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    file: Path
    numerator: str
    denominator: str
    direction: Literal["below", "above"] = "below"
    limit: float = Field(gt=0, allow_inf_nan=False)
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    min_n: int = Field(default=5, ge=1)


def ratio_estimate(ratio: Ratio, folder: Path) -> Callable[[float], Estimate]:
    """Return the ratio of the two medians with its interval, as a function of the confidence.

    The logarithm of the ratio is taken for normal; the errors of the medians follow from the
    interquartile ranges of the rounds. Rounds are taken for independent, which they are not on a
    machine that does other work: compare times of one run only.

    Raises:
        UserError: The file is missing or not pytest-benchmark's, or lacks one of the benchmarks.
    """
    path = folder / ratio.file
    try:
        found = {
            item["name"]: item["stats"] for item in json.loads(path.read_bytes())["benchmarks"]
        }
        parts = [_log_median(found[name]) for name in (ratio.numerator, ratio.denominator)]
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} cannot be used ({type(error).__name__}: {error}): write it with "
            "pytest --benchmark-json, with both benchmarks of the ratio."
        ) from error
    (upper, upper_error, rounds), (lower, lower_error, others) = parts
    centre, spread = upper - lower, math.hypot(upper_error, lower_error)
    count = min(rounds, others)

    def estimate(confidence: float) -> Estimate:
        half = float(special.ndtri((1 + confidence) / 2)) * spread
        low, high = math.exp(centre - half), math.exp(centre + half)
        return Estimate(math.exp(centre), low, high, count, count, "log-normal ratio of medians")

    return estimate


def _log_median(stats: dict[str, Any]) -> tuple[float, float, int]:
    """Return the logarithm of a median, its standard error, and the number of rounds."""
    median, rounds = float(stats["median"]), int(stats["rounds"])
    error = _MEDIAN_OVER_MEAN * float(stats["iqr"]) / _QUARTILES / median / math.sqrt(rounds)
    return math.log(median), error, rounds
