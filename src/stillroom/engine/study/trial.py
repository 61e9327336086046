"""A trial: running, as an objective gets it, and finished."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stillroom.engine.run.pool import reason_of
from stillroom.errors import Interrupted, StillroomError, explained

if TYPE_CHECKING:
    import optuna

State = Literal["complete", "pruned", "failed"]
Objective = Callable[["Trial"], float]


class Pruned(StillroomError):
    """The trial is not worth going on with; raised by `Trial.report`, and none of its user's business."""


class Diverged(StillroomError):
    """A trial's score is not a finite number."""

    exit_code = 3


class Dropped(StillroomError):
    """The trial was given to another worker meanwhile."""


@dataclass(frozen=True)
class Finished:
    """A trial that has ended by itself.

    Attributes:
        number: in its study.
        state: complete, pruned (with the last score that it reported) or failed (without one).
        params: what was tried.
        score: what it reached.
        reason: why it failed.
        seconds: it took.
        told: what its objective noted (`Trial.note`).
        at: seconds since the epoch when it began.
    """

    number: int
    state: State
    params: dict[str, Any]
    score: float | None
    reason: str
    seconds: float
    told: dict[str, Any]
    at: float


class Trial:
    """A running trial, as an objective gets it.

    Attributes:
        number: in its study; another one where a killed trial is run again.
        params: the values to try.
        seed: of this trial, by the study's and the number.
    """

    def __init__(self, trial: optuna.Trial, seed: int) -> None:
        self.number, self.params, self.seed = trial.number, dict(trial.params), seed
        self.told: dict[str, Any] = {}
        self._trial = trial

    def report(self, score: float, epoch: int) -> None:
        """Says how far it is after an epoch, counted from 1.

        Raises:
            Pruned: the study's pruner gives it up.
            Diverged: the score is not finite.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        if not math.isfinite(score):
            raise Diverged(f"the score is {score} after epoch {epoch}")
        try:
            self._trial.report(score, epoch)
        except UpdateFinishedTrialError:
            raise Dropped("given away") from None
        if self._trial.should_prune():
            raise Pruned(f"given up after epoch {epoch}")

    def note(self, **told: Any) -> None:
        """Keeps plain values with the trial: what it cost, where its weights are."""
        self.told |= told


def outcome_of(objective: Objective, trial: Trial) -> tuple[State | None, float | None, str]:
    """How a trial ended; without a state where it is no longer ours.

    Raises:
        Interrupted, OSError: it did not end by itself.
    """
    try:
        score = objective(trial)
        if not math.isfinite(score):
            raise Diverged(f"the score is {score}")
    except Pruned as error:
        return "pruned", None, str(error)
    except Dropped:
        return None, None, ""
    except Interrupted:
        raise
    except Exception as error:
        if explained(error) is not None:  # a disk is full: the next trial would fare no better
            raise
        if not isinstance(error, StillroomError):
            traceback.print_exc()
        return "failed", None, reason_of(error)
    return "complete", float(score), ""


def finished_of(trial: optuna.trial.FrozenTrial) -> Finished:
    """Optuna's record of a trial that has ended by itself."""
    states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    began, ended = trial.datetime_start, trial.datetime_complete
    seconds = (ended - began).total_seconds() if began is not None and ended is not None else 0.0
    return Finished(
        number=trial.number,
        state=states[trial.state.name],
        params=dict(trial.params),
        score=trial.values[0] if trial.values else None,
        reason=str(trial.user_attrs.get("reason", "")),
        seconds=seconds,
        told=dict(trial.user_attrs.get("told", {})),
        at=began.timestamp() if began is not None else 0.0,
    )
