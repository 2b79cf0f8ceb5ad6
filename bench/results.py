"""The result schema: one row per metric, numbers as numbers, failures as rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from bench.errors import UserError
from bench.leaks import Leak
from bench.store import atomic_path
from bench.threats import Threat

if TYPE_CHECKING:
    import pandas as pd

    from bench.metrics import Estimate

Status = Literal["ok", "error"]


@dataclass(frozen=True)
class Score:
    """One metric: its estimate, and what a row says beside it.

    Attributes:
        metric: Name of the metric.
        definition: Id of its definition.
        estimate: Value and interval.
        judge: Name of the recogniser that scored, if one did.
        flags: What a reader must know.
    """

    metric: str
    definition: str
    estimate: Estimate
    judge: str | None = None
    flags: tuple[str, ...] = ()


class Row(BaseModel):
    """One metric of one cell, of one defense's utility, or of one reference.

    Attributes:
        suite: Name of the suite.
        dataset: Name of the dataset.
        recognizer: Name of the recogniser under attack.
        leak: The object that leaked; None for references, which see no record.
        defense: Name of the defense; None for references.
        defense_params: Its parameters as JSON.
        attack: Name of the attack or reference, "worst-case" for the per-probe maximum over
            attacks, or None for utility and cost.
        attack_params: Its parameters as JSON.
        threat: The threat; None for references, utility and cost.
        seed: Seed of split, secrets and attack.
        judge: Recogniser that scored; None for pixel metrics and cost.
        metric: Name of the metric, a row of `bench.metrics.definitions`.
        definition: Id of its definition.
        value: The value; None in an error row.
        ci_low: Lower end of the 95 % interval, None where there is none.
        ci_high: Upper end.
        n: Number of probes, pairs or records behind the value.
        status: "ok", or "error" with the reason in `reason`.
        reason: Why there is no value.
        flags: What a reader must know, separated by spaces: "indicative-fmr", "gallery=35".
        cell: Key of the cell, which names its folder below `cells/`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    dataset: str
    recognizer: str
    leak: Leak | None = None
    defense: str | None = None
    defense_params: str = "{}"
    attack: str | None = None
    attack_params: str = "{}"
    threat: Threat | None = None
    seed: int
    judge: str | None = None
    metric: str
    definition: str
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    status: Status = "ok"
    reason: str = ""
    flags: str = ""
    cell: str = ""


def parameters_text(parameters: dict[str, Any]) -> str:
    """Return parameters as canonical JSON, the form in which rows carry them."""
    return json.dumps(parameters, sort_keys=True)


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows as a table with one column per field, numbers as numbers."""
    import pandas as pd

    frame = pd.DataFrame(
        [row.model_dump(mode="json") for row in rows], columns=list(Row.model_fields)
    )
    numbers = dict.fromkeys(("value", "ci_low", "ci_high"), "float64")
    return frame.astype({**numbers, "n": "int64", "seed": "int64"})


def write(rows: Sequence[Row], folder: Path) -> bool:
    """Write `results.parquet` and `results.csv`, each whole or not at all.

    Returns:
        Whether the rows are other than those that were there.
    """
    frame, text = to_frame(rows), folder / "results.csv"
    before = text.read_bytes() if text.is_file() else None
    with atomic_path(folder / "results.parquet") as path:
        frame.to_parquet(path, index=False)
    with atomic_path(text) as path:
        frame.to_csv(path, index=False)
    return text.read_bytes() != before


def read(folder: Path) -> list[Row]:
    """Read the rows of a run's folder.

    Raises:
        UserError: There is no results file, or it does not follow the schema.
    """
    import pandas as pd

    path = folder / "results.parquet"
    if not path.is_file():
        raise UserError(f"{folder} holds no results.parquet: give the --out folder of a run.")
    try:
        records = pd.read_parquet(path).to_dict("records")
        return [Row.model_validate({str(k): _plain(v) for k, v in row.items()}) for row in records]
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a veilbench result ({reason}): run the suite again."
        ) from error


def _plain(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value
