"""What was found, in sentences made from the rows by rule.

Two values differ where their 95 % intervals do not overlap; anything else is not claimed. The
verdict on a defense is about its worst case under the adaptive threat where that was run.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from bench.curves import MORE_BUDGET_HELPS
from bench.threats import Threat
from reports.numbers import interval, number, show
from reports.run import CEILING, FLOORS, GUESSES, WORST_CASE, Line, Protection, Run, floors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.results import Row


class Verdict(StrEnum):
    """What a defense does to identification."""

    BROKEN = "identification is not measurably reduced"
    REDUCED = "identification is reduced, to above the floor"
    FLOOR = "identification is at the floor"
    WEAK = "no verdict, since these attacks stay at the floor without a defense, too"
    UNCLEAR = "no verdict, since the interval reaches both the floor and the undefended rate"
    UNTESTED = "no verdict, since an attack, a floor or the undefended rate is missing"


_HEADS = {Verdict.BROKEN: "Broken", Verdict.REDUCED: "Weakened", Verdict.FLOOR: "Holds"}
"""How a verdict is called at the head of a sentence; the others are open."""


@dataclass(frozen=True)
class Finding:
    """What was found about one defense.

    Attributes:
        title: Leaked object and defense.
        sentences: The findings.
    """

    title: str
    sentences: tuple[str, ...]


def findings(run: Run) -> list[Finding]:
    """Return what was found about everything that was attacked, the undefended included."""
    return [
        Finding(
            run.title(protection),
            tuple(_sentences(run, protection)),
        )
        for protection in run.protections
        if run.threats(protection)
    ]


def summary(run: Run) -> list[str]:
    """Return the defenses by verdict, the worst verdict first, and what only transfer suggested."""
    judged: dict[tuple[Verdict, Threat | None], list[str]] = defaultdict(list)
    for item in run.protections if run.attacked else ():
        if not item.undefended:
            key = verdict(run, item), verdict_threat(run, item)
            by = f", by {_breaker(run, item)}" if key[0] is Verdict.BROKEN else ""
            judged[key].append(f"{run.defense_name(item)} ({item.leak}{by})")
    order = list(Verdict)
    gains = [(item, _adaptive_gain(run, item)) for item in run.protections]
    verdicts = [
        f"{_HEADS.get(kind, 'Open')} under {threat}, {kind}: {', '.join(names)}."
        if threat
        else f"Not attacked: {', '.join(names)}."
        for (kind, threat), names in sorted(judged.items(), key=lambda x: order.index(x[0][0]))
    ]
    undone = [f"{run.title(item)}: {gain.sentence}" for item, gain in gains if gain and gain.undone]
    return [*verdicts, *undone]


def scale(run: Run) -> list[str]:
    """Return what floors and ceilings score: the meaning of the other numbers."""
    sentences = []
    for line in run.references if run.attacked else ():
        seed = f" (seed {line.seed})" if run.several_seeds else ""
        kind = "Floor" if line.attack in {*FLOORS, GUESSES} else "For scale"
        sentences.append(f"{kind}, {run.attack_name(line)}{seed}: {_result(run, line)}.")
    return sentences


def untested(run: Run) -> list[str]:
    """Return a sentence per failed line, and per comparison that the run gives no ground for."""
    failed = [f"{_where(run, line)} failed: {line.failure}" for line in run.lines if line.failure]
    return [*failed, *_gaps(run)]


def _gaps(run: Run) -> Iterable[str]:
    if run.attacked and all(run.is_target(judge) for judge in run.judges):
        yield "No judge is independent of the recogniser under attack."
    for item in run.protections:
        if item.undefended or not run.threats(item):
            continue
        if Threat.ADAPTIVE not in run.threats(item):
            yield f"{run.title(item)}: no attack that knows the defense was run (adaptive)."
        if run.undefended(item) is None:
            yield (
                f"{run.title(item)}: no attack was run without a defense; the original photo "
                "stands in for the undefended rate."
            )


def verdict_threat(run: Run, protection: Protection) -> Threat | None:
    """Return the threat that the verdict is about: adaptive, or the last one that was run."""
    threats = run.threats(protection)
    return Threat.ADAPTIVE if Threat.ADAPTIVE in threats else next(reversed(threats), None)


def verdict(run: Run, protection: Protection) -> Verdict:
    """Return what a defense does to identification in the worst case."""
    worst = _rank(run, _worst(run, protection))
    bare = _rank(run, _bare(run, protection))
    floor = _floor(run, protection, verdict_threat(run, protection), "rank-1", run.judge)
    if worst is None or bare is None or floor is None:
        return Verdict.UNTESTED
    at_floor, at_bare = _overlap(worst, floor), _overlap(worst, bare)
    if at_floor and _overlap(bare, floor):
        return Verdict.WEAK
    if at_floor and at_bare:
        return Verdict.UNCLEAR
    if at_bare:
        return Verdict.BROKEN
    return Verdict.FLOOR if at_floor else Verdict.REDUCED


def _sentences(run: Run, protection: Protection) -> Iterable[str]:
    for threat in run.threats(protection):
        yield _best_attack(run, protection, threat)
    if gain := _adaptive_gain(run, protection):
        yield gain.sentence
    if not protection.undefended:
        about = verdict_threat(run, protection)
        yield f"Worst case under {about}: {verdict(run, protection)}{_grounds(run, protection)}."


def _grounds(run: Run, protection: Protection) -> str:
    """Return the three rates that a verdict compares."""
    rates = (
        ("", _rank(run, _worst(run, protection))),
        (" without a defense", _rank(run, _bare(run, protection))),
        (
            " at the floor",
            _floor(run, protection, verdict_threat(run, protection), "rank-1", run.judge),
        ),
    )
    known = [f"{show(row)}{where}" for where, row in rates if row is not None]
    return f" ({', '.join(known)})" if known else ""


def _breaker(run: Run, protection: Protection) -> str:
    """Return the strongest attack behind a verdict: whoever adapts can also attack unadapted."""
    rights = {verdict_threat(run, protection), Threat.TRANSFER}
    known = [line for line in run.attacks(protection) if line.threat in rights]
    return run.attack_name(known[0]) if known else WORST_CASE


def _best_attack(run: Run, protection: Protection, threat: Threat) -> str:
    finished = [x for x in run.attacks(protection, threat) if not x.failure]
    if not finished:
        return f"Under {threat}, no attack finished."
    best = finished[0]
    level = [x for x in finished if x.value("rank-1", run.judge) == best.value("rank-1", run.judge)]
    names = " and ".join(run.attack_name(line) for line in level)
    noun = "attack is" if len(level) == 1 else "attacks are, level,"
    sentence = f"Under {threat}, the strongest {noun} {names}: {_result(run, best)}."
    if any(MORE_BUDGET_HELPS in row.flags.split() for line in level for row in line.rows):
        sentence += " It was still learning when its training ended."
    closest = max(finished, key=lambda line: line.value("ssim"))
    if closest.value("ssim") > best.value("ssim"):
        ssim = _phrase(closest.row("ssim"))
        sentence += f" Closest in pixels is {run.attack_name(closest)}, SSIM {ssim}."
    return sentence


def _result(run: Run, line: Line) -> str:
    row = _rank(run, line)
    found = "no judge scored it" if row is None else f"{row.judge} finds the person first in "
    rate = "" if row is None else f"{show(row)} of {row.n} reconstructions"
    return f"{found}{rate}, SSIM {_phrase(line.row('ssim'))}"


class _Gain(NamedTuple):
    """What knowing the defense is worth to an attacker: does it undo what transfer suggested?"""

    sentence: str
    undone: bool


def _adaptive_gain(run: Run, protection: Protection) -> _Gain | None:
    """Compare adaptive with transfer; None where not both were run.

    Transfer suggests protection where its worst case is nearer to the floor than to the undefended
    rate; adaptive undoes that where its own is nearer to the undefended rate.
    """
    before, after = (run.worst(protection, x) for x in (Threat.TRANSFER, Threat.ADAPTIVE))
    if before is None or after is None:
        return None
    bare = _bare(run, protection)
    rises, undone = [], False
    for label, metric, judge in (("rank-1", "rank-1", run.judge), ("SSIM", "ssim", None)):
        low, high = before.row(metric, judge), after.row(metric, judge)
        if low is None or high is None or number(high) <= number(low) or _overlap(low, high):
            continue
        rises.append(f"worst-case {label} rises from {_phrase(low)} to {_phrase(high)}")
        floor = _floor(run, protection, Threat.ADAPTIVE, metric, judge)
        if bare and floor:
            middle = (bare.value(metric, judge) + number(floor)) / 2
            undone |= number(low) < middle <= number(high)
    if not rises:
        return _Gain("Adaptive adds nothing measurable to transfer.", undone=False)
    verb = "undoes what transfer suggested" if undone else "gains on transfer"
    return _Gain(f"Adaptive {verb}: {', '.join(rises)}.", undone)


def _worst(run: Run, protection: Protection) -> Line | None:
    """Return the worst case under the threat that the verdict is about."""
    threat = verdict_threat(run, protection)
    return run.worst(protection, threat) if threat else None


def _bare(run: Run, protection: Protection) -> Line | None:
    """Return the worst case without a defense, or the original where that was not run."""
    undefended = run.undefended(protection)
    line = _worst(run, undefended) if undefended else None
    originals = (x for x in run.references if (x.attack, x.seed) == (CEILING, protection.seed))
    return line or next(originals, None)


def _floor(
    run: Run, protection: Protection, threat: Threat | None, metric: str, judge: str | None
) -> Row | None:
    """Return what chance scores in the place of a worst case: the highest floor."""
    found = (line.row(metric, judge) for line in floors(run.lines, protection, threat))
    return max((row for row in found if row), key=number, default=None)


def _rank(run: Run, line: Line | None) -> Row | None:
    return None if line is None else line.row("rank-1", run.judge)


def _overlap(a: Row, b: Row) -> bool:
    (low_a, high_a), (low_b, high_b) = interval(a), interval(b)
    return low_a <= high_b and low_b <= high_a


def _phrase(row: Row | None) -> str:
    return "unknown" if row is None else str(show(row))


def _where(run: Run, line: Line) -> str:
    protection = line.protection
    object_ = [] if protection is None else [protection.leak, run.defense_name(protection)]
    attack = [run.attack_name(line), str(line.threat)] if line.attack else ["utility"]
    return " / ".join([*object_, *attack])
