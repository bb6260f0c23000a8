from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
import itertools
import math
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from optuna_ext.lineage import parent_of
from optuna_ext.moves.population import Result
from optuna_ext.samplers import _host


if TYPE_CHECKING:
    from collections.abc import Container

    from optuna.trial import FrozenTrial

MEMBER = "member"  # user attributes
GENERATION = "generation"


@dataclass(frozen=True)
class Slot:
    """What became of one member's interval; of nothing, if it was lost.

    Attributes:
        done: The trial that trained it whole.
        running: The trial that is at it, or waits for its turn.
    """

    done: FrozenTrial | None = None
    running: FrozenTrial | None = None


class SlotTable:
    """Which trials trained which member's which interval.

    Slot ``s`` is the interval of member ``s % P`` in generation ``s // P``. Trials take slots in
    order of their numbers, but one that repeats a trial whose worker died has that trial's. This
    is a function of the stored trials alone; the table is a cache, read incrementally.

    Args:
        population_size: Number of members ``P``.
        first_trial: Number of the trial that has slot 0.
        maximize: Whether values are to be negated.
    """

    def __init__(self, *, population_size: int, first_trial: int, maximize: bool) -> None:
        self._size = population_size
        self._first_trial = first_trial
        self._sign = -1.0 if maximize else 1.0
        self._trials: list[FrozenTrial] = []
        self._slots: list[int | None] = []  # by trial number
        self._numbers: defaultdict[int, list[int]] = defaultdict(list)  # by slot
        self._next_slot = 0

    def update(self, trials: list[FrozenTrial]) -> None:
        """Take in the study's trials, a list in order of their numbers."""
        for trial in trials[len(self._slots) :]:
            original = _host.retried_number(trial)
            slot: int | None
            if original is not None and original < trial.number:
                slot = self._slots[original]
            elif trial.number >= self._first_trial:
                slot = self._next_slot
                self._next_slot += 1
            else:
                slot = None
            self._slots.append(slot)
            if slot is not None:
                self._numbers[slot].append(trial.number)
        self._trials = trials

    def coming(self, n: int) -> list[int | None]:
        """Return the slots of the next ``n`` trials: first of those that wait for their turn."""
        waiting = (t.number for t in self._trials if t.state == TrialState.WAITING)
        queued = [self._slots[number] for number in itertools.islice(waiting, n)]
        return queued + [*range(self._next_slot, self._next_slot + n - len(queued))]

    def trial(self, number: int) -> FrozenTrial:
        return self._trials[number]

    def slot_of(self, number: int) -> int | None:
        """Return the slot of a trial; None before the population's first."""
        return self._slots[number]

    def check_places(self, number: int) -> None:
        """Refuse to go on with a population of another size.

        Args:
            number: Of the trial that goes on; the last one before it that has a place tells.

        Raises:
            ValueError: If that trial would have another place here.
        """
        for earlier in map(self.trial, range(number - 1, self._first_trial - 1, -1)):
            if MEMBER in earlier.user_attrs:
                place = earlier.user_attrs[GENERATION], earlier.user_attrs[MEMBER]
                expected = divmod(self._slots[earlier.number] or 0, self._size)
                if place != expected:
                    raise ValueError(
                        "`population_size` and `first_trial` must be those that the study was "
                        f"begun with, but trial {earlier.number} is member {place[1]} of "
                        f"generation {place[0]}, and not {expected[1]} of {expected[0]}."
                    )
                return

    def slot(self, slot: int, *, lost: Container[int] = ()) -> Slot:
        """Return what became of a slot; the running trials in ``lost`` are taken for dead."""
        running = None
        for number in reversed(self._numbers[slot]):
            trial = self._trials[number]
            if self._is_whole(trial):
                return Slot(done=trial)
            # Whoever would have to take up a dead worker's trial may be the one who waits for it.
            is_retry = _host.retried_number(trial) is not None
            is_queued = trial.state == TrialState.WAITING and not is_retry
            if number not in lost and (trial.state == TrialState.RUNNING or is_queued):
                running = running or trial
        return Slot(running=running)

    def latest(self, slot: int) -> Slot:
        """Return what became of the last of a member's slots, up to ``slot``, that is not running.

        If all are, what became of ``slot``.
        """
        for earlier in range(slot, -1, -self._size):
            found = self.slot(earlier)
            if found.running is None:
                return found
        return self.slot(slot)

    def result(self, slot: Slot, *, n_evaluations: int) -> Result | None:
        """Return what a slot counts with its rivals; None while it is running."""
        if slot.done is None:
            return Result(math.inf) if slot.running is None else None
        value = self._sign * last_value(slot.done)
        return Result(value, self._evaluations(slot.done, n_evaluations))

    def _evaluations(self, trial: FrozenTrial, n: int) -> tuple[float, ...]:
        """Return the last reports of the trial's lineage, the newest first."""
        found: list[float] = []
        seen: set[int] = set()
        while len(found) < n and trial.number not in seen:
            seen.add(trial.number)
            reports = sorted(trial.intermediate_values.items(), reverse=True)
            found += [self._sign * value for _, value in reports]
            parent = parent_of(trial)
            if parent is None or not 0 <= parent < len(self._trials):
                break
            trial = self._trials[parent]
        return tuple(found[:n])

    @staticmethod
    def _is_whole(trial: FrozenTrial) -> bool:
        """Whether somebody can go on from the trial: it is of a population, and has a value."""
        is_over = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        return is_over and MEMBER in trial.user_attrs and math.isfinite(last_value(trial))


def last_value(trial: FrozenTrial) -> float:
    """Return the value of a finished trial, the last report of a pruned one; NaN without."""
    if trial.state == TrialState.PRUNED:
        reports = trial.intermediate_values
        return reports[max(reports)] if reports else math.nan
    return math.nan if trial.value is None else trial.value
