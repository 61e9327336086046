"""Optuna's database storage with fewer statements for a trial; imported where a search runs, as it imports Optuna."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container
from types import SimpleNamespace
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import and_, insert, or_, select
from sqlalchemy.orm import Session

_PARTS: dict[str, Any] = {
    "params": models.TrialParamModel,
    "values": models.TrialValueModel,
    "user_attributes": models.TrialUserAttributeModel,
    "system_attributes": models.TrialSystemAttributeModel,
    "intermediate_values": models.TrialIntermediateValueModel,
}


class Database(RDBStorage):
    """The same tables and rows as Optuna's, written and read in fewer and plainer statements.

    For each value and attribute of a trial Optuna reads the trial again, and for a value an earlier one's range besides; here both are
    known, since the trial is new, and a study's space is compared when it is opened. What it reads Optuna has as objects whose changes
    SQLAlchemy follows, though nobody changes them. Optuna has no public place for either: where its own methods get other names, these
    are not called, and all is slower but right.
    """

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Session) -> models.TrialModel:
        """The row of a trial that is to begin with all that it has; committed by who asks."""
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

    def _get_trials(
        self, study_id: int, states: Container[TrialState] | None, included_trial_ids: set[int], trial_id_greater_than: int
    ) -> list[FrozenTrial]:
        """The study's trials that are new or among the given ones, as rows rather than as objects that SQLAlchemy keeps track of."""
        trials = models.TrialModel.__table__
        of_study, new = trials.c.study_id == study_id, trials.c.trial_id > trial_id_greater_than
        wanted = and_(of_study, or_(new, trials.c.trial_id.in_(included_trial_ids)) if included_trial_ids else new)
        with _create_scoped_session(self.scoped_session) as session:
            found = session.execute(select(trials).where(wanted).order_by(trials.c.trial_id)).all()
            parts: dict[str, dict[int, list[Any]]] = {}
            for name, model in _PARTS.items() if found else ():
                parts[name] = defaultdict(list)
                for row in session.execute(select(model.__table__).join(trials).where(wanted)):
                    parts[name][row.trial_id].append(row)
        made: list[Any] = [SimpleNamespace(**row._mapping, **{name: rows[row.trial_id] for name, rows in parts.items()}) for row in found]
        return [self._build_frozen_trial_from_trial_model(trial) for trial in made if states is None or trial.state in states]
