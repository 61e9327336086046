"""A storage in which one trial is held in memory, so that it is written whole and not read back; imported where a search runs, as it
imports Optuna."""

from __future__ import annotations

from collections.abc import Container, Sequence
from copy import copy
from copy import deepcopy as copy_of
from datetime import datetime
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

_UNWRITTEN = -1  # a number that no storage gives


class Held:
    """Optuna's storage as it is, but for one trial of this process.

    Optuna sets what is proposed value by value, each in a transaction of its own, and reads the trial before and after. Here a trial is
    proposed in memory and written once, whole, so that a worker that is killed before leaves nothing behind; then what is set goes to
    the storage too, and only reading stays here.

    Args:
        storage: Optuna's.
        others: the study's trials so far; no other process adds one before this is written.
    """

    def __init__(self, storage: BaseStorage, others: Sequence[FrozenTrial]) -> None:
        self._storage, self._others = storage, others
        self.trial = FrozenTrial(
            number=len(others),
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=_UNWRITTEN,
        )

    def ask(self, study: optuna.Study, distributions: dict[str, BaseDistribution], **user_attrs: Any) -> optuna.Trial:
        """Proposes the trial's values, and writes it.

        Args:
            study: whose the trial is, and whose sampler and pruner are asked.
            distributions: by the parameters' names.
            user_attrs: of the trial.
        """
        held = copy(study)
        held._storage = cast(BaseStorage, self)
        asked = held.ask(distributions)
        self.trial.user_attrs |= user_attrs
        asked._trial_id = self.trial._trial_id = self._storage.create_new_trial(study._study_id, copy_of(self.trial))
        return asked

    # What Optuna asks of a storage, of this trial ---------------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int) -> int:
        """The one that is held."""
        return self.trial._trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """It, or another one from the storage."""
        return self.trial if trial_id == self.trial._trial_id else self._storage.get_trial(trial_id)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """As `get_trial`."""
        return self.get_trial(trial_id).system_attrs

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """All trials of the study, this one in its place."""
        others = self._storage.get_all_trials(study_id, deepcopy=False) if self._written else self._others
        trials = [*others[: self.trial.number], self.trial, *others[self.trial.number + 1 :]]
        chosen = [trial for trial in trials if states is None or trial.state in states]
        return copy_of(chosen) if deepcopy else chosen

    def set_trial_param(self, trial_id: int, name: str, value: float, distribution: BaseDistribution) -> None:
        """A value as Optuna keeps it; before it is written."""
        self.trial.distributions[name] = distribution
        self.trial.params[name] = distribution.to_external_repr(value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """What a sampler or pruner keeps with it."""
        if self._written:
            self._storage.set_trial_system_attr(trial_id, key, value)
        self.trial.system_attrs[key] = value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """What was noted; once it is written."""
        self._storage.set_trial_user_attr(trial_id, key, value)
        self.trial.user_attrs[key] = value

    def set_trial_intermediate_value(self, trial_id: int, step: int, value: float) -> None:
        """What was reported; once it is written."""
        self._storage.set_trial_intermediate_value(trial_id, step, value)
        self.trial.intermediate_values[step] = value

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """How it ended; once it is written."""
        told = self._storage.set_trial_state_values(trial_id, state, values)
        self.trial.state, self.trial.datetime_complete = state, datetime.now()
        self.trial.values = values
        return told

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked is the storage's to answer."""
        return getattr(self._storage, name)

    @property
    def _written(self) -> bool:
        return self.trial._trial_id != _UNWRITTEN
