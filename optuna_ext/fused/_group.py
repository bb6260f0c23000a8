from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from typing import Literal

import torch
from torch import Tensor

from optuna_ext.fused._member import Member
from optuna_ext.fused._parents import Parents
from optuna_ext.fused._parents import States
from optuna_ext.fused._population import Population
from optuna_ext.fused._problem import Fold
from optuna_ext.fused._randomness import is_counter
from optuna_ext.fused._training import mean
from optuna_ext.fused._training import Training


_ROOMY = 2  # times the slots in use, from which on a population is made anew
_OUTGROWN = 2  # times the slots for which an engine was chosen, from which on it is chosen anew

Metrics = Mapping[str, Callable[..., Tensor]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How populations are made: see :class:`~optuna_ext.fused.Trainer`."""

    loss: Callable[..., Tensor]
    metrics: Metrics
    device: torch.device
    engine: str
    amp: bool
    compile: bool


class Group:
    """Trials whose networks make one program, a population per fold.

    Args:
        settings:
            How populations are made.
        folds:
            The rows.
        passes:
            How often an epoch goes through them.
    """

    def __init__(self, settings: Settings, folds: Sequence[Fold], *, passes: int) -> None:
        self._settings = settings
        self._folds = folds
        self._passes = passes
        self._engine = settings.engine
        self._choice = ""
        self._chosen_for = 0  # slots
        self.slots: list[Training | None] = []
        self._ended: dict[int, int] = {}  # slots of trials that have ended, by number
        self.populations: list[Population] = []

    @property
    def active(self) -> dict[int, Training]:
        """The trials in training, by slot."""
        return {slot: training for slot, training in enumerate(self.slots) if training}

    @property
    def reason(self) -> str:
        """Why the engine was chosen, as those found that chose it; whether it replays steps."""
        population = self.populations[0]
        return f"{self._choice or population.choice} {population.recording}".rstrip()

    def add(self, trainings: Sequence[Training], parents: Parents) -> None:
        """Begin with trials.

        Args:
            trainings:
                The trials.
            parents:
                Those from which they go on, if they do.
        """
        needed = len(self.active) + len(trainings)
        if not needed <= len(self.slots) <= _ROOMY * needed:
            # Who grows once will again: the numbers of a group vary as slots are refilled.
            self.leave(self.ended, parents)
            self._resize(needed + (needed // 8 if self.slots else 0), trainings[0].members)
        free = [slot for slot, training in enumerate(self.slots) if training is None]
        begun = dict(zip(free, trainings, strict=False))
        heirs = {
            slot: self._ended[t.parent] for slot, t in begun.items() if t.parent in self._ended
        }
        for slot in heirs:
            parents.serve(begun[slot])
        self.leave([n for n, slot in self._ended.items() if slot in begun], parents)
        for population in self.populations if heirs else ():
            population.copy([*heirs.values()], [*heirs])
        for slot, training in begun.items():
            self._admit(slot, training, goes_on=slot in heirs)
            if (parent := parents.serve(training)) is not None:
                self._inherit(slot, parent.states or ())

    def _admit(self, slot: int, training: Training, *, goes_on: bool = False) -> None:
        self.slots[slot] = training
        for population, member in zip(self.populations, training.members, strict=True):
            population.admit(slot, member, goes_on=goes_on)

    def _inherit(self, slot: int, states: States) -> None:
        """Go on from what a trial has left that lies in no slot here."""
        for population, state in zip(self.populations, states, strict=True):
            buffers = population.state_of(slot)["buffers"]
            buffers |= {n: tensor for n, tensor in state["buffers"].items() if is_counter(n)}
            population.load(slot, {**state, "buffers": buffers})

    def state_of(self, slot: int) -> list[dict[str, Any]]:
        """Return what a checkpoint needs, fold by fold."""
        return [population.state_of(slot) for population in self.populations]

    def load(self, slot: int, states: States) -> None:
        """Put a trial back to what :meth:`state_of` gave."""
        for population, state in zip(self.populations, states, strict=True):
            population.load(slot, state)

    @property
    def ended(self) -> list[int]:
        """The numbers of the trials that have ended and are still in their slots."""
        return [*self._ended]

    def states_of_ended(self) -> dict[int, States]:
        """Return what a checkpoint needs of these, by number."""
        return {number: self.state_of(slot) for number, slot in self._ended.items()}

    def remove(self, training: Training) -> int:
        """Free the slot of a trial and return it; what is in it stays until another takes it."""
        slot = self.slots.index(training)
        self.slots[slot] = None
        self._ended[training.trial.number] = slot
        return slot

    def leave(self, numbers: Iterable[int], parents: Parents) -> None:
        """Let trials that have ended leave their slots, which will be overwritten."""
        for number in numbers:
            parents.leave(number, partial(self.state_of, self._ended.pop(number)))

    def release(self, parents: Parents) -> None:
        """Forget what is left in free slots, and drop them once half of the slots are free."""
        self.leave(self.ended, parents)
        for population in self.populations:
            for slot in population.taken:
                if self.slots[slot] is None:
                    population.release(slot)
        active = self.active
        if 0 < _ROOMY * len(active) <= len(self.slots):
            for population in self.populations:
                population.compact([*active])
            self.slots = [*active.values()]

    def _resize(self, n: int, template: Sequence[Member]) -> None:
        """Make new populations with room for ``n`` and move the trials there."""
        chosen = self.populations[0].engine if self.populations else self._settings.engine
        if chosen != self._settings.engine and n < _OUTGROWN * self._chosen_for:
            # Is not chosen again, and why it was stays true.
            self._engine, self._choice = chosen, self._choice or self.populations[0].choice
        else:  # what is best for two members may not be for sixteen
            self._engine, self._choice, self._chosen_for = self._settings.engine, "", n
        before = [(training, self.state_of(slot)) for slot, training in self.active.items()]
        self.populations = []  # frees their memory first
        s = self._settings
        self.populations = [
            Population(
                member,
                slots=n,
                loss=s.loss,
                device=s.device,
                engine=self._engine,
                amp=s.amp,
                compile=s.compile,
            )
            for member in template
        ]
        self.slots = [None] * n
        for slot, (training, states) in enumerate(before):
            self._admit(slot, training)
            self.load(slot, states)

    def train_epoch(self, orders: Sequence[Tensor | None]) -> list[float]:
        """Train all for an epoch; return the mean losses by slot."""
        losses = [
            population.train_epoch(*fold.train, passes=self._passes, order=order)
            for population, fold, order in zip(self.populations, self._folds, orders, strict=True)
        ]
        return _means(_numbers(losses))

    def evaluate(self, part: Literal["valid", "test"]) -> list[dict[str, float]]:
        """Return the metrics of each slot."""
        found = []
        for population, fold in zip(self.populations, self._folds, strict=True):
            x, y = (fold.valid if part == "valid" else fold.test) or fold.valid
            found.append(population.evaluate(x, y, self._settings.metrics))
        names = [*self._settings.metrics]
        stacked = _numbers([values[name] for values in found for name in names])
        table = stacked.view(len(found), len(names), -1)
        columns = [_means(table[:, column]) for column in range(len(names))]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _numbers(values: Sequence[Tensor]) -> Tensor:
    """Stack tensors in float64, by one copy to the CPU: MPS does not know float64."""
    return torch.stack([*values]).cpu().double()


def _means(folds: Tensor) -> list[float]:
    return [mean(values) for values in folds.T.tolist()]
