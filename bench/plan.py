"""Suites: TOML files that say which cells to run, checked field by field, and the cells in them."""

from __future__ import annotations

import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.datasets.base import SplitSizes
from bench.errors import UserError, first_fault
from bench.keys import digest
from bench.leaks import Leak
from bench.listing import SUITES
from bench.plugin import source_fingerprint
from bench.registry import ATTACKS, DATASETS, DEFENSES, RECOGNIZERS, Registry
from bench.threats import WEAKER, Threat

_STANDARD = Path(__file__).with_name("standard.toml")


class SuiteError(UserError):
    """A suite cannot be read; the message names the file and the field."""


class Named(BaseModel):
    """A plug-in's name with its parameters beside it: `{ name = "advface", eps = 0.6 }`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The fields beside the name."""
        return dict(self.model_extra or {})


class NamedRecognizer(Named):
    """A recogniser with its parameters; the label tells two of one kind apart in results."""

    label: str = Field(
        default_factory=lambda fields: fields["name"], pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
    )


class NamedAttack(Named):
    """An attack, the threats to run it under, and its parameters."""

    threats: tuple[Threat, ...] = Field(min_length=1)


class Group(BaseModel):
    """Every defense of the group meets every attack of the group.

    Without attacks, only what its defenses cost is measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    leak: Leak
    defenses: tuple[Named, ...] = Field(min_length=1)
    attacks: tuple[NamedAttack, ...] = ()


class Suite(BaseModel):
    """The cells to run and the settings they share.

    Attributes:
        name: Name in results.
        title: One sentence for the report.
        dataset: Name of the dataset.
        recognizer: Name of the recogniser under attack, with parameters.
        judges: Recognisers beside it that score reconstructions.
        public: Other recognisers that attackers have, as downloads are; none of them may judge.
        seeds: Seeds of splits, secrets and attacks; every cell runs once per seed.
        split: Who plays which role.
        fmr: False match rate that fixes every judge's threshold.
        fresh_instances: Instances of the defense that an adaptive attacker makes for itself.
        query_budget: Calls under `query`; score_budget: calls under `score`.
        attack_set: Version of the standard set of attacks, if it is what runs.
        group: Cells.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str
    dataset: str
    recognizer: NamedRecognizer
    judges: tuple[NamedRecognizer, ...] = ()
    public: tuple[NamedRecognizer, ...] = ()
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    split: SplitSizes
    fmr: float = Field(default=1e-3, gt=0, lt=1)
    fresh_instances: int = Field(default=2, ge=1)
    query_budget: int = Field(default=1000, ge=1)
    score_budget: int = Field(default=100_000, ge=1)
    attack_set: str = ""
    group: tuple[Group, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _tell_judges_apart(self) -> Self:
        labels = [item.label for item in (self.recognizer, *self.judges, *self.public)]
        for label in set(labels):
            if labels.count(label) > 1:
                raise ValueError(f"two recognizers are called {label}: give one another label")
        return self


@dataclass(frozen=True, eq=False)
class Spec:
    """A plug-in with all its parameters: what is hashed and shown.

    Two are equal if all parameters are, whether they were given or left to their defaults.

    Attributes:
        kind: "attack" or "defense".
        name: Name in the registry.
        given: Parameters as the suite gave them.
    """

    kind: str
    name: str
    given: tuple[tuple[str, Any], ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @cached_property
    def _identity(self) -> str:
        return digest([self.kind, self.name, self.parameters])

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process looks at its own source: what it makes must not bear the hash of ours.
        return Spec, (self.kind, self.name, self.given)

    @property
    def _registry(self) -> Registry:
        return ATTACKS if self.kind == "attack" else DEFENSES

    def create(self) -> Any:
        """Return a new, unfitted instance.

        Raises:
            UserError: A parameter is wrong.
        """
        return self._registry.get(self.name).create(f"{self.kind} {self.name!r}", dict(self.given))

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """All parameters, defaults included."""
        parameters: dict[str, Any] = self.create().parameters
        return parameters

    @cached_property
    def fields(self) -> dict[str, Any]:
        """What identifies it in a key: name, parameters, and source."""
        fingerprint = source_fingerprint(self._registry.get(self.name).__module__)
        return {"name": self.name, "parameters": self.parameters, "source": fingerprint}


@dataclass(frozen=True)
class Cell:
    """The unit of work: one attack on one defense under one threat and seed."""

    leak: Leak
    defense: Spec
    attack: Spec
    threat: Threat
    seed: int

    def __str__(self) -> str:
        return f"{self.leak}/{self.defense.name}/{self.attack.name}/{self.threat}/seed {self.seed}"


def load_suite(name: str) -> Suite:
    """Read a suite by name, or from a path that ends in `.toml`.

    Raises:
        SuiteError: There is no such suite, or a field is wrong.
    """
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(suite_names())
        raise SuiteError(
            f"There is no suite {name!r}: choose one of {known}, or give the path of a .toml file."
        )
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SuiteError(f"The suite {path} cannot be read ({error}): mend its TOML.") from error
    return parse_suite(fields, str(path))


def parse_suite(fields: dict[str, Any], where: str) -> Suite:
    """Check the fields of a suite.

    Raises:
        SuiteError: A field is wrong; the message names it.
    """
    try:
        return Suite.model_validate(fields)
    except ValidationError as error:
        fault = first_fault(error)
        raise SuiteError(
            f"The suite {where} has a wrong field {fault.field!r} ({fault.reason}): mend it."
        ) from error


def suite_names() -> list[str]:
    """Return the names of the built-in suites."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def cells(suite: Suite) -> list[Cell]:
    """Return the cells of a suite, checked against what attacks and defenses can do.

    An undefended object has no secrets, so `none` meets each attack once, under its first threat.

    Raises:
        UserError: A name or parameter is unknown, or an attack does not fit a leak or threat.
    """
    for registry, names in (
        (DATASETS, [suite.dataset]),
        (RECOGNIZERS, [item.name for item in (suite.recognizer, *suite.judges)]),
    ):
        for name in names:
            registry.entry(name)
    return list(
        dict.fromkeys(
            cell for seed in suite.seeds for group in suite.group for cell in _cells(group, seed)
        )
    )


def protected(suite: Suite) -> list[tuple[Leak, Spec]]:
    """Return every leak with each defense of it, attacked or not.

    Raises:
        UserError: A name or parameter is unknown, or a defense does not fit a leak.
    """
    return list(
        dict.fromkeys((group.leak, spec) for group in suite.group for spec in _defenses(group))
    )


def best_of(planned: Sequence[Cell]) -> list[int]:
    """Return of how many attacks the worst cases take the best, where it is more than one."""
    met: dict[tuple[int, Leak, Spec], Counter[Threat]] = defaultdict(Counter)
    for cell in planned:
        met[cell.seed, cell.leak, cell.defense][cell.threat] += 1
    sizes = {
        sum(count[other] for other in (threat, *WEAKER[threat]))
        for count in met.values()
        for threat in count
    }
    return sorted(sizes - {1})


def _defenses(group: Group) -> Iterator[Spec]:
    for named in group.defenses:
        spec = Spec("defense", named.name, tuple(named.parameters.items()))
        _check_leak(spec, group.leak)
        yield spec


def _cells(group: Group, seed: int) -> Iterator[Cell]:
    for defense in _defenses(group):
        for named in group.attacks:
            attack = Spec("attack", named.name, tuple(named.parameters.items()))
            _check_leak(attack, group.leak)
            for threat in named.threats[:1] if defense.name == "none" else named.threats:
                _check_threat(attack, threat)
                yield Cell(group.leak, defense, attack, threat, seed)


def _check_leak(spec: Spec, leak: Leak) -> None:
    leaks = spec.create().leaks
    if leak not in leaks:
        raise SuiteError(
            f"The {spec.kind} {spec.name!r} does not work on the leak {leak} (only on "
            f"{', '.join(sorted(leaks))}): move it to another group of the suite."
        )


def _check_threat(attack: Spec, threat: Threat) -> None:
    threats = attack.create().threats
    if threat not in threats:
        raise SuiteError(
            f"The attack {attack.name!r} does not run under the threat {threat} (only under "
            f"{', '.join(sorted(threats))}): change its threats in the suite."
        )


def narrowed(
    suite: Suite, defenses: Sequence[str], attacks: Sequence[str], dataset: str | None
) -> Suite:
    """Return a suite with only some defenses (and none), only some attacks, or other data.

    A name that the suite does not hold, such as a plug-in's, joins every group whose leak it can
    work on, with its defaults; an attack joins under all of its threats. The attack "strongest"
    stands for the standard set, and for nothing beside it.

    Raises:
        UserError: A name is unknown, or nothing is left to run.
    """
    if STRONGEST in attacks:
        if len(attacks) > 1:
            raise SuiteError(
                f"The attack {STRONGEST!r} is a whole set: give it alone, or name attacks."
            )
        suite, attacks = strongest(suite), ()
    groups = []
    for group in suite.group:
        kept_defenses = _kept_defenses(group, defenses) if defenses else group.defenses
        kept_attacks = _kept_attacks(group, attacks) if attacks else group.attacks
        asked_for = not defenses or any(item.name in defenses for item in kept_defenses)
        if asked_for and (kept_attacks or not attacks):
            changes = {"defenses": kept_defenses, "attacks": kept_attacks}
            groups.append(group.model_copy(update=changes))
    if not groups:
        raise SuiteError(
            f"Nothing in the suite {suite.name} fits {', '.join([*defenses, *attacks])}: "
            "no group has a leak that they work on."
        )
    return suite.model_copy(update={"group": tuple(groups), "dataset": dataset or suite.dataset})


STRONGEST = "strongest"
"""Stands for the standard set of attacks in `narrowed`."""


class StandardSet(BaseModel):
    """A fixed set of attacks with their budgets, versioned, so that rows of it can be compared.

    Attributes:
        version: Its name in results.
        calls: Calls for each leaked record under `query` and `score`.
        features: Attacks on feature maps; template: on templates; image: on transmitted images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    calls: int = Field(ge=1)
    features: tuple[NamedAttack, ...]
    template: tuple[NamedAttack, ...]
    image: tuple[NamedAttack, ...]

    def against(self, leak: Leak) -> tuple[NamedAttack, ...]:
        """Return the attacks on a leak."""
        return {Leak.FEATURES: self.features, Leak.TEMPLATE: self.template}.get(leak, self.image)


def standard_set() -> StandardSet:
    """Read the standard set of attacks."""
    return StandardSet.model_validate(tomllib.loads(_STANDARD.read_text(encoding="utf-8")))


def strongest(suite: Suite) -> Suite:
    """Return a suite with the standard set in place of its attacks, and budgets that pay for it."""
    standard = standard_set()
    groups: dict[Leak, Group] = {}
    for group in suite.group:
        known = groups[group.leak].defenses if group.leak in groups else ()
        defenses = tuple(dict.fromkeys([*known, *group.defenses]))
        groups[group.leak] = Group(
            leak=group.leak, defenses=defenses, attacks=standard.against(group.leak)
        )
    calls = standard.calls * (suite.split.probes + 1)
    changes = {
        "group": tuple(groups.values()),
        "attack_set": standard.version,
        "query_budget": calls,
        "score_budget": calls,
    }
    return suite.model_copy(update=changes)


def _kept_defenses(group: Group, names: Sequence[str]) -> tuple[Named, ...]:
    kept = [item for item in group.defenses if item.name in {*names, "none"}]
    for name in names:
        works = group.leak in DEFENSES.get(name).leaks
        if works and name not in {item.name for item in kept}:
            kept.append(Named(name=name))
    return tuple(kept)


def _kept_attacks(group: Group, names: Sequence[str]) -> tuple[NamedAttack, ...]:
    kept = [item for item in group.attacks if item.name in names]
    for name in names:
        plugin = ATTACKS.get(name)
        works = group.leak in plugin.leaks
        if works and name not in {item.name for item in kept}:
            kept.append(NamedAttack(name=name, threats=tuple(sorted(plugin.threats))))
    return tuple(kept)
