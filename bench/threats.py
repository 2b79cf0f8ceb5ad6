"""Threats: what an attacker may see and do, and the object that enforces it.

A threat is a named set of rights. An attack receives an `Attacker`; touching what the threat does
not grant raises `ThreatViolation`. What is not granted is not in the object at all, and the images
of the victims are never reachable from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING, TypeVar

from bench.leaks import Leak

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from bench.recognizers.base import Recognizer
    from defenses.base import Defense

T = TypeVar("T")


class Threat(StrEnum):
    """What the attacker has, beside images of its own people.

    Attributes:
        TRANSFER: The undefended recogniser. It does not know that there is a defense.
        ADAPTIVE: Also the defense's code and parameters, not its secrets: fresh instances.
        INSIDER: Also the defense's secrets: the deployed instance.
        QUERY: A metered budget of calls to the protected encoder, and nothing else.
        SCORE: A metered budget of match scores against the stored records, and nothing else.
    """

    TRANSFER = "transfer"
    ADAPTIVE = "adaptive"
    INSIDER = "insider"
    QUERY = "query"
    SCORE = "score"


class Right(Enum):
    """One thing that a threat grants."""

    RECOGNIZER = auto()
    FRESH_INSTANCES = auto()
    DEPLOYED_INSTANCE = auto()
    QUERIES = auto()
    SCORES = auto()


RIGHTS: dict[Threat, frozenset[Right]] = {
    Threat.TRANSFER: frozenset({Right.RECOGNIZER}),
    Threat.ADAPTIVE: frozenset({Right.RECOGNIZER, Right.FRESH_INSTANCES}),
    Threat.INSIDER: frozenset({Right.RECOGNIZER, Right.FRESH_INSTANCES, Right.DEPLOYED_INSTANCE}),
    Threat.QUERY: frozenset({Right.QUERIES}),
    Threat.SCORE: frozenset({Right.SCORES}),
}

WEAKER: dict[Threat, frozenset[Threat]] = {
    Threat.TRANSFER: frozenset(),
    Threat.ADAPTIVE: frozenset({Threat.TRANSFER}),
    Threat.INSIDER: frozenset({Threat.TRANSFER, Threat.ADAPTIVE}),
    Threat.QUERY: frozenset(),
    Threat.SCORE: frozenset(),
}
"""Whoever has the rights of a threat can also run the attacks of these."""


class ThreatViolation(Exception):  # noqa: N818 - the design's word
    """An attack reached for something that its threat does not grant."""


@dataclass(frozen=True)
class Pairs:
    """Records beside the images they were made from, all of the attacker's own people.

    Attributes:
        records: (N, ...) records.
        images: (N, 3, 112, 112) in [0, 1].
        identities: (N,) whom the images show: training holds out people, not photos.
    """

    records: Tensor
    images: Tensor
    identities: NDArray[np.str_]


@dataclass(frozen=True)
class Held:
    """An instance of the defense in the attacker's hands.

    Attributes:
        defense: The instance.
        make_records: Makes its (N, ...) records of the attacker's images; called when needed.
    """

    defense: Defense
    make_records: Callable[[], Tensor]


class Meter:
    """A budget of calls.

    Args:
        function: What is metered; its result has one row per call spent.
        budget: Calls allowed.
        unit: Word for messages: "query" or "score".
    """

    def __init__(self, function: Callable[..., Tensor], budget: int, unit: str) -> None:
        self._function = function
        self.budget = budget
        self.spent = 0
        self._unit = unit

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Spend one call per row of the arguments.

        Raises:
            ThreatViolation: The budget does not cover the call.
        """
        calls = len(arguments[0])
        if self.spent + calls > self.budget:
            raise ThreatViolation(
                f"The budget of {self.budget} {self._unit} calls does not cover {calls} more "
                f"after {self.spent}."
            )
        self.spent += calls
        return self._function(*arguments)


class Attacker:
    """What one attack may see and do under one threat.

    Args:
        threat: The threat, which fixes the rights.
        leak: The object that leaked.
        images: (N, 3, 112, 112) in [0, 1], the attacker's own images.
        identities: (N,) names of the attacker's own people.
        seed: Seed of the attack.
        device: Torch device to work on.
        recognizer: The undefended recogniser.
        public: Other recognisers that everybody has.
        fresh: Fresh instances of the defense, fitted on the attacker's images, each with its
            records of those images.
        deployed: The deployed instance with its records of the attacker's images.
        query: Meter of images to protected records.
        score: Meter of (handles of stored records, images) to match scores.

    Raises:
        ThreatViolation: More is handed over than the threat grants, or less.
    """

    def __init__(
        self,
        threat: Threat,
        leak: Leak,
        images: Tensor,
        identities: NDArray[np.str_],
        *,
        seed: int,
        device: str,
        recognizer: Recognizer | None = None,
        public: Sequence[Recognizer] = (),
        fresh: Sequence[Held] | None = None,
        deployed: Held | None = None,
        query: Meter | None = None,
        score: Meter | None = None,
    ) -> None:
        self.threat = threat
        self.leak = leak
        self.images = images
        self.identities = identities
        self.seed = seed
        self.device = device
        self.public = tuple(public)
        self._recognizer = recognizer
        self._fresh = fresh
        self._deployed = deployed
        self._query = query
        self._score = score
        handed = {
            Right.RECOGNIZER: recognizer,
            Right.FRESH_INSTANCES: fresh,
            Right.DEPLOYED_INSTANCE: deployed,
            Right.QUERIES: query,
            Right.SCORES: score,
        }
        given = {right for right, value in handed.items() if value is not None}
        if given != RIGHTS[threat]:
            raise ThreatViolation(
                f"An attacker under {threat} is handed {_words(given)}, "
                f"and the threat grants {_words(RIGHTS[threat])}."
            )

    def may(self, right: Right) -> bool:
        """Say whether the threat grants a right."""
        return right in RIGHTS[self.threat]

    @property
    def recognizer(self) -> Recognizer:
        """The undefended recogniser, weights included."""
        return self._granted(self._recognizer, Right.RECOGNIZER)

    @property
    def fresh_instances(self) -> list[Defense]:
        """The defense with secrets of the attacker's own, several times."""
        held = self._granted(self._fresh, Right.FRESH_INSTANCES)
        return [instance.defense for instance in held]

    @property
    def deployed_instance(self) -> Defense:
        """The deployed defense with its secrets."""
        return self._granted(self._deployed, Right.DEPLOYED_INSTANCE).defense

    def clean(self, images: Tensor) -> Tensor:
        """Return the undefended object that leaks: images, features or embeddings of images."""
        return self.recognizer.leaking(self.leak, images)

    def query(self, images: Tensor) -> Tensor:
        """Return protected records of images; one call of the budget per image."""
        return self._granted(self._query, Right.QUERIES)(images)

    def score(self, handles: Tensor, images: Tensor) -> Tensor:
        """Return match scores (N,) of images (N, ...) against stored records by handle (N,)."""
        return self._granted(self._score, Right.SCORES)(handles, images)

    @property
    def calls_spent(self) -> int:
        """Queries or scores spent so far."""
        return sum(meter.spent for meter in (self._query, self._score) if meter is not None)

    def pairs(self) -> list[Pairs]:
        """Return (records, images) as the attacker believes the leaked records to be made.

        Clean objects under `transfer`; those of every fresh instance under `adaptive`; those of the
        deployed instance under `insider`; queried records under `query`.

        Raises:
            ThreatViolation: The threat grants no records (`score`), or the budget is too small.
        """
        if self._deployed is not None:
            return [self._paired(self._deployed.make_records())]
        if self._fresh is not None:
            return [self._paired(instance.make_records()) for instance in self._fresh]
        if self._query is not None:
            return [self._paired(self.query(self.images))]
        return [self.clean_pairs()]

    def clean_pairs(self) -> Pairs:
        """Return the undefended objects beside the attacker's images."""
        return self._paired(self.clean(self.images))

    def unaware(self, leak: Leak) -> Attacker:
        """Return the same attacker as it would be under `transfer`, facing what leaks undefended.

        Raises:
            ThreatViolation: The threat does not grant the recogniser.
        """
        return Attacker(
            Threat.TRANSFER,
            leak,
            self.images,
            self.identities,
            seed=self.seed,
            device=self.device,
            recognizer=self.recognizer,
            public=self.public,
        )

    def _paired(self, records: Tensor) -> Pairs:
        return Pairs(records, self.images, self.identities)

    def _granted(self, value: T | None, right: Right) -> T:
        if value is None:
            raise ThreatViolation(f"The threat {self.threat} does not grant {_words({right})}.")
        return value


def _words(rights: Iterable[Right]) -> str:
    return ", ".join(sorted(right.name.lower().replace("_", " ") for right in rights)) or "nothing"
