"""The only file that touches Optuna's private attributes, each for a reason given here."""

from __future__ import annotations

from contextlib import contextmanager
import copy
import hashlib
from typing import Any
from typing import Generic
from typing import TYPE_CHECKING
from typing import TypeVar
import weakref

import optuna
from optuna.trial import Trial
from optuna.trial import TrialState

from optuna_ext._bulk import BulkStorage
from optuna_ext._sqlite import SQLiteStorage


if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Container
    from collections.abc import Iterator
    from collections.abc import Mapping

    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

_T = TypeVar("_T")
_PLAN = "optuna_ext:plan"


class StudyCache(Generic[_T]):
    """What a sampler remembers of each study, for as long as the study's storage lives.

    Studies are told apart by storage and id: a bracket's view is a new object at every call, and
    names may repeat across storages. A pickle leaves everything behind.
    """

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[BaseStorage, dict[int, _T]] = (
            weakref.WeakKeyDictionary()
        )

    def __reduce__(self) -> tuple[type[StudyCache[_T]], tuple[()]]:
        return type(self), ()

    def get(self, study: Study, make: Callable[[], _T]) -> _T:
        """Return what is kept of the study; if there is nothing yet, keep what ``make`` gives."""
        kept = self._kept.get(study._storage)
        if kept is None:
            kept = self._kept.setdefault(study._storage, {})
        if study._study_id not in kept:
            kept[study._study_id] = make()
        return kept[study._study_id]


def all_trials(study: Study, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
    """Return the study's trials in order of their numbers, not copied: treat them as read-only.

    Under ``HyperbandPruner`` a sampler is handed one bracket's view of the study, whose public
    ``get_trials`` hides the trials of the other brackets; a design runs over all of them.
    """
    return study._storage.get_all_trials(study._study_id, deepcopy=False, states=states)


def trial_key(study: Study, trial: FrozenTrial) -> tuple[int, int, int]:
    """Return a key for what is kept about a trial while it runs."""
    return id(study._storage), study._study_id, trial.number


def set_trial_user_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Write a user attribute of a running trial.

    ``FrozenTrial.set_user_attr`` inside a sampler's hook changes a copy and is lost. The copy is
    what the objective and the pruner get to see, so it is changed, too.
    """
    set_trial_user_attrs(study, trial, {key: value})


def set_trial_user_attrs(study: Study, trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
    """Write several of them in order, and where the storage is ours, in one transaction."""
    backend = getattr(study._storage, "_backend", None)  # what Optuna's cache passes them on to
    if isinstance(backend, SQLiteStorage):
        backend.set_trial_user_attrs(trial._trial_id, attrs)
    else:
        for key, value in attrs.items():
            study._storage.set_trial_user_attr(trial._trial_id, key, value)
    trial.user_attrs.update(attrs)


def exchange(study: Study) -> None:
    """Let other processes see what was written, and see what they wrote, on every storage.

    Only a bulk storage keeps both back for a while.
    """
    if isinstance(study._storage, BulkStorage):
        study._storage.exchange(study._study_id)


def fail_trial(study: Study, trial: FrozenTrial) -> None:
    """End a running trial that cannot begin, as failed."""
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def fail_stale_trials(study: Study) -> None:
    """Fail the trials whose workers' heartbeats have stopped, and retry them if so configured.

    ``optuna.storages.fail_stale_trials`` without its warning that it is experimental; it does
    nothing where the storage has no heartbeats.
    """
    optuna.storages.fail_stale_trials.__wrapped__(study)  # type: ignore[attr-defined]


def is_optimizing(study: Study) -> bool:
    """Return whether this thread runs ``Study.optimize``, which has one trial at a time."""
    whole = getattr(study, "_study", study)  # of a bracket
    return bool(whole._thread_local.in_optimize_loop)


@contextmanager
def optimizing(study: Study) -> Iterator[None]:
    """Let ``study.stop()`` work inside, and refuse a ``Study.optimize`` there.

    Raises:
        RuntimeError: If this thread runs ``Study.optimize`` already.
    """
    if study._thread_local.in_optimize_loop:
        raise RuntimeError("Nested invocation of optimize isn't allowed.")
    study._stop_flag = False
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = False


def is_stopped(study: Study) -> bool:
    """Return whether somebody has called ``study.stop()``."""
    return study._stop_flag


def storage_of(study: Study) -> BaseStorage:
    """Return where a study is stored."""
    return study._storage


def study_id_of(study: Study) -> int:
    """Return the number under which a study is stored."""
    return study._study_id


def stored(trial: Trial) -> FrozenTrial:
    """Return what is stored of a trial; what samplers have noted, the trial itself cannot tell."""
    return trial.study._storage.get_trial(trial._trial_id)


def go_on_with(study: Study, trial: FrozenTrial) -> Trial:
    """Return a running trial as ``study.ask()`` did."""
    return Trial(study, trial._trial_id)


def seed_of(study: Study, seed: int | None) -> int:
    """Return the given seed, else a 64-bit one on which all workers agree without talking."""
    if seed is not None:
        return seed
    return int.from_bytes(hashlib.sha256(study.study_name.encode()).digest()[:8], "little")


def set_trial_plan(study: Study, trial: FrozenTrial, plan: dict[str, float]) -> None:
    """Let all workers see the coordinates that a running trial is going to.

    It is a system attribute, as of Optuna's own samplers: no user asked for it.
    """
    study._storage.set_trial_system_attr(trial._trial_id, _PLAN, plan)


def plan_of(trial: FrozenTrial) -> dict[str, float]:
    """Return the coordinates that a trial is known to be going to."""
    plan: dict[str, float] = trial.system_attrs.get(_PLAN, {})
    return plan


def fixed_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that were given to the trial by ``Study.enqueue_trial``."""
    params: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    return params


def is_enqueued(trial: FrozenTrial) -> bool:
    """Return whether parameters were given to the trial by ``Study.enqueue_trial``."""
    return "fixed_params" in trial.system_attrs


def retried_number(trial: FrozenTrial) -> int | None:
    """Return the number of the stale trial that this one repeats, or None.

    The same as ``RetryHeartbeatStaleTrialCallback.retried_trial_number``, which warns at every
    call that it is experimental.
    """
    number: int | None = trial.system_attrs.get("failed_trial")
    return number


class _SingleObjective:
    """Stands in for the study in Optuna's crossovers.

    All they ask is whether there are several objectives, which a bracket's view of the study
    under ``HyperbandPruner`` would not answer.
    """

    def _is_multi_objective(self) -> bool:
        return False


SINGLE_OBJECTIVE: Any = _SingleObjective()


class Lens:
    """A storage with another list of trials; everything else is the storage's own.

    Samplers read a study's trials from its storage, each in its own way.

    Args:
        study: The one that is looked at.
        read: Returns its trials as they are to be seen, in order of their numbers.
    """

    def __init__(self, study: Study, read: Callable[[], list[FrozenTrial]]) -> None:
        self._storage = study._storage
        self._read = read

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        del study_id
        trials = self._read()
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def seen_through(study: Study, lens: Lens) -> Study:
    """Return the study with the trials that a lens shows."""
    view = copy.copy(study)  # with a cache of trials of its own
    view._storage = lens  # type: ignore[assignment]
    view.stop = study.stop  # type: ignore[method-assign]
    return view
