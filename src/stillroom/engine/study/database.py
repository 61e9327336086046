"""Optuna's database storage, which writes a new trial in few statements; imported where a search runs, as it imports Optuna."""

from __future__ import annotations

import json
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import insert
from sqlalchemy.orm import Session


class Database(RDBStorage):
    """The same tables and rows as Optuna's.

    For each value and attribute of a trial Optuna reads the trial again, and for a value an earlier one's range besides: together a fifth
    of what a trial cost. Both are known here: the trial is new, and a study's space is compared when it is opened.
    """

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Session) -> models.TrialModel:
        """The row of a trial that is to begin with all that it has; committed by who asks. Optuna has no public place for this."""
        new = template_trial
        if new is None or new.state != TrialState.RUNNING:
            return super()._get_prepared_new_trial(study_id, template_trial, session)
        trial = models.TrialModel(study_id=study_id, number=None, state=new.state, datetime_start=new.datetime_start)
        session.add(trial)
        session.flush()  # its number in the database is known from here on

        def write(model: type[Any], rows: list[dict[str, Any]]) -> None:
            if rows:
                session.execute(insert(model), [{"trial_id": trial.trial_id, **row} for row in rows])

        ranges = new.distributions
        params = [
            {
                "param_name": name,
                "param_value": ranges[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(ranges[name]),
            }
            for name, value in new.params.items()
        ]
        write(models.TrialParamModel, params)
        for model, attrs in ((models.TrialUserAttributeModel, new.user_attrs), (models.TrialSystemAttributeModel, new.system_attrs)):
            write(model, [{"key": key, "value_json": json.dumps(value)} for key, value in attrs.items()])
        trial.number = trial.count_past_trials(session)
        return trial
