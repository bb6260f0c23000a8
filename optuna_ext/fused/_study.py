"""A study as a batch of trials needs it; what of it is private in Optuna is touched here only."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from contextlib import nullcontext
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import Trial

from optuna_ext._bulk import BulkStorage
from optuna_ext.storage import bulk_storage


@contextmanager
def running(study: Study) -> Iterator[Study]:
    """Give the same study on a storage that writes in bulk, in which ``study.stop()`` works.

    Everything is written in the end.
    """
    storage = bulk_storage(study._storage)
    mine = isinstance(storage, BulkStorage) and storage is not study._storage
    fast = study
    if mine:
        fast = optuna.load_study(
            study_name=study.study_name,
            storage=storage,
            sampler=study.sampler,
            pruner=study.pruner,
        )
    if fast._thread_local.in_optimize_loop:
        raise RuntimeError("Nested invocation of optimize isn't allowed.")
    fast._stop_flag = False
    fast._thread_local.in_optimize_loop = True
    try:
        with storage if isinstance(storage, BulkStorage) and mine else nullcontext():
            yield fast
    finally:
        fast._thread_local.in_optimize_loop = False


def is_stopped(study: Study) -> bool:
    """Whether somebody called ``study.stop()``."""
    return study._stop_flag


def ask(study: Study, n: int, *, note: Mapping[str, Any]) -> Iterator[Trial]:
    """Ask for trials one by one, of which all get the user attributes ``note``."""
    storage = study._storage
    if isinstance(storage, BulkStorage):
        waiting = storage.get_all_trials(
            study._study_id, deepcopy=False, states=(optuna.trial.TrialState.WAITING,)
        )
        storage.reserve(study._study_id, max(0, n - len(waiting)), user_attrs=note)
    for _ in range(n):
        trial = study.ask()
        for key, value in note.items():
            if trial.user_attrs.get(key) != value:
                trial.set_user_attr(key, value)
        yield trial


def telling(study: Study) -> Any:
    """Return a context in which trials that are told are written together."""
    storage = study._storage
    return storage.batch() if isinstance(storage, BulkStorage) else nullcontext()


def go_on_with(study: Study, trial: FrozenTrial) -> Trial:
    """Return a running trial as ``study.ask()`` did."""
    return Trial(study, trial._trial_id)


def frozen(trial: Trial) -> FrozenTrial:
    """Return what is stored of a trial."""
    return trial.study._storage.get_trial(trial._trial_id)
