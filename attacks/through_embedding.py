"""Attacks in two steps: estimate the clean embedding, then invert it with any other attack."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.base import Attack
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat


@dataclass
class ThroughEmbedding(Attack, ABC):
    """Base of attacks that estimate the clean embedding and leave the rest to another attack.

    Args:
        inverter: Name of the attack on clean templates: any that runs under `transfer`.
        inverter_steps: Its steps, if it has such a parameter; all else is at its defaults.
    """

    threats = frozenset({Threat.ADAPTIVE, Threat.INSIDER})

    inverter: str = "gradient"
    inverter_steps: Annotated[int, Field(ge=1)] = 60

    def fit(self, attacker: Attacker) -> None:
        """Fit the estimate on own records, and the inverter on own images without a defense."""
        self._inverter = self._new_inverter()
        embeddings = attacker.recognizer.leaking(Leak.TEMPLATE, attacker.images)
        self.fit_estimate(attacker, functional.normalize(embeddings, dim=1))
        self._inverter.fit(attacker.unaware(Leak.TEMPLATE))

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the inverter's images of the estimated embeddings."""
        with torch.no_grad():
            estimate = functional.normalize(self.estimate(records), dim=1)
        return self._inverter.reconstruct(estimate)

    @abstractmethod
    def fit_estimate(self, attacker: Attacker, embeddings: Tensor) -> None:
        """Learn to estimate the embeddings (N, D), of unit length, of the attacker's images."""

    @abstractmethod
    def estimate(self, records: Tensor) -> Tensor:
        """Return the clean embeddings (N, D) that records (N, ...) are taken to be of."""

    def _new_inverter(self) -> Attack:
        """Return the inverter.

        Raises:
            UserError: There is no such attack.
            ValueError: It does not invert clean templates.
        """
        kind: type[Attack] = ATTACKS.get(self.inverter)
        if Leak.TEMPLATE not in kind.leaks or Threat.TRANSFER not in kind.threats:
            raise ValueError(f"the attack {self.inverter} does not invert templates under transfer")
        parameters: dict[str, Any] = {}
        if "steps" in {item.name for item in dataclasses.fields(kind)}:
            parameters["steps"] = self.inverter_steps
        return kind.create(f"attack {self.inverter!r}", parameters)
