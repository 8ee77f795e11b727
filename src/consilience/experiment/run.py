"""The run: what the goals need and the store lacks is made, in order, by any executor."""

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from pathlib import Path
from typing import NamedTuple

from consilience.devices import checked_device
from consilience.errors import ArtifactError, ConsilienceError, DiskError, SpecError
from consilience.experiment.desk import Place
from consilience.experiment.executors import Inline
from consilience.experiment.experiment import Experiment
from consilience.experiment.records import Spec
from consilience.experiment.specs import groups, plan
from consilience.experiment.stages import make
from consilience.experiment.store import Store

Group = tuple[Spec, ...]


class Event(NamedTuple):
    """Something that happened in a run, with what is left."""

    what: str
    """``start``, ``working``, ``done`` or ``failed``."""
    group: Group
    done: int
    total: int
    seconds_left: float | None
    """None until a group of every kind that is left has been timed."""


class Failure(NamedTuple):
    """A group that could not be made."""

    group: Group
    reason: str
    trace: str


class Outcome(NamedTuple):
    """What a run did, in artifacts."""

    found: int
    made: int
    failures: tuple[Failure, ...]
    resting: int
    """Artifacts that were not tried, since they rest on a failure."""
    seconds: float


class _State:
    """The groups of a run and where each stands."""

    def __init__(self, goals: Sequence[Spec], store: Store, workers: int) -> None:
        self.store, self.workers = store, workers
        self.waiting = groups(plan(goals, store))
        self.total, self.started = len(self.waiting), time.perf_counter()
        self.making = {spec.digest for group in self.waiting for spec in group}
        self.found = [spec for spec in plan(goals) if spec.digest not in self.making]
        self.ready = {spec.digest for spec in self.found}
        self.chosen: list[Group] = []
        self.running: dict[Future[float], Group] = {}
        self.seen: dict[str, tuple[float, float]] = {}
        """When a running group was first seen at work, and how much of it was done then."""
        self.failures: list[Failure] = []
        self.lost: set[str] = set()
        self.resting = 0
        self.spent = past_seconds(self.found, store)
        """Seconds of an artifact of each stage."""

    def choose(self, most: int) -> None:
        """Choose at most so many groups whose inputs are all there; what rests on a failure is dropped."""
        later: list[Group] = []
        for group in self.waiting:
            resting = {spec.digest for spec in group if any(i.digest in self.lost for i in spec.inputs)}
            self.lost |= resting
            self.resting += len(resting)
            if kept := tuple(spec for spec in group if spec.digest not in resting):
                there = all(i.digest in self.ready for spec in kept for i in spec.inputs)
                (self.chosen if there and len(self.chosen) < most else later).append(kept)
        self.waiting = later

    def event(self, what: str, group: Group) -> Event:
        """An event, with what is left at this moment."""
        left = len(self.waiting) + len(self.chosen) + len(self.running)
        return Event(what, group, self.total - left, self.total, self._seconds_left())

    def _seconds_left(self) -> float | None:
        rests = [self._whole(group) for group in (*self.waiting, *self.chosen)]
        rests += [self._rest(job, group) for job, group in self.running.items()]
        known = [rest for rest in rests if rest is not None]
        return sum(known) / self.workers if len(known) == len(rests) else None

    def _whole(self, group: Group) -> float | None:
        """Seconds of a group that was not begun, as long as others of its stage took."""
        spent = self.spent.get(group[0].stage)
        return len(group) * sum(spent) / len(spent) if spent else None

    def _rest(self, job: Future[float], group: Group) -> float | None:
        """Seconds that are left of a group that was handed over: by its own pace, once it shows one."""
        share, now, whole = self.store.share(group), time.perf_counter(), self._whole(group)
        if not job.running() and share == 0:
            return whole  # it waits for a worker
        first, before = self.seen.setdefault(group[0].digest, (now, share))
        if share > before:
            return (1 - share) * (now - first) / (share - before)
        return None if whole is None else max(0.0, (1 - before) * whole - (now - first))


def past_seconds(specs: Iterable[Spec], store: Store) -> dict[str, list[float]]:
    """Seconds that artifacts of each stage once took, of at most twenty of each."""
    spent: dict[str, list[float]] = {}
    for spec in specs:
        if len(spent.get(spec.stage, [])) < 20 and spec in store:
            spent.setdefault(spec.stage, []).append(store.provenance(spec)["seconds"])
    return spent


def run(
    experiment: Experiment | Sequence[Spec],
    store: Store | Path | str,
    *,
    executor: Executor | None = None,
    data: Path | Place | None = None,
    device: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Outcome:
    """Make every artifact that an experiment needs and the store lacks.

    A group that fails stops what rests on it and nothing else; failures are listed in the outcome.

    Args:
        experiment: As loaded from its file, or specs themselves.
        store: Where artifacts are found and kept.
        executor: Any ``concurrent.futures.Executor``; in this process where there is none.
        data: The folder of the data sets, or a ``Place`` that holds models and examples in memory too.
        device: Where torch computes, in every worker: the processor where none is named. A ``Place`` names its own.
        on_event: Told of every group that is begun, done or failed.

    Raises:
        SpecError: There is no such device on this machine, or a ``Place`` names another one.
        ArtifactError: A worker process died; what was complete is kept.
        DiskError: The disk refused; what was complete is kept.
    """
    executor = executor or Inline()
    place = _placed(data, device)
    checked_device(place.device)
    goals = experiment.specs() if isinstance(experiment, Experiment) else experiment
    store = store if isinstance(store, Store) else Store(store)
    state = _State(goals, store, getattr(executor, "workers", 1))
    try:
        _loop(state, executor, place, on_event)
    except BaseException:
        for job in state.running:
            job.cancel()
        if hasattr(executor, "stop"):
            executor.stop()
        raise
    failed = sum(len(failure.group) for failure in state.failures)
    return Outcome(
        found=sum(spec in store for spec in state.found),
        made=len(state.making) - failed - state.resting,
        failures=tuple(state.failures),
        resting=state.resting,
        seconds=time.perf_counter() - state.started,
    )


def _placed(data: Path | Place | None, device: str | None) -> Place:
    if not isinstance(data, Place):
        return Place(data, device="cpu" if device is None else device)
    if device not in (None, data.device):
        raise SpecError(
            f"run: expected one device, found {device} beside a Place whose device is {data.device}; "
            f"give the Place alone, made with device={device!r} if that is meant"
        )
    return data


def _loop(state: _State, executor: Executor, place: Place, on_event: Callable[[Event], None]) -> None:
    most = 1 if isinstance(executor, Inline) else len(state.waiting)
    while state.waiting or state.running:
        state.choose(most)
        while state.chosen:
            group = state.chosen[0]
            on_event(state.event("start", group))
            job = executor.submit(timed, group, state.store.root, place)
            state.running[job] = state.chosen.pop(0)
        if not state.running:
            continue
        done, _ = wait(state.running, timeout=1, return_when=FIRST_COMPLETED)
        for job in done:
            _finish(state, job, state.running.pop(job), on_event)
        if not done:
            on_event(state.event("working", next(iter(state.running.values()))))


def _finish(state: _State, job: Future[float], group: Group, on_event: Callable[[Event], None]) -> None:
    digests = {spec.digest for spec in group}
    try:
        state.spent.setdefault(group[0].stage, []).append(job.result() / len(group))
    except BrokenExecutor as error:
        raise ArtifactError(
            f"{group[0].stage}: expected the worker process to finish, found it dead (killed, or out of memory); "
            "run the same command again, with fewer processes if memory was short: what was complete is kept"
        ) from error
    except DiskError:
        raise  # everything else would fail too
    except Exception as error:
        reason = str(error) if isinstance(error, ConsilienceError) else f"{type(error).__name__}: {error}"
        trace = "" if isinstance(error, ConsilienceError) else "".join(traceback.format_exception(error))
        state.failures.append(Failure(group, reason, trace))
        state.lost |= digests
        on_event(state.event("failed", group))
    else:
        state.ready |= digests
        on_event(state.event("done", group))


def timed(group: Group, root: Path, place: Place) -> float:
    """Seconds that a group took. Workers run this."""
    started = time.perf_counter()
    make(group, root, place)
    return time.perf_counter() - started
