"""What every attack offers: images reconstructed from leaked records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bench.plugin import Plugin

if TYPE_CHECKING:
    from torch import Tensor

    from bench.leaks import Leak
    from bench.threats import Attacker, Threat


@dataclass
class Attack(Plugin, ABC):
    """Turns records into images.

    An attack is a dataclass: its fields are its parameters. `fit` keeps what it learns in
    attributes. The harness checks, quantises and scores what `reconstruct` returns.

    Attributes:
        leaks: The objects it can read.
        threats: The threats it makes sense under.
    """

    leaks: ClassVar[frozenset[Leak]]
    threats: ClassVar[frozenset[Threat]]

    @property
    def enrolments(self) -> int:
        """How many records of each probe it reads: the same photo, enrolled anew. Default: one."""
        return 1

    def fit(self, attacker: Attacker) -> None:
        """Learn from what the attacker may see. Default: nothing to learn."""

    @abstractmethod
    def reconstruct(self, records: Tensor) -> Tensor:
        """Turn leaked records into images.

        Args:
            records: (N, ...) records on the attacker's device; (N, `enrolments`, ...) where an
                attack reads several of each probe; under `score`, (N,) handles of the stored
                records instead.

        Returns:
            (N, 3, 112, 112) images in [0, 1].
        """


@dataclass(frozen=True)
class Victims:
    """What a reference row may see, and no attack ever does.

    Attributes:
        originals: (N, 3, 112, 112) probes in [0, 1].
        mates: (N, 3, 112, 112) another photo of the same person for each probe.
    """

    originals: Tensor
    mates: Tensor


@dataclass
class Reference(Plugin, ABC):
    """A floor or ceiling that gives numbers their meaning. It is shown the victims.

    Attributes:
        shows_mates: Whether it shows the mates themselves, which then leave the gallery.
    """

    shows_mates: ClassVar[bool] = False

    @abstractmethod
    def images(self, victims: Victims, attacker_images: Tensor, seed: int) -> Tensor:
        """Return (N, 3, 112, 112) images in [0, 1], one per probe."""
