"""The only file that touches Optuna's private attributes, each for a reason given here."""

from __future__ import annotations

import hashlib
from typing import Any
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState


if TYPE_CHECKING:
    from collections.abc import Container

    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial


def all_trials(study: Study, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
    """Return the study's trials in order of their numbers, not copied: treat them as read-only.

    Under ``HyperbandPruner`` a sampler is handed one bracket's view of the study, whose public
    ``get_trials`` hides the trials of the other brackets; a design runs over all of them.
    """
    return study._storage.get_all_trials(study._study_id, deepcopy=False, states=states)


def identity(study: Study) -> tuple[BaseStorage, int]:
    """Return what tells a study from every other one in this process.

    A bracket's view is a new object at every call and names may repeat across storages.
    """
    return study._storage, study._study_id


def trial_key(study: Study, trial: FrozenTrial) -> tuple[int, int, int]:
    """Return a key for what is kept about a trial while it runs."""
    return id(study._storage), study._study_id, trial.number


def set_trial_user_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Write a user attribute of a running trial.

    ``FrozenTrial.set_user_attr`` inside a sampler's hook changes a copy and is lost. The copy is
    what the objective and the pruner get to see, so it is changed, too.
    """
    study._storage.set_trial_user_attr(trial._trial_id, key, value)
    trial.user_attrs[key] = value


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


def seed_of(study: Study, seed: int | None) -> int:
    """Return the given seed, else a 64-bit one on which all workers agree without talking."""
    if seed is not None:
        return seed
    return int.from_bytes(hashlib.sha256(study.study_name.encode()).digest()[:8], "little")


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
