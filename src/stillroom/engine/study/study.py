"""Study: many trials of one search, by any number of processes on any number of machines, until exactly so many are finished.

Optuna keeps the trials and proposes their values. What it leaves to its users is here: that the planned number is the number in all and
not of each worker; that a trial whose worker was killed is failed and run again; that a worker which was only slow, and whose trial was
given away, drops its result; that a score which is no number is a failed trial with a reason; and that a study goes on, from wherever it
stopped, with the proposals that it would have made. All bookkeeping happens under one lock per study (`storage.Opened.locked`).
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.engine.run.console import console
from stillroom.engine.run.pool import Pool
from stillroom.engine.run.written import Record, complete, growing
from stillroom.engine.study.progress import progress
from stillroom.engine.study.samplers import MakeSampler
from stillroom.engine.study.space import Space, write_space
from stillroom.engine.study.storage import Opened, local_files, open_storage, url_of
from stillroom.engine.study.trial import Finished, Objective, State, Trial, finished_of, outcome_of
from stillroom.engine.study.workers import host, started, this_process
from stillroom.errors import InputError, StillroomError

if TYPE_CHECKING:
    import optuna

_BEAT = 15.0  # seconds between two signs of life of a trial
_GRACE = 120.0  # seconds without one, after which a trial of another machine is given to somebody else
_LIVES = 3  # workers that a trial may take with it before it is failed for good
_POLL = 0.5  # seconds between two looks at trials that others run


@dataclass
class Study:
    """A search over a space, to a number of trials or a time; can be sent to other processes.

    Args:
        folder: of the run; the storage lies there by default, and logs of workers do.
        name: of the study, unique in its storage.
        space: what is searched.
        sampler: makes, from a seed, what proposes a trial's values: a `samplers.make_sampler` with its name, or any `BaseSampler`.
        trials: how many are finished in the end, of all workers together: those with a score, those that were pruned, and those that
            failed by themselves. None for as many as fit into `seconds`.
        seconds: of searching, over all sessions, after which no trial begins.
        storage: a URL, see `storage.open_storage`; by default an SQLite file in the folder.
        seed: of the proposals.
        pruner: Optuna's; makes one.
        maximise: whether a larger score is better.
        described: what else a trial's score depends on: data, method, plain values by names that a user knows. A study is never gone on
            with under another description or space.
        grace: seconds without a sign of life from another machine after which a trial of it is run again.

    Raises:
        InputError: neither or both of `trials` and `seconds`, or one of them below 1.
    """

    folder: Path
    name: str
    space: Space
    sampler: MakeSampler
    trials: int | None = None
    seconds: float | None = None
    storage: str | None = None
    seed: int = 0
    pruner: Callable[[], optuna.pruners.BasePruner] | None = None
    maximise: bool = True
    described: Mapping[str, Any] = field(default_factory=dict)
    grace: float = _GRACE
    _seen: dict[int, tuple[int, float]] = field(default_factory=dict, init=False, repr=False)
    _ended: dict[int, Finished] = field(default_factory=dict, init=False, repr=False)  # by number; these do not change any more

    def __post_init__(self) -> None:
        if (self.trials is None) == (self.seconds is None):
            raise InputError("trials", self.trials, "a number of trials, or a time")
        if self.trials is not None and self.trials < 1:
            raise InputError("trials", self.trials, "a whole number of at least 1")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise InputError("seconds", self.seconds, "a finite number above 0")

    # What there is --------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _opened(self) -> Opened:
        """The storage, with the study in it."""
        import optuna

        url = url_of(self.storage, self.folder)
        files = local_files(url)
        if self.storage is None and not files[0].exists() and (record := Record.around(files[0])) is not None:
            record.enter(dict.fromkeys(files))  # theirs is no content that could be known
        opened = open_storage(url, self.name)
        depends = json.loads(json.dumps([write_space(self.space), {**self.described, "seed": self.seed}], default=str))
        with opened.locked():
            study = optuna.create_study(
                storage=opened.storage, study_name=self.name, direction="maximize" if self.maximise else "minimize", load_if_exists=True
            )
            before = study.user_attrs.get("stillroom")
            if before is None:
                study.set_user_attr("stillroom", depends)
        self._compare(depends if before is None else before, depends)
        return opened

    def _compare(self, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
        """Before the first trial: proposals of two spaces, and scores of two kinds, do not go together."""
        differs = [
            f"{name} was {old.get(name)}, now {new.get(name)}"
            for old, new in zip(before, now, strict=True)
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
        if differs:
            got = f"{self.name}, which was begun otherwise ({'; '.join(differs[:4])})"
            raise InputError("study", got, "the same again, or another study: another folder or another --study")

    def begin(self) -> None:
        """Opens the storage and compares; what is wrong is said now.

        Raises:
            InputError: the storage cannot be used, or the study was begun with another space or description.
        """
        _ = self._opened

    def of_optuna(self, number: int = 0) -> optuna.Study:
        """Optuna's own study, with the sampler of a trial: for whatever Optuna offers besides."""
        from optuna.pruners import NopPruner

        study = copy(self._study)  # not found by its name again
        study.sampler, study.pruner = self.sampler(self.seed_of(number)), self.pruner() if self.pruner is not None else NopPruner()
        return study

    @cached_property
    def _study(self) -> optuna.Study:
        import optuna

        return optuna.Study(self.name, self._opened.storage)

    def seed_of(self, number: int) -> int:
        """A trial's seed."""
        return int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process of any machine changes this study."""
        with self._opened.locked():
            yield

    def finished(self) -> list[Finished]:
        """The trials that ended by themselves, in the order of their numbers; those that a kill ended are not among them."""
        for trial in self._all():
            if trial.number not in self._ended and trial.state.is_finished() and "lost" not in trial.user_attrs:
                self._ended[trial.number] = finished_of(trial)
        return [self._ended[number] for number in sorted(self._ended)]

    @property
    def best(self) -> Finished:
        """The finished trial with the best score; of equal ones the first.

        Raises:
            StillroomError: none has a score.
        """
        finished = self.finished()
        scored = [trial for trial in finished if trial.state == "complete"]
        if not scored:
            last = finished[-1].reason if finished else "none was run"
            raise StillroomError(f"the study {self.name}: no trial has a score ({last})")
        return max(scored, key=self.order)

    def order(self, trial: Finished) -> float:
        """Larger for better trials."""
        score = -math.inf if trial.score is None else trial.score
        return score if self.maximise else -score

    def _all(self) -> Sequence[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    # One trial ------------------------------------------------------------------------------------------------------------------------

    def claim(self) -> Trial | None:
        """The next trial, if there is one to begin; waits for trials of others, which may have to be run again. None once all is done."""
        while True:
            with self.locked():
                trials = self._give_up_dead()
                if self._room(trials):
                    return self._next(trials)
                if not any(trial.state.name == "RUNNING" for trial in trials):
                    return None
            time.sleep(_POLL)

    def _next(self, trials: Sequence[optuna.trial.FrozenTrial]) -> Trial:
        """The trial of a killed worker, or a new one, which is written at once and whole."""
        from stillroom.engine.study.held import Held  # which imports Optuna

        study, distributions = self.of_optuna(len(trials)), {name: one.distribution() for name, one in self.space.items()}
        if any(trial.state.name == "WAITING" for trial in trials):
            asked = study.ask(distributions)
            asked.set_user_attr("worker", this_process())
        else:
            asked = Held(self._opened.storage, trials).ask(study, distributions, worker=this_process())
        return Trial(asked, self.seed_of(asked.number))

    def _room(self, trials: Sequence[optuna.trial.FrozenTrial]) -> bool:
        if any(trial.state.name == "WAITING" for trial in trials):  # of a killed worker
            return True
        if self.seconds is not None:
            return _searched(trials) < self.seconds
        assert self.trials is not None
        return sum("lost" not in trial.user_attrs for trial in trials) < self.trials

    def _give_up_dead(self) -> Sequence[optuna.trial.FrozenTrial]:
        """Fails the running trials of workers that are no more, and has them run again; answers with all trials as they are then."""
        from optuna.trial import TrialState

        storage, trials, given_up = self._opened.storage, self._all(), False
        for trial in trials:
            if trial.state != TrialState.RUNNING or self._lives(trial):
                continue
            lives = int(trial.user_attrs.get("lives", 0)) + 1
            again = lives < _LIVES
            reason = f"its worker was killed ({trial.user_attrs.get('worker', {}).get('host', 'before it began')})"
            storage.set_trial_user_attr(trial._trial_id, "reason", reason if again else f"{reason}, {lives} times")
            if again:
                storage.set_trial_user_attr(trial._trial_id, "lost", True)
            storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            if again:  # last: should we be killed before, there is room for a new trial in its place, never for two
                self.of_optuna().enqueue_trial(trial.params, user_attrs={"lives": lives})
            given_up = True
            console.print(f"{self.name}: trial {trial.number}: {reason}{'; it is run again' if again else ''}", markup=False)
        return self._all() if given_up else trials

    def _lives(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether a running trial's worker may be alive: on this machine the process is looked for, of another one signs of life are."""
        worker = trial.user_attrs.get("worker")
        if worker is None:  # it is written under the lock that we hold: whoever had it is dead
            return False
        if worker["host"] == host():
            return started(worker["pid"]) == worker["started"]
        beat, now = int(trial.user_attrs.get("beat", 0)), time.monotonic()
        seen, since = self._seen.get(trial._trial_id, (-1, now))
        if seen != beat:
            self._seen[trial._trial_id] = beat, now
            return True
        return now - since < self.grace

    def run_one(self, objective: Objective) -> Finished | None:
        """Claims a trial, runs it and keeps what came of it; None once there is none left.

        Raises:
            Interrupted, OSError: the trial could not end by itself, and is run again by whoever goes on.
        """
        trial = self.claim()
        while trial is not None:
            try:
                with self._signs_of_life(trial):
                    state, score, reason = outcome_of(objective, trial)
            except BaseException:
                self._lose(trial)
                raise
            if state is not None and (told := self._tell(trial, state, score, reason)) is not None:
                return finished_of(told)
            console.print(f"{self.name}: trial {trial.number} was given to another worker meanwhile; its result is dropped", markup=False)
            trial = self.claim()
        return None

    def _tell(self, trial: Trial, state: State, score: float | None, reason: str) -> optuna.trial.FrozenTrial | None:
        """Keeps a result; None where the trial is no longer this worker's. (A trial is read as seldom as can be: a database takes six
        queries for it.)"""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        asked, study = trial._trial, trial._trial.study
        with self.locked():
            try:
                asked.set_user_attr("told", json.loads(json.dumps(trial.told, default=str)))
            except UpdateFinishedTrialError:
                return None
            if reason:
                asked.set_user_attr("reason", reason)
            if state == "complete":
                return study.tell(asked, score)
            return study.tell(asked, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)

    def _lose(self, trial: Trial) -> None:
        """The worker ends before its trial does: somebody else runs it, at once."""
        from optuna.trial import TrialState

        storage, number = self._opened.storage, trial._trial._trial_id
        with suppress(Exception), self.locked():  # where not even that can be written, the next worker finds out
            if storage.get_trial(number).state == TrialState.RUNNING:
                storage.set_trial_user_attr(number, "reason", "its worker was asked to end")
                storage.set_trial_user_attr(number, "lost", True)
                storage.set_trial_state_values(number, TrialState.FAIL)
                self.of_optuna().enqueue_trial(trial.params, user_attrs={"lives": storage.get_trial(number).user_attrs.get("lives", 0)})

    @contextmanager
    def _signs_of_life(self, trial: Trial) -> Iterator[None]:
        """Says now and then that the trial runs, for workers of other machines, whose clocks may be others."""
        over, storage, number = threading.Event(), self._opened.storage, trial._trial._trial_id

        def beat() -> None:
            count = 0
            while not over.wait(min(_BEAT, self.grace / 4)):
                count += 1
                try:
                    storage.set_trial_user_attr(number, "beat", count)
                except Exception:  # it was given away, or the storage is away for a moment: that is said when the trial ends
                    continue

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # All trials -----------------------------------------------------------------------------------------------------------------------

    def run(self, objective: Objective, *, jobs: int = 1, metric: str = "score") -> list[Finished]:
        """Runs trials here, until the study is finished, and says how far it is (`progress`).

        Args:
            objective: answers with a trial's score; with several jobs it can be pickled, and lives as long as its process.
            jobs: processes at a time; 1 runs the trials in this one.
            metric: what the score is called.

        Returns:
            All finished trials, of this and of every other process.

        Raises:
            InputError: as `begin`.
            Interrupted: asked to end. What is finished is kept.
            StillroomError: a worker cannot go on.
        """
        self.begin()
        before = self.finished()
        if before:
            console.print(f"{self.name}: goes on after {len(before)} finished trials", markup=False)
        with progress(self, metric) as say:
            if jobs == 1:
                while (done := self.run_one(objective)) is not None:
                    say(done)
            else:
                self._run_at_once(objective, jobs, say)
        return self.finished()

    def _run_at_once(self, objective: Objective, jobs: int, say: Callable[[Finished], None]) -> None:
        """Each piece of the pool is a trial; a worker that was killed is replaced, and its trial is run by another one."""
        work, pieces = Worker(self, objective), iter(range(10**9))
        logs = [self.folder / "logs" / f"{self.name}-worker{slot}.txt" for slot in range(jobs)]
        growing(logs)
        with Pool(work, jobs, lambda piece: logs[piece % jobs]) as pool:
            pool.add(*(next(pieces) for _ in range(jobs)))
            deaths = 0  # since a trial was finished
            for _, outcome in pool:
                if (answer := outcome.result) is None:
                    deaths += 1
                    if deaths > _LIVES * jobs or not outcome.reason.startswith("its process"):
                        raise StillroomError(f"{self.name}: a worker cannot go on: {outcome.reason}")
                    console.print(f"{self.name}: a worker is replaced: {outcome.reason}", markup=False)
                    pool.add(next(pieces))
                elif answer.done is not None:
                    deaths = 0
                    say(answer.done)
                    pool.add(next(pieces))
        for log in logs:
            complete(log)

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection, which the other process opens for itself."""
        return {**{name: value for name, value in vars(self).items() if name not in ("_opened", "_study")}, "_seen": {}, "_ended": {}}


@dataclass(frozen=True)
class Answer:
    """What a worker did with a piece: a trial, or nothing, since there was none left."""

    done: Finished | None


@dataclass
class Worker:
    """Runs a trial of a study in a process of a pool."""

    study: Study
    objective: Objective

    def __call__(self, piece: int) -> Answer:
        """One trial."""
        return Answer(self.study.run_one(self.objective))


def _searched(trials: Sequence[optuna.trial.FrozenTrial]) -> float:
    """Seconds in which at least one trial ran, over all sessions."""
    spans = sorted(
        (trial.datetime_start, trial.datetime_complete or datetime.now()) for trial in trials if trial.datetime_start is not None
    )
    seconds, until = 0.0, datetime.min
    for began, ended in spans:
        seconds += max((ended - max(began, until)).total_seconds(), 0.0)
        until = max(until, ended)
    return seconds
