"""Training: the one loop in which the networks of attackers and defenders learn.

`fit` minimises any loss that draws its own batches. `train` is `fit` for a network from records to
images, or to whatever stands in their place. Both leave a learning curve; `recorded` gathers those
of a block, which is how the harness gets them from an attack.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bench.curves import Curve
from bench.networks import half_precision
from bench.store import atomic_path
from bench.threats import Pairs

Network = TypeVar("Network", bound=nn.Module)

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps (made, wanted) to one number."""

Optimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
"""Makes an optimiser of parameters and the largest learning rate."""

Schedule = Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]
"""Makes the schedule of an optimiser's rate over a number of steps."""

EVALUATIONS = 12
"""Evaluations of a training run, evenly spaced."""

PATIENCE = EVALUATIONS // 2
"""Evaluations in a row without a new best after which training stops. Under a one-cycle rate the
loss may stand still in the middle, where the rate is highest, and fall again."""

FEWEST_PEOPLE = 40
"""With fewer people none is held out: a tenth of them would say nothing, and is missed."""

SHARE_HELD_OUT, MOST_HELD_OUT = 10, 64
"""Every tenth person is held out, up to 64 of them."""

SAVE_SECONDS = 60.0
"""Time between checkpoints."""

_recorders: ContextVar[tuple[list[Curve], ...]] = ContextVar("recorders", default=())


@contextmanager
def recorded() -> Iterator[list[Curve]]:
    """Gather the learning curves of everything that is trained inside a block."""
    curves: list[Curve] = []
    token = _recorders.set((*_recorders.get(), curves))
    try:
        yield curves
    finally:
        _recorders.reset(token)


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the one-cycle schedule (Smith, 2018) up to the optimiser's rate and down again."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)


def fit(
    network: nn.Module,
    batch_loss: Callable[[], Tensor],
    *,
    steps: int,
    rate: float,
    optimizer: Optimizer = torch.optim.Adam,
    schedule: Schedule = one_cycle,
    held_out: Callable[[], Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Curve:
    """Minimise a loss over batches; leave the best weights in the network.

    Modes, precision and device are the caller's. With equal seeds of torch's global generators the
    result is equal to the bit, also when training was interrupted and goes on from a checkpoint.

    Args:
        network: What learns: all parameters that require gradients.
        batch_loss: Draws a batch with torch's global generators and returns its loss, a scalar.
        steps: Optimiser steps.
        rate: Largest learning rate.
        optimizer: Makes the optimiser: `torch.optim.AdamW`, or a `partial` of it.
        schedule: Makes the schedule of its rate.
        held_out: Returns losses (P,), one per person that is not trained on. It draws nothing. The
            weights at which their mean is least are kept, and training stops once it has not been
            lower for half of all evaluations. If left out, the last weights are kept.
        checkpoint: File to continue from, written every minute; deleted at the end. Only for work
            that is repeated with the same arguments.
        progress: Told how far it is, at every evaluation.
    """
    run = _Run(network, steps, optimizer, rate, schedule)
    if checkpoint is not None and checkpoint.is_file():
        run.restore(checkpoint)
    marks = {round(steps * part / EVALUATIONS) for part in range(1, EVALUATIONS + 1)}
    saved = time.monotonic()
    while run.step < steps and not run.stuck:
        run.advance(batch_loss())
        if run.step in marks:
            run.evaluate(held_out)
            progress(f"step {run.step} of {steps}")
        if checkpoint is not None and time.monotonic() - saved > SAVE_SECONDS:
            run.save(checkpoint)
            saved = time.monotonic()
    curve = run.finish()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    for curves in _recorders.get():
        curves.append(curve)
    return curve


class _Run:
    """The state of one training run: all that a checkpoint holds."""

    def __init__(
        self, network: nn.Module, steps: int, make: Optimizer, rate: float, schedule: Schedule
    ) -> None:
        self._network = network
        learning = [weight for weight in network.parameters() if weight.requires_grad]
        self._optimizer = make(learning, rate)
        self._schedule = schedule(self._optimizer, steps)
        self.step = 0
        self._sum, self._count = torch.zeros(()), 0
        self._marks: list[int] = []
        self._training: list[float] = []
        self._people: list[Tensor] = []
        self._best: dict[str, Tensor] = {}

    def advance(self, loss: Tensor) -> None:
        """Take one step down the loss of a batch."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        self.step += 1
        self._sum = self._sum.to(loss.device) + loss.detach().float()
        self._count += 1

    def evaluate(self, held_out: Callable[[], Tensor] | None) -> None:
        """Add a point to the curve, and keep the weights if they are the best so far."""
        self._marks.append(self.step)
        self._training.append(float(self._sum) / self._count)
        self._sum, self._count = torch.zeros(()), 0
        if held_out is not None:
            with torch.no_grad():
                self._people.append(held_out().double().cpu())
            if self._best_place == len(self._marks) - 1:
                self._best = copy.deepcopy(self._network.state_dict())

    @property
    def _held_out(self) -> list[float]:
        return [float(people.mean()) for people in self._people]

    @property
    def _best_place(self) -> int:
        """Number of the best evaluation; the last one where nobody is held out."""
        losses = self._held_out
        return losses.index(min(losses)) if losses else len(self._marks) - 1

    @property
    def stuck(self) -> bool:
        """Whether there was no new best for too long."""
        return len(self._marks) - 1 - self._best_place >= PATIENCE

    def finish(self) -> Curve:
        """Put the best weights into the network, and return its curve."""
        if self._best:
            self._network.load_state_dict(self._best)
        return Curve(
            network=type(self._network).__name__,
            steps=self._marks,
            training=self._training,
            held_out=self._held_out,
            best=self._marks[self._best_place],
            more_budget_helps=self._still_falling() if self._people else None,
        )

    def _still_falling(self) -> bool:
        """Say whether the last quarter still brought more than twice its standard error."""
        before = len(self._people) - 1 - EVALUATIONS // 4
        if before < 0 or self._best_place != len(self._marks) - 1:
            return False
        fall = self._people[before] - self._people[-1]
        return bool(fall.mean() > 2 * fall.std() / len(fall) ** 0.5)

    def save(self, target: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        with atomic_path(target) as path:
            torch.save(self._state(), path)

    def restore(self, source: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(source, weights_only=True)
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.step, self._count = state["step"], state["count"]
        self._sum, self._best = state["sum"], state["best"]
        self._marks, self._training = state["marks"], state["training"]
        self._people = state["people"]
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_cuda"])

    def _state(self) -> dict[str, Any]:
        return {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "step": self.step,
            "count": self._count,
            "sum": self._sum,
            "best": self._best,
            "marks": self._marks,
            "training": self._training,
            "people": self._people,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }


def train(
    network: Network,
    pools: Sequence[Pairs],
    *,
    steps: int,
    rate: float,
    loss: Loss = functional.l1_loss,
    batch: int = 32,
    device: str = "cpu",
) -> Network:
    """Train a network from records to images: Adam, one-cycle rate, half precision where native.

    Batches are drawn from all pools alike, by torch's global generator, which the harness seeds.
    Where there are people enough, some are held out of all pools, and choose the weights.

    Args:
        network: Maps records (N, ...) to images (N, 3, 112, 112).
        pools: Training pairs; several instances of a defense make several pools.
        steps: Optimiser steps.
        rate: Largest learning rate.
        loss: Function of (images made, images wanted).
        batch: Pairs per step.
        device: Torch device.

    Returns:
        The network, in evaluation mode, its weights frozen.
    """
    network = network.to(device).train()
    absent = held_out_people(pools)
    learnt = [torch.from_numpy(np.flatnonzero(~np.isin(p.identities, absent))) for p in pools]
    kept_back = [
        (place, torch.from_numpy(np.flatnonzero(pools[place].identities == person)[:1]))
        for place, person in zip(cycle(range(len(pools))), absent, strict=False)
    ]

    def value(pool: Pairs, rows: Tensor) -> Tensor:
        records = pool.records[rows].to(device)
        with half_precision(device):
            made = network(records)
        return loss(made, pool.images[rows.to(pool.images.device)].to(device))

    def batch_loss() -> Tensor:
        place = int(torch.randint(len(pools), ()))
        rows = learnt[place]
        return value(pools[place], rows[torch.randint(len(rows), (batch,))])

    def held_out() -> Tensor:
        """Return the loss on one record of each person, of each pool in turn."""
        network.eval()
        losses = [value(pools[place], row) for place, row in kept_back]
        network.train()
        return torch.stack(losses)

    fit(network, batch_loss, steps=steps, rate=rate, held_out=held_out if len(absent) else None)
    return network.eval().requires_grad_(False)


def held_out_people(pools: Sequence[Pairs]) -> NDArray[np.str_]:
    """Return the people to hold out: every tenth of those in all pools, or nobody."""
    people = reduce(np.intersect1d, [np.unique(pool.identities) for pool in pools])
    if len(people) < FEWEST_PEOPLE:
        return people[:0]
    return people[::SHARE_HELD_OUT][:MOST_HELD_OUT]
