"""A storage that answers from memory and writes in bulk.

An RDBStorage spends one transaction on every parameter, report and attribute, and reads every
unfinished trial again whenever a sampler or a pruner asks for the trials. For a batch of trials
that train together, which report by the hundred, that takes far longer than the training. Here a
trial costs the time of its rows: of some 40 transactions one is left.
"""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
import copy
from datetime import datetime
import json
import threading
from typing import Any
import weakref

from optuna.distributions import BaseDistribution
from optuna.distributions import check_distribution_compatibility
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState

from optuna_ext._memory import Memory
from optuna_ext._memory import running_trial
from optuna_ext._memory import StudyMemory
from optuna_ext._rows import End
from optuna_ext._rows import Writer


class BulkStorage(BaseStorage):
    """Answers reads from memory and writes many trials in one transaction.

    It keeps what it is told about its own running trials in memory, where samplers and pruners
    find it at once, and writes it to the database in bulk:

    * A trial that is told has been written, with all that belongs to it, when ``study.tell``
      returns; inside :meth:`batch`, when the block ends.
    * Parameters, reports and attributes of a running trial are written at the latest ``interval``
      seconds after they were made, by a thread, or with the next trial that is told.

    So a killed process loses no trial that was told, and of those that were running the reports
    of the last ``interval`` seconds. Trials are numbered by the database, so that other processes
    may work on the same study, with this storage or with Optuna's own: they see this one's trials
    as they are written, and this one reads theirs every ``interval`` seconds. A waiting trial is
    claimed in the database itself. The file is an ordinary one of Optuna's, in which optuna-
    dashboard sees the study grow.

    Heartbeats are not recorded. Use :func:`bulk_storage`, which checks that the tables are known.

    Args:
        storage:
            Where to write; its tables must be those that :func:`bulk_storage` checks for.
        interval:
            Seconds between two writes, ``interval > 0``.

    Raises:
        ValueError: If ``interval`` is not greater than 0.
    """

    def __init__(self, storage: RDBStorage, *, interval: float = 1.0) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be greater than 0 seconds, but is {interval!r}")
        self.backend = storage
        self._interval = interval
        self._start()

    def _start(self) -> None:
        self._batches = threading.local()
        self._writer = Writer(self.backend, interval=self._interval)
        self._lock = self._writer.lock
        self._memory = Memory(self.backend, self._writer, interval=self._interval)
        self._finish = weakref.finalize(self, self._writer.close)

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return {"storage": self.backend, "interval": self._interval}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.backend, self._interval = state["storage"], state["interval"]
        self._start()

    def __enter__(self) -> BulkStorage:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def flush(self) -> None:
        """Write everything now."""
        self._writer.flush()

    def exchange(self, study_id: int) -> None:
        """Write everything and read what other processes have written, however lately."""
        self.flush()
        with self._lock:
            self._memory.read(self._memory.study(study_id))

    def close(self) -> None:
        """Write everything and stop the thread; the end of the program does the same.

        Trials that were reserved and never asked for are recorded as failed.
        """
        with self._lock:
            for study in self._memory.studies():
                while study.reserved:
                    self._end(study.reserved.pop(), TrialState.FAIL, None)
        self.flush()
        self._finish()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Let the trials that are told in the block be written together at its end."""
        depth = getattr(self._batches, "depth", 0)
        self._batches.depth = depth + 1
        try:
            yield
        finally:
            self._batches.depth = depth
            if not depth:
                self.flush()

    def reserve(
        self, study_id: int, n: int, *, user_attrs: Mapping[str, Any] | None = None
    ) -> None:
        """Create the next ``n`` trials in one transaction; they count as running from now on.

        Args:
            study_id:
                Of their study.
            n:
                How many, with those that are reserved already.
            user_attrs:
                For each of the new ones.
        """
        with self._lock:
            study = self._memory.study(study_id)
            missing = n - len(study.reserved)
            if missing > 0:
                self._create(study, missing, user_attrs or {})

    # Studies: the database is written at once, because this is seldom.

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        return self.backend.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self.flush()
        self.backend.delete_study(study_id)
        with self._lock:
            self._memory.forget(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self.backend.set_study_user_attr(study_id, key, value)
        with self._lock:
            self._memory.study(study_id).user_attrs[key] = json.loads(json.dumps(value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.backend.set_study_system_attr(study_id, key, value)
        with self._lock:
            self._memory.study(study_id).system_attrs[key] = json.loads(json.dumps(value))

    def get_study_id_from_name(self, study_name: str) -> int:
        return self.backend.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        with self._lock:
            return self._memory.study(study_id).name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        with self._lock:
            return self._memory.study(study_id).directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        with self._lock:
            return {**self._memory.fresh(study_id).user_attrs}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        with self._lock:
            return {**self._memory.fresh(study_id).system_attrs}

    def get_all_studies(self) -> list[Any]:
        return self.backend.get_all_studies()

    # Trials, which change by being replaced: a list that was handed out stays as it was.

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        with self._lock:
            study = self._memory.study(study_id)
            if template_trial is not None:
                trial_id = self.backend.create_new_trial(study_id, template_trial)
                self._memory.read(study)
                return trial_id
            if not study.reserved:
                self._create(study, 1, {})
            return study.reserved.pop(0)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        with self._lock:
            trial, study = self._updatable(trial_id)
            known, text = study.distributions.get(param_name, (None, ""))
            if known is None or known != distribution:
                if known is not None:
                    check_distribution_compatibility(known, distribution)
                text = distribution_to_json(distribution)
                study.distributions[param_name] = (distribution, text)
            if trial_id in self._memory.own:
                columns = (param_value_internal, text)
                self._pend("trial_params", trial_id, param_name, *columns, known=trial.params)
            else:
                self.backend.set_trial_param(
                    trial_id, param_name, param_value_internal, distribution
                )
            value = distribution.to_external_repr(param_value_internal)
            trial.params = {**trial.params, param_name: value}
            trial.distributions = {**trial.distributions, param_name: distribution}
            study.replace(trial)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        with self._lock:
            trial, study = self._updatable(trial_id)
            if trial_id in self._memory.own:
                table, known = "trial_intermediate_values", trial.intermediate_values
                self._pend(table, trial_id, step, intermediate_value, known=known)
            else:
                self.backend.set_trial_intermediate_value(trial_id, step, intermediate_value)
            trial.intermediate_values = {**trial.intermediate_values, step: intermediate_value}
            study.replace(trial)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        with self._lock:
            trial, study = self._updatable(trial_id)
            text = json.dumps(value)
            if trial_id in self._memory.own:
                self._pend("trial_user_attributes", trial_id, key, text, known=trial.user_attrs)
            else:
                self.backend.set_trial_user_attr(trial_id, key, value)
            trial.user_attrs = {**trial.user_attrs, key: json.loads(text)}
            study.replace(trial)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        with self._lock:
            trial, study = self._updatable(trial_id)
            text, known = json.dumps(value), trial.system_attrs
            if trial_id in self._memory.own:
                self._pend("trial_system_attributes", trial_id, key, text, known=known)
            else:
                self.backend.set_trial_system_attr(trial_id, key, value)
            trial.system_attrs = {**known, key: json.loads(text)}
            study.replace(trial)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if not state.is_finished():
            self.flush()  # the database decides who claims a waiting trial
        with self._lock:
            _, study = self._updatable(trial_id)
            if trial_id not in self._memory.own or not state.is_finished():
                changed = self.backend.set_trial_state_values(trial_id, state, values)
                if changed:
                    self._memory.own.discard(trial_id)
                    if state == TrialState.RUNNING:
                        self._memory.own.add(trial_id)
                self._memory.put(study, self.backend.get_trial(trial_id))
                return changed
            self._end(trial_id, state, values)
        if not getattr(self._batches, "depth", 0):
            self.flush()
        return True

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._lock:
            study, number = self._memory.place(trial_id)
            if trial_id in study.foreign:
                self._memory.put(study, self.backend.get_trial(trial_id))
            return study.trials[number]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        with self._lock:
            study = self._memory.study(study_id)
            if trial_number < len(study.trials):
                return study.trials[trial_number]._trial_id
        return self.backend.get_trial_id_from_study_id_trial_number(study_id, trial_number)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        with self._lock:
            trials = self._memory.fresh(study_id).select(states)
        return copy.deepcopy(trials) if deepcopy else trials

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        with self._lock:
            study = self._memory.fresh(study_id)
            if len(study.directions) > 1:
                raise RuntimeError(
                    "Best trial can be obtained only for single-objective optimization."
                )
            if study.best is None:
                raise ValueError("No trials are completed yet.")
            return study.best

    def remove_session(self) -> None:
        self.backend.remove_session()

    def _create(self, study: StudyMemory, n: int, user_attrs: Mapping[str, Any]) -> None:
        if n == 1 and not user_attrs:
            created = [self.backend._create_new_trial(study.id)]  # as Optuna's own cache does
        else:
            texts = {key: json.dumps(value) for key, value in user_attrs.items()}
            created = [running_trial(*row) for row in self._writer.create(study.id, n, texts)]
            for trial in created:
                trial.user_attrs = {key: json.loads(text) for key, text in texts.items()}
        ids = [trial._trial_id for trial in created]
        self._memory.own.update(ids)
        if created[0].number == len(study.trials):
            for trial in created:
                self._memory.put(study, trial)
        else:  # others have created some, too
            self._memory.read(study, created)
        study.reserved += ids

    def _end(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> None:
        """End a trial of this storage."""
        trial, study = self._updatable(trial_id)
        trial.state = state
        if values is not None:
            trial.values = [*values]
            for objective, value in enumerate(values):
                self._pend("trial_values", trial_id, objective, value)
        trial.datetime_complete = datetime.now()
        self._writer.pending.ends[trial_id] = End(state=state, at=trial.datetime_complete)
        self._memory.own.remove(trial_id)
        study.replace(trial)

    def _updatable(self, trial_id: int) -> tuple[FrozenTrial, StudyMemory]:
        """Return a copy of a trial that has not ended."""
        study, number = self._memory.place(trial_id)
        trial = study.trials[number]
        self.check_trial_is_updatable(trial_id, trial.state)
        return copy.copy(trial), study

    def _pend(
        self,
        table: str,
        trial_id: int,
        key: str | int,
        *columns: object,
        known: Container[str | int] = (),
    ) -> None:
        """Let a row be written; ``known`` are the keys that the trial has in the table."""
        self._writer.pending.put(table, trial_id, key, *columns, replaces=key in known)
