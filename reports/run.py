"""A finished run, read from its folder and grouped into the lines that tables and figures show."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bench import results
from bench.curves import Curve
from bench.errors import UserError, first_fault
from bench.threats import WEAKER, Threat

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bench.leaks import Leak
    from bench.results import Row

UNDEFENDED = "none"
WORST_CASE = "worst-case"
CEILING = "original"
GUESSES = "best-of-guesses"
"""The floor of a worst case: the best of as many blind guesses as there are attacks."""

FLOORS = ("mean-face", "other-person")
"""References that show nobody in particular: an attack that does no better has found nothing."""


class ReportError(UserError):
    """A run's folder cannot be reported on; the message names the file and the mend."""


class RecognizerInfo(BaseModel):
    """The recogniser under attack: its kind, and what rows call it."""

    name: str
    label: str = ""

    @property
    def shown(self) -> str:
        """What rows call it."""
        return self.label or self.name


class SuiteInfo(BaseModel):
    """What the report says about the suite.

    Attributes:
        name: Its name.
        title: One sentence.
        dataset: Name of the dataset.
        recognizer: The recogniser under attack.
        fmr: False match rate behind every judge's threshold.
    """

    name: str
    title: str
    dataset: str
    recognizer: RecognizerInfo
    fmr: float


class ThresholdInfo(BaseModel):
    """A judge's operating point."""

    threshold: float


class RunInfo(BaseModel):
    """The contents of `run.json` that the report shows."""

    model_config = ConfigDict(extra="ignore")

    suite: SuiteInfo
    versions: dict[str, str]
    command: list[str]
    device: str
    credits: list[str]
    started: str
    seconds: float
    thresholds: dict[str, ThresholdInfo] = {}


@dataclass(frozen=True)
class Protection:
    """One defense of one leaked object: what attacks are run against.

    Attributes:
        leak: The object that leaked.
        defense: Name of the defense.
        parameters: Its parameters as JSON.
        seed: Seed of split, secrets and attacks.
    """

    leak: Leak
    defense: str
    parameters: str
    seed: int

    @property
    def undefended(self) -> bool:
        """Whether the object is stored as it is."""
        return self.defense == UNDEFENDED


@dataclass(frozen=True)
class Line:
    """Every row of one attack under one threat, of one reference, or of one defense's utility.

    Attributes:
        protection: What was attacked or used; None for references.
        attack: Name of the attack or reference; None for utility.
        attack_parameters: Its parameters as JSON.
        threat: The threat; None for references and utility.
        seed: Seed.
        rows: The rows, at least one.
    """

    protection: Protection | None
    attack: str | None
    attack_parameters: str
    threat: Threat | None
    seed: int
    rows: tuple[Row, ...]

    def row(self, metric: str, judge: str | None = None) -> Row | None:
        """Return the row of a metric that has a value."""
        return next(
            (
                row
                for row in self.rows
                if (row.metric, row.judge) == (metric, judge) and row.value is not None
            ),
            None,
        )

    def value(self, metric: str, judge: str | None = None) -> float:
        """Return the value of a metric, minus infinity where there is none: it ranks last."""
        row = self.row(metric, judge)
        return float("-inf") if row is None or row.value is None else row.value

    @property
    def failure(self) -> str:
        """Why there are no values; empty if there are."""
        reasons = [row.reason or "no reason given" for row in self.rows if row.status == "error"]
        return visible(reasons[0]) if reasons else ""

    @property
    def cell(self) -> str:
        """Key of the cell, empty where there is none."""
        return next((row.cell for row in self.rows if row.cell), "")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Its folder.
        info: What `run.json` says.
        lines: Its rows, grouped, in the order of the results file.
    """

    folder: Path
    info: RunInfo
    lines: tuple[Line, ...]

    @cached_property
    def judges(self) -> tuple[str, ...]:
        """Names of the judges that scored anything, independent ones first."""
        found = dict.fromkeys(row.judge for line in self.lines for row in line.rows if row.judge)
        return tuple(sorted(found, key=self.is_target))

    def is_target(self, judge: str) -> bool:
        """Say whether a judge is the recogniser under attack: an attack may have aimed at it."""
        return judge == self.info.suite.recognizer.shown

    @property
    def judge(self) -> str | None:
        """The judge of the headline: an independent one where there is one."""
        return self.judges[0] if self.judges else None

    @cached_property
    def protections(self) -> tuple[Protection, ...]:
        """What was attacked or used, by leak and seed, the undefended object first."""
        found = dict.fromkeys(line.protection for line in self.lines if line.protection)
        leaks = list(dict.fromkeys(item.leak for item in found))
        order = {item: (leaks.index(item.leak), item.seed, not item.undefended) for item in found}
        return tuple(sorted(found, key=order.__getitem__))

    @property
    def attacked(self) -> bool:
        """Whether any attack was run, not only what defenses cost."""
        return any(self.attacks(item) for item in self.protections)

    @property
    def references(self) -> list[Line]:
        """Floors and ceilings, weakest first."""
        found = [line for line in self.lines if line.protection is None]
        return sorted(found, key=lambda line: (line.seed, *self.strength(line)))

    def utility(self, protection: Protection) -> Line | None:
        """Return what a defense costs, in recognition and in resources."""
        return next((x for x in self._of(protection) if x.attack is None), None)

    def attacks(self, protection: Protection, threat: Threat | None = None) -> list[Line]:
        """Return the attacks on a protection, strongest first, failed ones last."""
        found = [
            line
            for line in self._of(protection)
            if line.attack not in {None, WORST_CASE} and threat in {None, line.threat}
        ]
        return sorted(found, key=self.strength, reverse=True)

    def worst(self, protection: Protection, threat: Threat) -> Line | None:
        """Return the best attack per probe under a threat."""
        wanted = (WORST_CASE, threat)
        return next((x for x in self._of(protection) if (x.attack, x.threat) == wanted), None)

    def threats(self, protection: Protection) -> list[Threat]:
        """Return the threats that a protection was attacked under."""
        met = {line.threat for line in self._of(protection)}
        return [threat for threat in Threat if threat in met]

    def undefended(self, protection: Protection) -> Protection | None:
        """Return the undefended counterpart of a protection."""
        wanted = (True, protection.leak, protection.seed)
        return next((x for x in self.protections if (x.undefended, x.leak, x.seed) == wanted), None)

    def strength(self, line: Line) -> tuple[float, float]:
        """Return what ranks attacks: identification first, then likeness."""
        return line.value("rank-1", self.judge), line.value("ssim")

    @cached_property
    def several_seeds(self) -> bool:
        """Whether lines must say which seed they belong to."""
        return len({line.seed for line in self.lines}) > 1

    def has_cell(self, key: str) -> bool:
        """Say whether the run has the folder of a cell."""
        return key in self._cells

    def defense_name(self, protection: Protection) -> str:
        """Return a defense's name, with the parameters that tell it from others of that name."""
        name = self._defense_names[protection.defense, protection.parameters]
        return f"{name}, seed {protection.seed}" if self.several_seeds else name

    def title(self, protection: Protection) -> str:
        """Return a heading for what was attacked."""
        note = " (undefended)" if protection.undefended else ""
        return f"{protection.leak.capitalize()} · {self.defense_name(protection)}{note}"

    def attack_name(self, line: Line) -> str:
        """Return an attack's name, with the parameters that tell it from others of that name."""
        return self._attack_names[line.attack or "", line.attack_parameters]

    @cached_property
    def _defense_names(self) -> Mapping[tuple[str, str], str]:
        return distinct_names((x.defense, x.parameters) for x in self.protections)

    @cached_property
    def _attack_names(self) -> Mapping[tuple[str, str], str]:
        return distinct_names((line.attack or "", line.attack_parameters) for line in self.lines)

    @cached_property
    def _cells(self) -> frozenset[str]:
        # Listed, not built from keys: a results file is data and must not name other places.
        return frozenset(path.name for path in self.folder.glob("cells/*") if path.is_dir())

    @cached_property
    def _by_protection(self) -> Mapping[Protection | None, list[Line]]:
        groups: dict[Protection | None, list[Line]] = defaultdict(list)
        for line in self.lines:
            groups[line.protection].append(line)
        return groups

    def _of(self, protection: Protection) -> list[Line]:
        return self._by_protection[protection]


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        UserError: A file is missing or unusable.
    """
    rows = results.read(folder)
    path = folder / "run.json"
    try:
        info = RunInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ReportError(f"{folder} holds no run.json: give the --out folder of a run.") from error
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise unusable(path, reason) from error
    return Run(folder, info, tuple(group_lines(rows)))


@dataclass(frozen=True)
class Probes:
    """The victims' photos whose records leaked.

    Attributes:
        photos: Their names in the dataset, in the order of every array of the run.
        identities: Whom they show.
    """

    photos: tuple[str, ...]
    identities: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def people(self) -> set[str]:
        """The people on them."""
        return set(self.identities)


def probes(folder: Path, seed: int) -> Probes:
    """Read the probes of one seed of a run.

    Raises:
        ReportError: The list is missing or unusable.
    """
    path = folder / "seeds" / str(seed) / "probes.csv"
    return Probes(tuple(read_column(path, "probe")), tuple(read_column(path, "identity")))


def read_column(path: Path, name: str) -> list[str]:
    """Read one column of a CSV file of the run as text.

    Raises:
        ReportError: The file or the column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [line[name] for line in csv.DictReader(stream)]
    except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
        raise unusable(path, f"{type(error).__name__}: {error}") from error


def read_curves(run: Run, line: Line) -> list[Curve]:
    """Read how the attack of a line learned; empty where nothing was trained or recorded.

    Raises:
        ReportError: The file of the cell is unusable.
    """
    if not run.has_cell(line.cell):
        return []
    path = run.folder / "cells" / line.cell / "cell.json"
    try:
        facts = json.loads(path.read_bytes())["facts"]
        return TypeAdapter(list[Curve]).validate_python(facts.get("training", []))
    except ValidationError as error:
        raise unusable(path, str(first_fault(error))) from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise unusable(path, f"{type(error).__name__}: {error}") from error


def unusable(path: Path, reason: str) -> ReportError:
    """Return the error for a file of the run that is missing or broken."""
    return ReportError(f"{path} cannot be used ({reason}): run the suite again.")


_Key = tuple[Protection | None, str | None, str, Threat | None, int]


def group_lines(rows: Iterable[Row]) -> list[Line]:
    """Group rows that belong on one line, in order of appearance."""
    groups: dict[_Key, list[Row]] = defaultdict(list)
    for row in rows:
        protection = None
        if row.leak is not None and row.defense is not None:
            protection = Protection(row.leak, row.defense, row.defense_params, row.seed)
        groups[protection, row.attack, row.attack_params, row.threat, row.seed].append(row)
    return [Line(*key, rows=tuple(members)) for key, members in groups.items()]


def floors(lines: Iterable[Line], protection: Protection, threat: Threat | None) -> list[Line]:
    """Return what chance scores in the place of a worst case.

    The references that show nobody in particular; and, since the best of several attacks is above
    each of them, the best of as many guesses.
    """
    within = {threat, *(WEAKER[threat] if threat else ())}
    found, best_of, met = [], [], 0
    for line in lines:
        if line.protection == protection:
            attacked = line.attack not in {None, WORST_CASE} and line.threat in within
            met += attacked and not line.failure
        elif line.protection is None and line.seed == protection.seed:
            if line.attack in FLOORS:
                found.append(line)
            elif line.attack == GUESSES:
                best_of.append(line)
    enough = [line for line in best_of if guesses(line) >= met]
    return [*found, min(enough, key=guesses)] if met > 1 and enough else found


def guesses(line: Line) -> int:
    """Return of how many guesses a floor is the best, 0 if its parameters do not say."""
    count = json.loads(line.attack_parameters).get("guesses")
    return count if isinstance(count, int) else 0


def parameters_phrase(text: str, names: Sequence[str] | None = None) -> str:
    """Return JSON parameters as "eps 0.6, steps 10", those with these names or all."""
    parameters = json.loads(text)
    shown = parameters if names is None else [name for name in names if name in parameters]
    phrases = (
        f"{name} {_plain(parameters[name])}" for name in shown if parameters[name] is not None
    )
    return visible(", ".join(phrases))


def visible(text: str) -> str:
    """Return text on one line without control characters, such as those that turn its direction."""
    return "".join(c for c in " ".join(text.split()) if unicodedata.category(c)[0] != "C")


def distinct_names(plugins: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return a name for each (name, parameters) that tells it from the others.

    Args:
        plugins: Names and parameters as JSON; repetitions are fine.
    """
    known = list(plugins)
    shown = varying(known)
    return {(name, text): _distinct_name(name, text, shown[name]) for name, text in known}


def varying(plugins: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return by name the parameters that have more than one value, given (name, JSON) pairs."""
    variants: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for name, text in plugins:
        variants[name][text] = json.loads(text)
    return {name: _differing(list(members.values())) for name, members in variants.items()}


def _differing(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for variant in variants for key in variant)
    return [key for key in keys if len({_plain(variant.get(key)) for variant in variants}) > 1]


def _distinct_name(name: str, text: str, differing: Sequence[str]) -> str:
    phrase = parameters_phrase(text, differing)
    return visible(f"{name} ({phrase})" if phrase else name)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
