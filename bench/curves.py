"""Learning curves: what training looked like, kept with the results of the cell that trained."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

MORE_BUDGET_HELPS = "more-budget-helps"
"""Flag of a row whose attack was still getting better when its training ended."""


class Curve(BaseModel):
    """How one network learned, at evenly spaced steps.

    Attributes:
        network: Its class.
        steps: Steps done at each evaluation.
        training: Mean training loss since the evaluation before.
        held_out: Mean loss on people that were not trained on, each person counting alike; empty
            where there are too few people to hold any out.
        best: Step whose weights were kept.
        more_budget_helps: Whether the held-out loss was best at the end, and fell over the last
            quarter of the steps by more than its noise; None where nobody was held out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    steps: list[int]
    training: list[float]
    held_out: list[float]
    best: int
    more_budget_helps: bool | None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        held_out = len(self.held_out) or len(self.steps)
        if not len(self.steps) == len(self.training) == held_out:
            raise ValueError("steps and losses differ in number")
        return self
