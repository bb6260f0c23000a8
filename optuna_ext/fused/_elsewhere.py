"""Trials that an objective trains one by one and keeps in a store, before ours or after them."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import Trial
from optuna.trial import TrialState
import torch

from optuna_ext._logs import get_logger
from optuna_ext.checkpoints import CheckpointError
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.fused._member import Member
from optuna_ext.fused._parents import Parent
from optuna_ext.fused._parents import States
from optuna_ext.fused._problem import Problem
from optuna_ext.fused._training import members_of
from optuna_ext.fused._training import shapes_of
from optuna_ext.fused._training import Training
from optuna_ext.ladder import RUNG
from optuna_ext.lineage import Checkpoint
from optuna_ext.samplers._slots import MEMBER


_logger = get_logger(__name__)


class Elsewhere:
    """Reads where trials were left that were not trained here, and keeps those that were.

    Args:
        store: Where they are kept; ``None`` if nowhere.
        problem: What trains here.
        folds: How many networks a trial has.
    """

    def __init__(self, store: CheckpointStore | None, problem: Problem, *, folds: int) -> None:
        self._store = store
        self._problem = problem
        self._folds = folds
        self._best: list[float] | None = None  # losses of the best that are kept, in order

    def read(self, heir: Trial, hyperparameters: Any, trial: FrozenTrial) -> Parent | None:
        """Read where a trial was left; ``None`` if its heir cannot go on from there."""
        checkpoint = Checkpoint.of(trial)
        if self._store is None or checkpoint is None:
            return None
        step = checkpoint.step
        members = members_of(self._problem, heir, hyperparameters, folds=self._folds)
        try:
            kept = self._store.states(trial)
            states = [
                self._state(kept, fold, member, step=step) for fold, member in enumerate(members)
            ]
        except (CheckpointError, ValueError, RuntimeError) as error:  # of torch's
            _logger.warning("Trial %d cannot go on: %s", heir.number, error)
            return None
        progress: dict[str, Any] = {"value": trial.intermediate_values.get(step), "notes": {}}
        match kept.get("progress"):
            case {"value": float() | None as value, "notes": dict() as notes}:
                progress = {"value": value, "notes": notes}
        return Parent(
            progress={**progress, "epoch": step},
            notes={},
            shapes=shapes_of(members[0]),
            is_paused=False,
            states=states,
        )

    def _state(
        self, kept: Mapping[str, Any], fold: int, member: Member, *, step: int
    ) -> dict[str, Any]:
        """Give what :meth:`Population.load` takes."""
        for name, thing in {"model": member.model, "optimizer": member.optimizer}.items():
            if _key(name, fold) not in kept:
                raise ValueError(f"its parent has kept {sorted(kept)}, but no {name!r}.")
            thing.load_state_dict(kept[_key(name, fold)])  # type: ignore[attr-defined]
        order = torch.Generator().manual_seed(member.seed).get_state()
        saved = kept.get(_key("generator", fold))  # which not every objective keeps
        return {
            "model": member.model.state_dict(),
            "optimizer": member.optimizer.state_dict(),
            "buffers": {},
            "generator": order if saved is None or saved.shape != order.shape else saved,
            "epoch": step,
            "step": step,  # so that what is random in layers is not that of a newborn
        }

    def keep(
        self, training: Training, states: Callable[[], States], *, is_paused: bool = False
    ) -> None:
        """Keep a trial that ends now if others may go on from it, or if it is one of the best.

        Args:
            training: The trial.
            states: Gives what :meth:`Population.state_of` does, fold by fold.
            is_paused: Whether the pruner ends it.
        """
        if self._store is None:
            return
        is_wanted = (
            RUNG in training.noted
            if is_paused
            else self._is_among_best(training, n=self._store.keep)
        )
        if is_wanted or MEMBER in training.noted:
            things: dict[str, Any] = {"progress": training}
            for fold, (member, state) in enumerate(zip(training.members, states(), strict=True)):
                member.model.load_state_dict(state["model"])
                member.optimizer.load_state_dict(state["optimizer"])
                order = torch.Generator()
                order.set_state(state["generator"])
                own = {"model": member.model, "optimizer": member.optimizer, "generator": order}
                things |= {_key(name, fold): thing for name, thing in own.items()}
            self._store.save(training.trial, training.epoch, **things)

    def _is_among_best(self, training: Training, *, n: int) -> bool:
        sign = -1.0 if training.maximize else 1.0
        if self._best is None:
            self._best = sorted(sign * value for value in _kept_values(training.trial.study))
        insort(self._best, loss := sign * (training.value or 0.0))
        del self._best[n:]
        return loss in self._best


def _key(name: str, fold: int) -> str:
    return f"{name}_{fold}" if fold else name


def _kept_values(study: Study) -> list[float]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [t.value for t in trials if Checkpoint.of(t) is not None and t.value is not None]
