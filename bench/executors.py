"""Where jobs are done: in this process, in one process per device, or on a Ray cluster.

All three do the same jobs with the same code and leave them in the same store, from which the
results are then read: they cannot differ but in time.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.jobs import Failures, Job, Workbench, retried
from bench.plan import Suite
from bench.profile import Span, profile
from bench.registry import load_plugin
from bench.store import Store, StoreError, open_store
from bench.world import Progress

ALLOWANCE = 120.0
"""Seconds beyond the time limit in which a worker must start and read what its job needs."""

GRACE = 10.0
"""Seconds beyond the time limit after which a step that cannot be interrupted is killed."""

RAY_RETRIES = 2
"""Times that Ray repeats a task whose worker or machine was lost."""


@dataclass(frozen=True)
class Settings:
    """What a worker makes its workbench from: plain values, so that they travel.

    Attributes:
        suite: The suite as JSON.
        store: The store, as `open_store` takes it; the same for all workers.
        device: Torch device of a worker.
        data_root: Folder of a dataset that is not shipped.
        plugins: Files of plug-ins.
        time_limit: Seconds that a step may take; None for any.
    """

    suite: str
    store: str
    device: str
    data_root: Path | None = None
    plugins: tuple[Path, ...] = ()
    time_limit: float | None = None

    def workbench(self, store: Store | None = None) -> Workbench:
        """Return a workbench, on a store of its own unless one is given."""
        return Workbench(
            Suite.model_validate_json(self.suite),
            store or open_store(self.store),
            self.device,
            self.data_root,
            time_limit=self.time_limit,
        )


@dataclass(frozen=True)
class Done:
    """A job that will not be tried again.

    Attributes:
        job: The job.
        failures: Why steps of it have no result.
        refusal: Why the store could not be written, if it could not.
        seconds: Time by span, of a process other than this one.
    """

    job: Job
    failures: Failures
    refusal: StoreError | None = None
    seconds: dict[Span, float] = field(default_factory=dict)


class Executor(ABC):
    """Does jobs; a context manager that lets go of its workers."""

    processes: int = 1

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Do jobs in any order, and yield them as they end.

        Raises:
            UserError: Something is wrong that would stop every job alike.
        """

    def __enter__(self) -> Executor:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Let go of the workers."""


class SerialExecutor(Executor):
    """Does one job after the other in this process.

    Args:
        bench: The workbench.
    """

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Do jobs in order."""
        for job in jobs:
            yield Done(job, self._bench.do(job), self._bench.refusal)

    def __exit__(self, *_: object) -> None:
        """There are none."""


# --- one process per device or group of cores ---------------------------------------------------


def slots(device: str, workers: int | None) -> list[dict[str, str]]:
    """Return the environment of each worker: its GPU, or its share of the cores.

    Args:
        device: Torch device; with "cuda" there is one worker for each visible GPU.
        workers: How many; None for one per GPU, or on a CPU one per core.
    """
    cores = len(os.sched_getaffinity(0))
    visible = _visible_gpus() if device == "cuda" else []
    count = workers or len(visible) or cores
    threads = {"OMP_NUM_THREADS": str(max(1, cores // count)), "OMP_WAIT_POLICY": "passive"}
    if not visible:
        return [threads] * count
    return [{**threads, "CUDA_VISIBLE_DEVICES": visible[n % len(visible)]} for n in range(count)]


def _visible_gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]


class ProcessExecutor(Executor):
    """Does jobs in processes of its own, which may die without harm to the others.

    Args:
        settings: What the workers need.
        environments: Environment variables of each worker.
        say: Told in a few words what a worker is making.
    """

    def __init__(
        self, settings: Settings, environments: Sequence[dict[str, str]], say: Progress
    ) -> None:
        self._settings = settings
        self._say = say
        self._workers = [_Worker(settings, environment) for environment in environments]
        self.processes = len(self._workers)

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Give each worker a job whenever it has none."""
        waiting, tried = deque(jobs), set[Job]()
        while waiting or any(worker.job for worker in self._workers):
            for worker in self._workers:
                if worker.job is None and waiting:
                    worker.give(_fitting(waiting, worker.fitted))
                    worker.wait_for(self._limit(worker.job), ALLOWANCE)
            for worker in self._listen():
                job, message = worker.job, worker.message()
                if isinstance(message, str) or job is None:
                    worker.wait_for(self._limit(job), GRACE)
                    self._say(str(message))
                    continue
                worker.job = None
                match message:
                    case UserError():
                        raise message
                    case Done():
                        yield message
                    case None:
                        if worker.overdue:
                            tried.add(job)
                        again, failures = retried(job, tried, worker.restart())
                        waiting.extend(again)
                        if not again:
                            yield Done(job, failures)

    def _limit(self, job: Job | None) -> float | None:
        """Return the seconds that a step of a job may take: what all cells share has no limit."""
        return self._settings.time_limit if job and job.defenses else None

    def _listen(self) -> list[_Worker]:
        """Return the workers that have something to say, after killing those that hang."""
        busy = {worker.connection: worker for worker in self._workers if worker.job}
        ready = wait(list(busy), timeout=1.0)
        for worker in busy.values():
            if worker.overdue:
                worker.process.kill()
        return [busy[connection] for connection in ready]  # type: ignore[index]

    def __exit__(self, *_: object) -> None:
        """Kill the workers: what they have finished is stored."""
        for worker in self._workers:
            worker.stop()


def _fitting(waiting: deque[Job], fitted: set[object]) -> Job:
    """Take a job from those that wait: one whose defenses a worker has fitted, or the first."""
    job = next((job for job in waiting if job.defenses <= fitted), waiting[0])
    waiting.remove(job)
    return job


class _Worker:
    """A process that does jobs, seen from outside."""

    _context = multiprocessing.get_context("spawn")

    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        self._settings = settings
        self._environment = environment
        self.job: Job | None = None
        self._start()

    def _start(self) -> None:
        self.fitted: set[object] = set()
        self.connection, theirs = self._context.Pipe()
        self.process = self._context.Process(target=_serve, args=(theirs, self._settings))
        with _environment(self._environment):
            self.process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        self.job = job
        self.fitted |= job.defenses
        # One that died while it had nothing to do is noticed when its answer is awaited.
        with suppress(ConnectionError):
            self.connection.send(job)

    def wait_for(self, time_limit: float | None, more: float) -> None:
        """Say how long the process may be silent from now on."""
        self.deadline = time.monotonic() + (time_limit or float("inf")) + more

    @property
    def overdue(self) -> bool:
        """Whether the process has been silent for too long."""
        return time.monotonic() > self.deadline

    def message(self) -> str | Done | UserError | None:
        """Return what the process says; None if it has died."""
        try:
            message: str | Done | UserError = self.connection.recv()
        except (EOFError, ConnectionError):
            return None
        return message

    def restart(self) -> str:
        """Start another process in place of one that died; return how that one did."""
        overdue = self.overdue
        self.stop()
        code = self.process.exitcode or 0
        self._start()
        if overdue:
            return "TimeLimitReached: it took longer than the limit and could not be interrupted"
        cause = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        memory = ", as when memory runs out" if code == -signal.SIGKILL else ""
        return f"WorkerDied: the process was {cause}{memory}"

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables inside the block, for a process that is started in it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, settings: Settings) -> None:
    """Do the jobs that come over a connection until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one.
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(_done(job, settings, connection.send))


@functools.lru_cache(maxsize=1)
def _workbench(settings: Settings) -> Workbench:
    """Return the workbench of a worker, made once."""
    for path in settings.plugins:
        load_plugin(path)
    return settings.workbench()


def _done(job: Job, settings: Settings, say: Callable[[str], Any]) -> Done | UserError:
    try:
        bench = _workbench(settings)
        bench.progress = say
        return Done(job, bench.do(job), bench.refusal, profile.take())
    except UserError as error:
        return error


# --- a cluster ----------------------------------------------------------------------------------


class RayExecutor(Executor):
    """Does jobs as tasks of Ray, on a cluster or on this machine.

    Args:
        settings: What the workers need; its paths must mean the same on all machines.
        address: The cluster's address; None starts Ray on this machine, unless RAY_ADDRESS is set.
        count: Tasks at a time on each machine, which share its cores; None for one per core.
        quiet: Whether to show no logs of the workers.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self, settings: Settings, address: str | None, count: int | None, *, quiet: bool
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "Ray is not installed: pip install 'veilbench[ray]', or give another --executor."
            ) from error
        threads = max(1, len(os.sched_getaffinity(0)) // count) if count else 1
        variables = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        self._ray = ray
        try:
            ray.init(
                address=address,
                include_dashboard=None if address else False,
                log_to_driver=not quiet,
                configure_logging=not quiet,
                runtime_env={"env_vars": variables},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"There is no Ray cluster at {address} ({reason}): check --ray-address."
            ) from error
        self._settings = ray.put(settings)
        resources = ray.cluster_resources()
        gpus = 1 if settings.device != "cpu" and resources.get("GPU") else 0
        self.processes = int(resources["GPU"] if gpus else resources["CPU"] // threads)
        self._task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RAY_RETRIES)(_ray_done)

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Hand over all jobs at once; Ray repeats those that are lost with their machine."""
        pending = {self._task.remote(job, self._settings): job for job in jobs}
        tried = set[Job](jobs)
        while pending:
            (ready,), _ = self._ray.wait(list(pending))
            job = pending.pop(ready)
            try:
                message = self._ray.get(ready)
            except self._ray.exceptions.RayError as error:
                reason = f"WorkerDied: {str(error).splitlines()[0]}"
                again, failures = retried(job, tried, reason)
                pending |= {self._task.remote(part, self._settings): part for part in again}
                if not again:
                    yield Done(job, failures)
                continue
            if isinstance(message, UserError):
                raise message
            yield message

    def __exit__(self, *_: object) -> None:
        """Leave the cluster, or stop the one on this machine."""
        self._ray.shutdown()


def _ray_done(job: Job, settings: Settings) -> Done | UserError:
    return _done(job, settings, print)
