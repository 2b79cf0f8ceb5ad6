"""The work of a suite as jobs, which fill the store in any order and in any process."""

from __future__ import annotations

import signal
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from bench.cell import GUESSED, Cells
from bench.errors import UserError
from bench.leaks import Leak
from bench.plan import Cell, Spec, Suite, best_of, cells, protected
from bench.profile import profile
from bench.registry import REFERENCES
from bench.scoring import protection, utility
from bench.store import Store, StoreError
from bench.threats import Threat
from bench.world import Progress, World


@dataclass(frozen=True)
class Reference:
    """A floor or ceiling, by name. The first of a seed also makes what all cells share.

    Attributes:
        seed: Seed of the split.
        name: Its name.
        draw: Which of several draws: a worst case over many attacks needs as many guesses.
    """

    seed: int
    name: str
    draw: int = 0

    def __str__(self) -> str:
        return f"{self.name}/draw {self.draw}/seed {self.seed}"


@dataclass(frozen=True)
class Utility:
    """What a defense costs in recognition."""

    seed: int
    leak: Leak
    defense: Spec

    def __str__(self) -> str:
        return f"{self.leak}/{self.defense.name}/utility/seed {self.seed}"


Step = Reference | Utility | Cell


@dataclass(frozen=True)
class Job:
    """Steps that one process takes in turn, because they share what is not stored.

    Attributes:
        steps: All of one seed.
    """

    steps: tuple[Step, ...]

    @property
    def defenses(self) -> frozenset[Spec]:
        """The defenses that the steps need."""
        return frozenset(step.defense for step in self.steps if not isinstance(step, Reference))


Failures = dict[Step, str]
"""Why steps have no result."""


def scene_jobs(suite: Suite) -> list[Job]:
    """Return the jobs that come before all others: what every cell of a seed needs."""
    names = REFERENCES.names()
    guesses = range(1, max(best_of(cells(suite)), default=1))
    return [
        Job(
            (
                *(Reference(seed, name) for name in names),
                *(Reference(seed, GUESSED, draw) for draw in guesses),
            )
        )
        for seed in suite.seeds
    ]


def cell_jobs(suite: Suite) -> list[Job]:
    """Return the jobs for all cells and the utility of their defenses.

    Cells that attack with the same trained attacker are one job. Under `transfer` these are the
    cells of an attack on all defenses: the attacker knows none of them.
    """
    together: dict[object, list[Cell]] = defaultdict(list)
    for cell in cells(suite):
        known = None if cell.threat is Threat.TRANSFER else cell.defense
        together[cell.seed, cell.leak, cell.attack, cell.threat, known].append(cell)
    jobs = [Job(tuple(group)) for group in together.values()]
    jobs += [Job((Utility(seed, *item),)) for seed in suite.seeds for item in protected(suite)]
    return sorted(jobs, key=lambda job: suite.seeds.index(job.steps[0].seed))


def choose_device(wanted: str) -> str:
    """Return the torch device for "auto" (CUDA where there is one) or a device's name.

    Raises:
        UserError: The device is unknown or absent.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted).numpy(force=True)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"The device {wanted!r} cannot be used ({str(error).splitlines()[0]}): "
            "give --device cpu, cuda or auto."
        ) from error
    return wanted


class TimeLimitReached(BaseException):
    """A step took too long. Not an `Exception`, so that a plug-in does not catch it unawares."""


class Workbench:
    """What one process needs to do jobs.

    Args:
        suite: The suite.
        store: Where the results go.
        device: "auto", or a torch device.
        data_root: Folder of a dataset that is not shipped.
        time_limit: Seconds that a cell may take; None for any.

    Attributes:
        device: The torch device.
        progress: Told in a few words what is being made.
    """

    def __init__(
        self,
        suite: Suite,
        store: Store,
        device: str,
        data_root: Path | None,
        *,
        time_limit: float | None = None,
    ) -> None:
        self._suite = suite
        self._store = store
        self.device = choose_device(device)
        self._data_root = data_root
        self._time_limit = time_limit
        self.progress: Progress = lambda _: None
        self._cells: Cells | None = None

    def _say(self, text: str) -> None:
        self.progress(text)

    def cells(self, seed: int) -> Cells:
        """Return the cells of a seed; those of another seed are let go."""
        if self._cells is None or self._cells.world.seed != seed:
            self._cells = None
            world = World(self._suite, seed, self._store, self.device, self._data_root, self._say)
            self._cells = Cells(world)
        return self._cells

    def do(self, job: Job) -> Failures:
        """Take the steps of a job, so that their results are in the store.

        Raises:
            UserError: Something is wrong that would stop every step alike.
        """
        failures = {}
        for step in job.steps:
            with profile.span("read photos and networks"):
                runner = self.cells(step.seed)
            self.progress(str(step))
            try:
                limit = None if isinstance(step, Reference) else self._time_limit
                with time_limit(limit), profile.span("the rest of each cell"):
                    take(runner, step)
            except StoreError as error:
                failures[step] = str(error)
            except UserError:
                raise
            except (Exception, TimeLimitReached) as error:
                failures[step] = failure(error)
        return failures

    @property
    def refusal(self) -> StoreError | None:
        """Why the store could not be written, if it could not."""
        return self._store.refusal


def failure(error: BaseException) -> str:
    """Return an error as the reason in a row."""
    return f"{type(error).__name__}: {error}"


def take(runner: Cells, step: Step) -> None:
    """Take one step."""
    match step:
        case Reference():
            runner.reference(step.name, step.draw)
        case Utility():
            utility(runner.world, step.defense, step.leak)
            protection(runner.world, step.defense, step.leak)
        case Cell():
            runner.values(step)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `TimeLimitReached` inside the block after some seconds.

    Python code is interrupted, a call into a library when it returns. Only the main thread of a
    process can be.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeLimitReached(f"it took longer than the limit of {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Again every second, should the code in the block have caught the first.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def retried(job: Job, tried: set[Job], reason: str) -> tuple[list[Job], Failures]:
    """Return what to do about a job whose process died: jobs to try, or why there is no result.

    A job of several steps is taken apart, so that the culprit is found; a single step is tried
    once more.

    Args:
        job: The job.
        tried: Jobs that were lost before; this one is added.
        reason: How the process died.
    """
    if len(job.steps) > 1:
        return [Job((step,)) for step in job.steps], {}
    if job in tried:
        return [], {job.steps[0]: reason}
    tried.add(job)
    return [job], {}
