from __future__ import annotations

from collections import OrderedDict
import itertools
import threading
from typing import TYPE_CHECKING

from optuna_ext.samplers import _host


if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence

    from optuna.study import Study
    from optuna.trial import FrozenTrial

_N_KEPT = 1024  # running trials whose columns are kept


class ColumnMap:
    """Gives every parameter of a study its own column of a design.

    The declared names come first; every other name follows in order of first appearance in the
    study: by trial number, then by the order in which that trial suggested it. This is a function
    of the stored trials alone, so workers and restarted processes agree without writing anything.
    What finished trials have fixed is remembered; asking for it again reads no storage.

    While several workers run the first trials of a *conditional* space, a lower-numbered trial may
    still bring in a name and move the later ones by a column. Points drawn until then are a little
    less even, though no trial gets a column twice; declaring the space avoids it.

    Args:
        declared: Names that take the columns ``0, 1, ...`` whatever the trials do.
    """

    def __init__(self, declared: Sequence[str] = ()) -> None:
        self._declared = tuple(declared)
        self._lock = threading.Lock()
        self._names: _host.StudyCache[_Names] = _host.StudyCache()

    def __getstate__(self) -> tuple[str, ...]:
        return self._declared

    def __setstate__(self, state: tuple[str, ...]) -> None:
        self.__init__(state)  # type: ignore[misc]  # everything else is a cache

    def columns(self, study: Study, trial: FrozenTrial, names: Iterable[str]) -> dict[str, int]:
        """Return the columns of ``names``, about to be suggested in this order by ``trial``."""
        names = tuple(names)
        with self._lock:
            known = self._names.get(study, self._new)
            if all(name in known.settled for name in names):
                return {name: known.settled[name] for name in names}
            own = known.running.get(trial.number, {})
            if any(name not in own for name in names):
                trials = known.update(study)
                given = {name: own[name] for name in own if name in trial.distributions}
                own = _without_repeats(given, known.columns(trials, trial.number, names))
                known.keep(trial.number, own)
            return {name: own[name] for name in names}

    def n_first(self, study: Study, trial: FrozenTrial | None) -> int | None:
        """Return how many parameters the study's first trial has, None while there is none.

        ``trial`` itself, still suggesting, is not counted.
        """
        with self._lock:
            known = self._names.get(study, self._new)
            if known.n_first is None or (known.open and known.open[0] < known.first_number):
                trials = known.update(study)
                for number in known.open:
                    if number > known.first_number:
                        break
                    names = parameters(trials[number])
                    if names and (trial is None or number != trial.number):
                        return len(names)
            return known.n_first

    def _new(self) -> _Names:
        return _Names(self._declared)


class _Names:
    """What the finished trials of one study tell, taken in trial by trial."""

    def __init__(self, declared: Iterable[str]) -> None:
        self._declared = {name: column for column, name in enumerate(declared)}
        self._first: dict[str, tuple[int, int]] = {}  # trial number, position in it
        self._n_seen = 0
        self.open: list[int] = []  # trials seen that are not finished
        self.settled = dict(self._declared)  # columns that no trial can change any more
        self.n_first: int | None = None
        self.first_number = float("inf")  # of the trial that has these n_first parameters
        # Columns by running trial, as it found them: one look at the storage, no column twice.
        self.running: OrderedDict[int, dict[str, int]] = OrderedDict()

    def update(self, study: Study) -> list[FrozenTrial]:
        """Take in trials that have finished; return all trials."""
        trials = _host.all_trials(study)
        still_open = []
        for number in itertools.chain(self.open, range(self._n_seen, len(trials))):
            if not trials[number].state.is_finished():
                still_open.append(number)
                continue
            names = parameters(trials[number])
            _note(self._first, number, names)
            self.running.pop(number, None)
            if names and number < self.first_number:
                self.first_number, self.n_first = number, len(names)
        self.open, self._n_seen = still_open, len(trials)
        end = min(still_open, default=len(trials))
        early = {name: place for name, place in self._first.items() if place[0] < end}
        if len(early) + len(self._declared) > len(self.settled):
            self.settled = self._number(early)
        return trials

    def columns(
        self, trials: Sequence[FrozenTrial], own_number: int, names: tuple[str, ...]
    ) -> dict[str, int]:
        """Return the columns of all names, with those that the trial is about to suggest."""
        first = dict(self._first)
        for number in self.open:
            suggested = parameters(trials[number])
            _note(first, number, suggested + [*names] * (number == own_number))
        if own_number not in self.open:  # sampled without a running trial
            _note(first, own_number, names)
        return self._number(first)

    def keep(self, number: int, columns: dict[str, int]) -> None:
        self.running[number] = columns
        if len(self.running) > _N_KEPT:
            self.running.popitem(last=False)

    def _number(self, first: dict[str, tuple[int, int]]) -> dict[str, int]:
        columns = dict(self._declared)
        for name in sorted(first, key=first.__getitem__):
            columns.setdefault(name, len(columns))
        return columns


def parameters(trial: FrozenTrial) -> list[str]:
    """Return the names that can take a column, in the order of their suggestion."""
    return [name for name, dist in trial.distributions.items() if not dist.single()]


def _note(first: dict[str, tuple[int, int]], number: int, names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        place = (number, position)
        if place < first.get(name, (number + 1, 0)):
            first[name] = place


def _without_repeats(given: dict[str, int], columns: dict[str, int]) -> dict[str, int]:
    """Keep the columns that a trial was given before, and give it none of them again."""
    free = itertools.count(len(columns))
    used = set(given.values())
    return {
        name: given.get(name, next(free) if column in used else column)
        for name, column in columns.items()
    }
