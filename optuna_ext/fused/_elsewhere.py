"""Parents that were trained one by one, by an objective with a store of checkpoints."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial
from optuna.trial import Trial
import torch

from optuna_ext._logs import get_logger
from optuna_ext.checkpoints import CheckpointError
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.fused._member import Member
from optuna_ext.fused._parents import Parent
from optuna_ext.fused._problem import Problem
from optuna_ext.fused._training import members_of
from optuna_ext.fused._training import shapes_of
from optuna_ext.lineage import Checkpoint


_logger = get_logger(__name__)


class Elsewhere:
    """Reads where trials were left that were not trained here.

    Args:
        store: Where they have kept their checkpoints; ``None`` if they have not.
        problem: What trains here.
        folds: How many networks a trial has.
        device: Where they train.
    """

    def __init__(
        self,
        store: CheckpointStore | None,
        problem: Problem,
        *,
        folds: int,
        device: torch.device,
    ) -> None:
        self._store = store
        self._problem = problem
        self._folds = folds
        self._device = device

    def read(self, heir: Trial, hyperparameters: Any, trial: FrozenTrial) -> Parent | None:
        """Read where a trial was left; ``None`` if its heir cannot go on from there."""
        if self._store is None or Checkpoint.of(trial) is None:
            return None
        members = members_of(self._problem, heir, hyperparameters, folds=self._folds)
        orders = [torch.Generator(self._device).manual_seed(member.seed) for member in members]
        things: dict[str, Any] = {}
        for fold, (member, order) in enumerate(zip(members, orders, strict=True)):
            own = {"model": member.model, "optimizer": member.optimizer, "generator": order}
            things |= {f"{name}_{fold}" if fold else name: thing for name, thing in own.items()}
        try:
            step = _load(self._store, trial, things)
        except CheckpointError as error:
            _logger.warning("Trial %d cannot go on: %s", heir.number, error)
            return None
        return Parent(
            progress={"epoch": step, "value": trial.intermediate_values.get(step), "notes": {}},
            notes={},
            shapes=shapes_of(members[0]),
            is_paused=False,
            states=[
                _state(member, order, step) for member, order in zip(members, orders, strict=True)
            ],
        )


def _state(member: Member, order: torch.Generator, step: int) -> dict[str, Any]:
    """Give what :meth:`Population.load` takes."""
    return {
        "model": member.model.state_dict(),
        "optimizer": member.optimizer.state_dict(),
        "buffers": {},
        "generator": order.get_state(),
        "epoch": step,
        "step": step,  # so that what is random in layers is not that of a newborn
    }


def _load(store: CheckpointStore, trial: FrozenTrial, things: dict[str, Any]) -> int:
    """Load everything, or all but the order of the rows, which not every objective keeps."""
    try:
        return store.load(trial, **things)
    except CheckpointError:
        least = {n: thing for n, thing in things.items() if not isinstance(thing, torch.Generator)}
        return store.load(trial, **least)
