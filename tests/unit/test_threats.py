"""Rights: what a threat grants works, everything else is refused, and budgets are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import Means
from torch import Tensor

from bench.leaks import Leak
from bench.threats import RIGHTS, Attacker, Held, Meter, Right, Threat, ThreatViolation
from defenses.base import Defense

IMAGES = torch.rand(5, 3, 112, 112, generator=torch.Generator().manual_seed(0))
NAMES = np.array(["Ann", "Ann", "Bob", "Bob", "Cid"])


class Shift(Defense):
    """Adds a number."""

    leaks = frozenset(Leak)

    def __init__(self, by: float) -> None:
        self.by = by

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        return x + self.by


RECOGNIZER = Means()


def held(by: float) -> Held:
    return Held(Shift(by), lambda: RECOGNIZER.embed(IMAGES) + by)


def protected(images: Tensor) -> Tensor:
    return RECOGNIZER.embed(images) + 7


def matched(handles: Tensor, images: Tensor) -> Tensor:
    return handles + images.mean((1, 2, 3))


def everything() -> dict[Right, tuple[str, Any]]:
    return {
        Right.RECOGNIZER: ("recognizer", RECOGNIZER),
        Right.FRESH_INSTANCES: ("fresh", [held(1), held(2)]),
        Right.DEPLOYED_INSTANCE: ("deployed", held(3)),
        Right.QUERIES: ("query", Meter(protected, 10, "query")),
        Right.SCORES: ("score", Meter(matched, 10, "score")),
    }


def attacker(threat: Threat, rights: set[Right] | frozenset[Right] | None = None) -> Attacker:
    given = dict(
        value
        for right, value in everything().items()
        if right in (RIGHTS[threat] if rights is None else rights)
    )
    return Attacker(threat, Leak.TEMPLATE, IMAGES, NAMES, seed=3, device="cpu", **given)


USES = {
    Right.RECOGNIZER: lambda a: a.recognizer.embed(IMAGES),
    Right.FRESH_INSTANCES: lambda a: torch.tensor([d.by for d in a.fresh_instances]),
    Right.DEPLOYED_INSTANCE: lambda a: torch.tensor(a.deployed_instance.by),
    Right.QUERIES: lambda a: a.query(IMAGES[:2]),
    Right.SCORES: lambda a: a.score(torch.tensor([0, 3]), IMAGES[:2]),
}
EXPECTED = {
    Right.RECOGNIZER: RECOGNIZER.embed(IMAGES),
    Right.FRESH_INSTANCES: torch.tensor([1, 2]),
    Right.DEPLOYED_INSTANCE: torch.tensor(3),
    Right.QUERIES: protected(IMAGES[:2]),
    Right.SCORES: matched(torch.tensor([0, 3]), IMAGES[:2]),
}

GRANTED = [(threat, right) for threat in Threat for right in Right if right in RIGHTS[threat]]
REFUSED = [(threat, right) for threat in Threat for right in Right if right not in RIGHTS[threat]]


def test_the_rights_are_those_of_the_design() -> None:
    words = {threat: {right.name for right in rights} for threat, rights in RIGHTS.items()}
    assert words == {
        "transfer": {"RECOGNIZER"},
        "adaptive": {"RECOGNIZER", "FRESH_INSTANCES"},
        "insider": {"RECOGNIZER", "FRESH_INSTANCES", "DEPLOYED_INSTANCE"},
        "query": {"QUERIES"},
        "score": {"SCORES"},
    }


@pytest.mark.parametrize(("threat", "right"), GRANTED)
def test_what_is_granted_works(threat: Threat, right: Right) -> None:
    one = attacker(threat)
    assert one.may(right)
    assert torch.equal(USES[right](one), EXPECTED[right])


@pytest.mark.parametrize(("threat", "right"), REFUSED)
def test_what_is_not_granted_is_refused_by_name(threat: Threat, right: Right) -> None:
    one = attacker(threat)
    assert not one.may(right)
    words = right.name.lower().replace("_", " ")
    with pytest.raises(ThreatViolation, match=f"threat {threat} does not grant {words}"):
        USES[right](one)


@pytest.mark.parametrize(("threat", "right"), REFUSED)
def test_an_attacker_is_never_handed_more(threat: Threat, right: Right) -> None:
    with pytest.raises(ThreatViolation, match=f"under {threat} is handed .*the threat grants"):
        attacker(threat, RIGHTS[threat] | {right})


@pytest.mark.parametrize(("threat", "right"), GRANTED)
def test_an_attacker_is_never_handed_less(threat: Threat, right: Right) -> None:
    with pytest.raises(ThreatViolation, match=f"under {threat} is handed .*the threat grants"):
        attacker(threat, RIGHTS[threat] - {right})


def test_handed_nothing_is_said_so() -> None:
    with pytest.raises(ThreatViolation, match="is handed nothing, and the threat grants queries"):
        attacker(Threat.QUERY, set())


@pytest.mark.parametrize("threat", list(Threat))
def test_own_images_come_with_every_threat(threat: Threat) -> None:
    one = attacker(threat)
    assert one.images is IMAGES
    assert one.identities is NAMES
    assert (one.threat, one.leak, one.seed, one.device) == (threat, "template", 3, "cpu")


@pytest.mark.parametrize("threat", [threat for threat in Threat if threat is not Threat.SCORE])
def test_pairs_are_what_the_attacker_believes_the_records_to_be(threat: Threat) -> None:
    shifts = {"transfer": [0], "adaptive": [1, 2], "insider": [3], "query": [7]}[threat]
    pools = attacker(threat).pairs()
    assert all(pool.images is IMAGES for pool in pools)
    for pool, shift in zip(pools, shifts, strict=True):
        assert torch.equal(pool.records, RECOGNIZER.embed(IMAGES) + shift)


def test_scores_give_no_records() -> None:
    one = attacker(Threat.SCORE)
    for refused in (one.pairs, one.clean_pairs, lambda: one.clean(IMAGES)):
        with pytest.raises(ThreatViolation, match="score does not grant recognizer"):
            refused()


def test_queries_give_no_clean_objects() -> None:
    with pytest.raises(ThreatViolation, match="query does not grant recognizer"):
        attacker(Threat.QUERY).clean_pairs()


@pytest.mark.parametrize("leak", list(Leak))
def test_clean_is_the_object_that_leaks(leak: Leak) -> None:
    one = Attacker(
        Threat.TRANSFER, leak, IMAGES, NAMES, seed=0, device="cpu", recognizer=RECOGNIZER
    )
    features = RECOGNIZER.head(IMAGES)
    expected = {"image": IMAGES, "features": features, "template": RECOGNIZER.tail(features)}
    assert torch.equal(one.clean(IMAGES), expected[leak])
    assert torch.equal(one.clean_pairs().records, expected[leak])


# --- budgets ------------------------------------------------------------------------------------


def test_a_meter_spends_one_call_per_row_and_stops_at_the_budget() -> None:
    seen: list[int] = []

    def called(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    meter = Meter(called, 5, "query")
    meter(torch.zeros(2, 9))
    meter(torch.zeros(3, 9))
    assert meter.spent == 5
    with pytest.raises(ThreatViolation, match="budget of 5 query calls does not cover 1 more aft"):
        meter(torch.zeros(1, 9))
    assert seen == [2, 3]


def test_a_refused_call_is_not_charged() -> None:
    meter = Meter(protected, 5, "query")
    with pytest.raises(ThreatViolation, match="does not cover 6 more after 0"):
        meter(torch.zeros(6, 3, 8, 8))
    assert meter.spent == 0
    assert len(meter(IMAGES)) == 5


def test_the_attacker_sees_what_is_spent() -> None:
    one = attacker(Threat.QUERY)
    one.query(IMAGES[:3])
    one.pairs()
    assert one.calls_spent == 8
    with pytest.raises(ThreatViolation, match="budget of 10 query"):
        one.pairs()
    scorer = attacker(Threat.SCORE)
    scorer.score(torch.arange(4), IMAGES[:4])
    assert scorer.calls_spent == 4
    assert attacker(Threat.INSIDER).calls_spent == 0
