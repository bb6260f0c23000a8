from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial
from optuna.trial import Trial
import torch
from torch.utils._pytree import tree_map_only

from optuna_ext._logs import get_logger
from optuna_ext.fused._training import Training
from optuna_ext.ladder import RUNG
from optuna_ext.lineage import parent_of
from optuna_ext.lineage import RESUMED
from optuna_ext.samplers._slots import GENERATION
from optuna_ext.samplers._slots import MEMBER


_logger = get_logger(__name__)

States = Sequence[Mapping[str, Any]]
"""What a checkpoint needs of a trial, fold by fold."""


class LostParentError(ValueError):
    """Neither a trial's parent nor any other of its ancestors is at hand."""


@dataclass(kw_only=True)
class Parent:
    """What another trial needs of one that it goes on from.

    Args:
        progress: How far it has come: see :meth:`Training.state_dict`.
        notes: What samplers have noted about it.
        shapes: Those of its weights, by name.
        is_paused: Whether the pruner has ended it and nobody has gone on from it yet.
        states: Its weights; ``None`` while they lie in the slot where it was trained.
    """

    progress: Mapping[str, Any]
    notes: Mapping[str, Any]
    shapes: Mapping[str, Sequence[int]]
    is_paused: bool
    states: States | None = None

    @classmethod
    def of(cls, training: Training, *, is_paused: bool, states: States | None = None) -> Parent:
        """Take note of where a training stands."""
        names = [name for name in (MEMBER, GENERATION, RUNG) if name in training.noted]
        return cls(
            progress=training.state_dict(),
            notes={name: training.noted[name] for name in names},
            shapes=training.shapes,
            is_paused=is_paused,
            states=states,
        )


class Parents:
    """Trials that have ended, as long as another one may go on from them.

    Members of a population are kept until all members have begun the next generation, which
    chooses its parents among them. Paused trials are kept until one that has gone on from them
    has ended well. All others are kept until their slot is taken or the next epoch begins.

    Weights stay in their slots as long as possible, and are then kept in the memory of the CPU.
    """

    def __init__(self) -> None:
        self._known: dict[int, Parent] = {}
        self._begun: dict[int, int] = {}  # the last generation, by member
        self._awaited: dict[int, int] = {}  # parents by children that have no slot yet

    def expect(self, notes: Mapping[str, Any]) -> None:
        """Take note that a trial with these user attributes is about to begin or to go on."""
        if MEMBER in notes:
            self._begun[notes[MEMBER]] = notes[GENERATION]

    def origin_of(
        self,
        trial: Trial,
        stored: FrozenTrial,
        read: Callable[[FrozenTrial], Parent | None],
    ) -> tuple[int, int] | None:
        """Return from which trial one goes on, and after which epoch; ``None`` for a newborn.

        That is its parent. After a crash it may be an earlier ancestor, whose weights are the last
        that were kept.

        Args:
            trial:
                The trial.
            stored:
                What the study knows of it.
            read:
                Gives an ancestor that was trained elsewhere, if that is possible.

        Raises:
            LostParentError: If there is none.
        """
        ancestor = parent = parent_of(stored)
        if parent is None:
            return None
        seen: set[int] = set()
        while ancestor is not None and ancestor not in self._known and ancestor not in seen:
            seen.add(ancestor)
            trials = trial.study.get_trials(deepcopy=False)
            if not 0 <= ancestor < len(trials):
                ancestor = None
            elif (found := read(trials[ancestor])) is not None:
                self._known[ancestor] = found
            else:
                ancestor = parent_of(trials[ancestor])
        if ancestor is None or ancestor not in self._known:
            raise LostParentError(
                f"parent must be a trial whose weights are at hand, but trial {trial.number} has "
                f"parent {parent}: `checkpoint` must be the file of the run that has trained it, "
                "or `store` where it was kept."
            )
        if ancestor != parent:
            _logger.warning(
                "Trial %d goes on from trial %d, as the weights of its parent, trial %d, are lost",
                *(trial.number, ancestor, parent),
            )
        return ancestor, self._known[ancestor].progress["epoch"]

    def begin(self, training: Training, *, is_known: bool) -> None:
        """Take note of a trial that begins, or that goes on after a crash.

        Its parent stays until :meth:`serve`.
        """
        trial = training.trial
        if training.parent is None or is_known:
            return
        parent = self._known[training.parent]
        if training.shapes != parent.shapes:
            raise ValueError(
                f"parent must have a network of the same shapes, but trial {trial.number} has "
                f"parent {training.parent}, whose shapes differ."
            )
        self._awaited[trial.number] = training.parent
        training.load_state_dict(parent.progress)
        trial.set_user_attr(RESUMED, {"trial": training.parent, "step": training.epoch})

    def serve(self, training: Training) -> Parent | None:
        """Return what a trial that has begun goes on from; from then on it needs it no more."""
        number = self._awaited.pop(training.trial.number, None)
        return None if number is None else self._known.get(number)  # which may be lost by now

    def end(self, training: Training, *, is_paused: bool, failed: bool) -> None:
        """Take note of a trial that has ended."""
        if failed:
            return
        self._known[training.trial.number] = Parent.of(training, is_paused=is_paused)
        if training.parent in self._known:
            self._known[training.parent].is_paused = False

    def leave(self, number: int, states: Callable[[], States]) -> None:
        """Take note that the slot of a trial is about to be overwritten."""
        if number in self._known and self._is_wanted(number):
            self._known[number].states = _on_cpu(states())
        else:
            self._known.pop(number, None)

    def lose(self, numbers: Iterable[int]) -> None:
        """Take note that slots are gone, with all that was in them."""
        for number in numbers:
            self._known.pop(number, None)

    def tidy(self) -> None:
        """Forget whom nobody will ask for anymore."""
        kept = {n for n, p in self._known.items() if p.states is None or self._is_wanted(n)}
        self._known = {number: self._known[number] for number in kept}

    @property
    def are_wanted(self) -> bool:
        """Whether a later run may ask for one of them."""
        return any(self._is_wanted(number) for number in self._known)

    def _is_wanted(self, number: int) -> bool:
        parent = self._known[number]
        if number in self._awaited.values():
            return True
        if MEMBER in parent.notes:
            return bool(parent.notes[GENERATION] >= min(self._begun.values(), default=0))
        return parent.is_paused and RUNG in parent.notes

    def state_dict(self, states: Mapping[int, States]) -> dict[str, Any]:
        """Return what another process needs; ``states`` are those in slots."""
        known = {
            number: vars(dataclasses.replace(parent, states=parent.states or states[number]))
            for number, parent in self._known.items()
        }
        return {"known": known, "begun": self._begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what another process has left."""
        self._known = {number: Parent(**fields) for number, fields in state["known"].items()}
        self._begun = dict(state["begun"])

    def add(self, number: int, fields: Mapping[str, Any]) -> None:
        """Take in a trial that has ended since another process has written where it stands."""
        self._known[number] = Parent(**fields)


def _on_cpu(states: States) -> States:
    moved: States = tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), states)
    return moved
