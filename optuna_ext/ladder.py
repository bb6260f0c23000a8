"""Where every set of parameters stands that is trained in intervals, from rung to rung.

One set of parameters may be trained by several trials: a newborn one, which ends as pruned when
it has reached its rung, and children, each of which goes on from its parent's checkpoint to the
next rung. Together they are one :class:`Climber`. All that is needed is in the trials' states,
reports and user attributes, so that every process sees the same, also after a restart.
"""

from __future__ import annotations

from bisect import bisect_left
from bisect import insort
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from optuna_ext.lineage import parent_of
from optuna_ext.rungs import Place
from optuna_ext.rungs import place
from optuna_ext.rungs import Score
from optuna_ext.rungs import score_at


if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from optuna_ext.rungs import Bracket

RUNG = "rung"  # user attributes: the rung that a trial is to reach, counted from 0,
BRACKET = "bracket"  # the bracket that it belongs to, also counted from 0,
ROUND = "round"  # and the round of a synchronous bracket


def count(trial: FrozenTrial, key: str) -> int:
    """Return a user attribute that counts something; 0 if it is missing."""
    value = trial.user_attrs.get(key)
    return value if isinstance(value, int) and value >= 0 else 0


@dataclass(frozen=True)
class Climber:
    """One set of parameters and how far it has been trained.

    Attributes:
        root: The trial that was born with the parameters.
        bracket: The index of its bracket.
        tip: The last of its trials that has not failed; the root, if that is the only one.
        reports: The values reported by all of them, by step.
        reached: The largest step reported, counted from 1; 0 before the first report.
        scores: What it had at each rung it has reached.
        n_failures: How many trials in succession have failed to get it on from the tip.
    """

    root: FrozenTrial
    bracket: int
    tip: FrozenTrial
    reports: dict[int, float]
    reached: int
    scores: tuple[Score, ...]
    n_failures: int

    @property
    def is_lost(self) -> bool:
        """Whether the first trial failed, so that there is nothing to go on from."""
        return self.tip.state == TrialState.FAIL

    @property
    def is_paused(self) -> bool:
        """Whether it waits at a rung for somebody to go on with it."""
        return self.tip.state == TrialState.PRUNED and not self.is_given_up

    @property
    def is_given_up(self) -> bool:
        """Whether its objective has stopped it before the rung that it was to reach."""
        return self.tip.state == TrialState.PRUNED and len(self.scores) <= count(self.tip, RUNG)


class Ladder:
    """All climbers of a study, read incrementally: only what is new or was unfinished.

    Args:
        brackets:
            The brackets; a trial names its own by the user attribute ``bracket``. None are needed
            where nobody asks for scores.
        first_step:
            The step of an objective's first report, 0 or 1.
        best_so_far:
            Whether the best value up to a rung counts there, or the last one.
        maximize:
            Whether large values are good.
    """

    def __init__(
        self, brackets: Sequence[Bracket], *, first_step: int, best_so_far: bool, maximize: bool
    ) -> None:
        self._brackets = brackets
        self._first_step = first_step
        self._best_so_far = best_so_far
        self._maximize = maximize
        self._trials: list[FrozenTrial] = []
        self._open: list[int] = []  # numbers of the trials that may still change
        self._children: dict[int, list[int]] = {}
        self._parents: dict[int, int] = {}
        self._fields: defaultdict[int, list[Place]] = defaultdict(list)
        self.climbers: dict[int, Climber] = {}
        """By the number of the root, in order; those that have been started only."""

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        """All trials in order of their numbers; treat them as read-only."""
        return self._trials

    def field(self, rung: int) -> Sequence[Place]:
        """Return everybody who has come to the rung at a step and is not lost, the best first."""
        return self._fields[rung]

    def root_of(self, number: int) -> int:
        """Return the number of the trial that was born with a trial's parameters."""
        while number in self._parents:
            number = self._parents[number]
        return number

    def rivals(self, parent: int, *, of: int) -> list[FrozenTrial]:
        """Return the trials other than ``of`` that go on, or have gone on, from a parent."""
        return [
            self._trials[child]
            for child in self._children.get(parent, ())
            if child != of and self._trials[child].state != TrialState.FAIL
        ]

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in the study's trials, a list in order of their numbers."""
        changed = [*self._open, *range(len(self._trials), len(trials))]
        affected = {self.root_of(number) for number in changed}
        self._trials = list(trials)
        for number in changed:
            self._link(number)
        affected |= {self.root_of(number) for number in changed}
        for root in sorted(affected):
            old = self.climbers.get(root)
            if root in self._parents or trials[root].state == TrialState.WAITING:
                self.climbers.pop(root, None)
                self._rank(root, old, None)
            else:
                self.climbers[root] = self._climber(root)
                self._rank(root, old, self.climbers[root])
        self._open = [number for number in changed if not trials[number].state.is_finished()]

    def _rank(self, root: int, old: Climber | None, new: Climber | None) -> None:
        """Give a climber its places in the fields."""
        was, is_ = self._places(root, old), self._places(root, new)
        if was == is_:
            return
        for rung, place_ in was:
            field = self._fields[rung]
            del field[bisect_left(field, place_)]
        for rung, place_ in is_:
            insort(self._fields[rung], place_)

    def _places(self, root: int, climber: Climber | None) -> list[tuple[int, Place]]:
        """Return where somebody stands: the rungs, and the place among those there."""
        if climber is None or climber.is_lost:
            return []
        scores = zip(self._rungs(climber.bracket), climber.scores, strict=False)
        return [(rung, place(score, root)) for rung, score in scores]

    def _rungs(self, bracket: int) -> Sequence[int]:
        return self._brackets[bracket].rungs if self._brackets else ()

    def _link(self, number: int) -> None:
        """Note a trial's parent, which may change until the trial begins."""
        parent = parent_of(self._trials[number])
        known = self._parents.get(number)
        if parent == known:
            return
        if known is not None:
            del self._parents[number]
            self._children[known].remove(number)
        # A slow worker's trial may go on from one with a higher number, but not from itself.
        if (
            parent is not None
            and 0 <= parent < len(self._trials)
            and self.root_of(parent) != number
        ):
            self._parents[number] = parent
            self._children.setdefault(parent, []).append(number)

    def _climber(self, root: int) -> Climber:
        tip = self._trials[root]
        reports = dict(tip.intermediate_values)
        while True:
            children = [self._trials[child] for child in self._children.get(tip.number, ())]
            alive = [child for child in children if child.state != TrialState.FAIL]
            if not alive:
                break
            # Two of them are rare: of a dead worker's trial, one that somebody began while it
            # was being retried.
            tip = min(alive, key=lambda child: child.number)
            reports.update(tip.intermediate_values)
        bracket = min(count(self._trials[root], BRACKET), len(self._brackets) - 1)
        scores = (
            score_at(
                reports,
                rung - 1 + self._first_step,
                best_so_far=self._best_so_far,
                maximize=self._maximize,
            )
            for rung in self._rungs(bracket)
        )
        return Climber(
            root=self._trials[root],
            bracket=bracket,
            tip=tip,
            reports=reports,
            reached=max(reports, default=self._first_step - 1) + 1 - self._first_step,
            scores=tuple(score for score in scores if score is not None),
            n_failures=len(children),
        )
