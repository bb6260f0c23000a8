"""A study as a batch of trials needs it."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import nullcontext
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import Trial
from optuna.trial import TrialState

from optuna_ext._bulk import BulkStorage
from optuna_ext.samplers import _host
from optuna_ext.storage import bulk_storage


@contextmanager
def running(study: Study) -> Iterator[Study]:
    """Give the same study on a storage that writes in bulk, in which ``study.stop()`` works.

    Everything is written in the end.
    """
    given = _host.storage_of(study)
    storage = bulk_storage(given)
    if not isinstance(storage, BulkStorage) or storage is given:
        with _host.optimizing(study):
            yield study
        return
    fast = optuna.load_study(
        study_name=study.study_name, storage=storage, sampler=study.sampler, pruner=study.pruner
    )
    with _host.optimizing(fast), storage:
        yield fast


def ask(study: Study, n: int, *, note: Mapping[str, Any]) -> Iterator[Trial]:
    """Ask for trials one by one, of which all get the user attributes ``note``."""
    storage = _host.storage_of(study)
    if isinstance(storage, BulkStorage):
        waiting = _host.all_trials(study, states=(TrialState.WAITING,))
        n_new = max(0, n - len(waiting))
        storage.reserve(_host.study_id_of(study), n_new, user_attrs=note)
    for _ in range(n):
        trial = study.ask()
        for key, value in note.items():
            if trial.user_attrs.get(key) != value:
                trial.set_user_attr(key, value)
        yield trial


def telling(study: Study) -> AbstractContextManager[Any]:
    """Return a context in which trials that are told are written together."""
    storage = _host.storage_of(study)
    return storage.batch() if isinstance(storage, BulkStorage) else nullcontext()
