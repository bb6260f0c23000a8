"""The arithmetic of successive halving and Hyperband, in exact integers.

Successive halving (Jamieson & Talwalkar 2016) gives many trials a little training, keeps the best
``1 / reduction_factor`` of them at every *rung*, and trains these on to the next one. Hyperband
(Li et al. 2018) runs several such *brackets*, which begin at different rungs. ASHA (Li et al.
2020) decides as soon as a trial reaches a rung, without waiting for the others.

Resources are counted in steps, normally epochs. Values are to be minimized here, and NaN is worse
than every number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from functools import cached_property
import math
from typing import TYPE_CHECKING

from optuna_ext._checks import check_int


if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """One run of successive halving.

    Args:
        rungs:
            Steps at which trials are compared, in increasing order; the last one is the end.
        reduction_factor:
            At every rung but the last, one trial in this many goes on.
        n_trials:
            How many trials begin.

    Example:
        >>> bracket = successive_halving(2, 10, reduction_factor=2)
        >>> bracket.rungs, bracket.sizes
        ((2, 4, 8, 10), (8, 4, 2, 1))
        >>> bracket.cost(), bracket.cost(resume=False)
        (34, 58)
    """

    rungs: tuple[int, ...]
    reduction_factor: int
    n_trials: int

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many trials reach each rung."""
        sizes = [self.n_trials]
        for _ in self.rungs[1:]:
            sizes.append(n_survivors(sizes[-1], self.reduction_factor))
        return tuple(sizes)

    def cost(self, *, resume: bool = True) -> int:
        """Return the steps that the bracket trains in all.

        Args:
            resume:
                Whether a trial that goes on continues from its checkpoint, or trains from the
                beginning again.
        """
        starts = (0, *self.rungs[:-1]) if resume else (0,) * len(self.rungs)
        return sum(
            size * (rung - start)
            for size, rung, start in zip(self.sizes, self.rungs, starts, strict=True)
        )

    def last_cut(self, step: int) -> int | None:
        """Return the last rung up to ``step`` at which trials are cut; None before the first."""
        return next((rung for rung in self.rungs[-2::-1] if rung <= step), None)


def n_reductions(min_resource: int, max_resource: int, reduction_factor: int) -> int:
    """Return how often ``min_resource`` can be multiplied without exceeding ``max_resource``.

    This is ``floor(log(max_resource / min_resource) / log(reduction_factor))``, where logarithms
    of floating point numbers are one too small at exact powers.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not an integer.

    Example:
        >>> n_reductions(1, 1000, 10), n_reductions(1, 243, 3)
        (3, 5)
    """
    check_int("reduction_factor", reduction_factor, low=2)
    check_int("min_resource", min_resource, low=1)
    check_int("max_resource", max_resource, low=min_resource)
    n, resource = 0, min_resource * reduction_factor
    while resource <= max_resource:
        n, resource = n + 1, resource * reduction_factor
    return n


def successive_halving(
    min_resource: int | None,
    max_resource: int,
    *,
    reduction_factor: int,
    n_cuts: int | None = None,
    keep: int = 16,
    n_trials: int | None = None,
) -> Bracket:
    """Return the bracket of successive halving.

    Args:
        min_resource:
            Steps to the first rung, ``1 <= min_resource <= max_resource``; the others are
            ``reduction_factor`` times as far each. ``None`` means ``max_resource / 16``, rounded:
            early enough to save most of the training, and late enough to tell trials apart.
        max_resource:
            Steps of a whole training, which is always the last rung.
        reduction_factor:
            At every rung but the last, one trial in this many goes on; at least 2.
        n_cuts:
            At how many rungs trials are cut; those after them have only the end before them.
            Every cut loses some of the trials that would have become good late. ``None`` means
            as many as there are rungs; without ``min_resource``, as many as keep at least one
            trial in ``keep``.
        keep:
            Has a meaning only without ``min_resource`` and ``n_cuts``.
        n_trials:
            How many trials begin; by default as many as leave one at the end.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not an integer.

    Example:
        >>> successive_halving(None, 27, reduction_factor=3).rungs
        (2, 6, 27)
        >>> successive_halving(None, 64, reduction_factor=2).rungs
        (4, 8, 16, 32, 64)
        >>> successive_halving(1, 27, reduction_factor=3).rungs
        (1, 3, 9, 27)
    """
    check_int("reduction_factor", reduction_factor, low=2)
    check_int("max_resource", max_resource, low=1)
    if n_cuts is not None:
        check_int("n_cuts", n_cuts, low=1)
    if min_resource is None:
        n_cuts = n_cuts or max(1, n_reductions(1, keep, reduction_factor))
        min_resource = max(1, (max_resource + 8) // 16)
    n = n_reductions(min_resource, max_resource, reduction_factor)
    rungs = [min_resource * reduction_factor**k for k in range(n + 1)]
    rungs = [rung for rung in rungs if rung < max_resource][:n_cuts] + [max_resource]
    if n_trials is None:
        n_trials = reduction_factor ** (len(rungs) - 1)
    return Bracket(
        rungs=tuple(rungs),
        reduction_factor=reduction_factor,
        n_trials=check_int("n_trials", n_trials, low=1),
    )


def hyperband(
    min_resource: int, max_resource: int, *, reduction_factor: int
) -> tuple[Bracket, ...]:
    """Return the brackets of Hyperband, the one with the earliest rung first.

    There is one bracket for every rung, so that the last one trains all its trials to the end.
    They get about equal budgets: ``ceil((s_max + 1) / (s + 1) * reduction_factor**s)`` trials
    for the bracket with ``s`` cuts (Li et al. 2018, algorithm 1).

    Args:
        min_resource:
            As for :func:`successive_halving`.
        max_resource:
            As for :func:`successive_halving`.
        reduction_factor:
            As for :func:`successive_halving`.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not an integer.

    Example:
        >>> [bracket.sizes for bracket in hyperband(1, 9, reduction_factor=3)]
        [(9, 3, 1), (5, 1), (3,)]
    """
    rungs = successive_halving(min_resource, max_resource, reduction_factor=reduction_factor).rungs
    return tuple(
        Bracket(
            rungs=rungs[first:],
            reduction_factor=reduction_factor,
            n_trials=-(-len(rungs) * reduction_factor**n_cuts // (n_cuts + 1)),
        )
        for first, n_cuts in enumerate(reversed(range(len(rungs))))
    )


def bracket_of(number: int, brackets: Sequence[Bracket]) -> int:
    """Return to which bracket a trial belongs: a function of its number, in every process.

    The brackets take turns, so that each has about its share of the trials at any time.

    Example:
        >>> brackets = hyperband(1, 9, reduction_factor=3)
        >>> [bracket_of(number, brackets) for number in range(17)]
        [0, 1, 0, 2, 0, 1, 0, 0, 1, 2, 0, 1, 0, 0, 2, 1, 0]
    """
    turns = _turns(tuple([bracket.n_trials for bracket in brackets]))
    return turns[number % len(turns)]


@cache
def _turns(sizes: tuple[int, ...]) -> tuple[int, ...]:
    # Trial j of a bracket of size n is due at (j + 1/2) / n of the cycle. Equal fractions stay
    # equal, on every machine, as division is rounded correctly.
    due = [((2 * j + 1) / size, index) for index, size in enumerate(sizes) for j in range(size)]
    return tuple(index for _, index in sorted(due))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What brackets cost; ``print`` it.

    Args:
        brackets:
            The brackets.

    Example:
        >>> print(plan(successive_halving(2, 10, reduction_factor=2)))
        bracket  rung  step  trials  steps  from scratch
              0     0     2       8     16            16
              0     1     4       4      8            16
              0     2     8       2      8            16
              0     3    10       1      2            10
          total                  15     34            58
    """

    brackets: tuple[Bracket, ...]

    @property
    def n_trials(self) -> int:
        """Trials of the study, each promotion counted as one."""
        return sum(sum(bracket.sizes) for bracket in self.brackets)

    def cost(self, *, resume: bool = True) -> int:
        """Return the steps trained in all, as :meth:`Bracket.cost`."""
        return sum(bracket.cost(resume=resume) for bracket in self.brackets)

    def rows(self) -> list[dict[str, int]]:
        """Return one row per rung of every bracket."""
        return [
            {
                "bracket": number,
                "rung": rung,
                "step": step,
                "trials": size,
                "steps": size * (step - start),
                "from scratch": size * step,
            }
            for number, bracket in enumerate(self.brackets)
            for rung, (step, size, start) in enumerate(
                zip(bracket.rungs, bracket.sizes, (0, *bracket.rungs), strict=False)
            )
        ]

    def __str__(self) -> str:
        rows = self.rows()
        heads = [*rows[0]]
        table: list[list[object]] = [[*heads]]
        table += [[row[head] for head in heads] for row in rows]
        table += [["total", "", "", self.n_trials, self.cost(), self.cost(resume=False)]]
        widths = [max(len(str(line[i])) for line in table) for i in range(len(heads))]
        return "\n".join(
            "  ".join(str(cell).rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in table
        )


def plan(*brackets: Bracket) -> Plan:
    """Return the table of rungs, trials and expected cost of some brackets."""
    return Plan(brackets=brackets)


def n_survivors(n: int, reduction_factor: int) -> int:
    """Return how many of ``n`` trials go on: one in ``reduction_factor``, and at least one."""
    return max(1, n // reduction_factor)


Score = tuple[float, float]
"""The value that counts and the last one, which decides between equal ones."""


def score_at(
    reports: Mapping[int, float], rung: int, *, best_so_far: bool, maximize: bool = False
) -> Score | None:
    """Return what a trial had when it reached a rung; None if it has not.

    Args:
        reports:
            Values by step. The rung is reached with the first report at or after it.
        rung:
            A step.
        best_so_far:
            Whether the best value up to there counts, or the last one.
        maximize:
            Whether large values are good; the score is small where the value is good.

    Example:
        >>> score_at({1: 0.2, 2: 0.3, 3: 0.1}, 2, best_so_far=True)
        (0.2, 0.3)
    """
    reached = min((step for step in reports if step >= rung), default=None)
    if reached is None:
        return None
    sign = -1.0 if maximize else 1.0
    last = sign * reports[reached]
    if not best_so_far or math.isnan(last):  # a training that has diverged stays lost
        return last, last
    seen = (sign * value for step, value in reports.items() if step <= reached)
    return min(value for value in seen if not math.isnan(value)), last


Place = tuple[bool, float, float, int]
"""What trials of a rung are sorted by: whether it is NaN, the score, and the number."""


def place(score: Score, number: int) -> Place:
    """Return what a trial of a rung is sorted by; the smallest place is the best.

    Where scores are equal, the earlier trial is the better one, so that there is exactly one
    order.
    """
    value, last = score
    if math.isnan(value):  # which compares with nothing
        return True, 0.0, 0.0, number
    return False, value, last, number


def ranking(scores: Mapping[int, Score]) -> list[int]:
    """Return the trials of a rung by number, the best first.

    Args:
        scores:
            The score of every trial that has reached the rung; the smaller the better, and NaN
            the worst.
    """
    return sorted(scores, key=lambda number: place(scores[number], number))


def survivors(scores: Mapping[int, Score], reduction_factor: int) -> list[int]:
    """Return which trials of a rung go on, the best first: never one whose value is NaN.

    Args:
        scores:
            As for :func:`ranking`.
        reduction_factor:
            One in this many goes on, and at least one.

    Example:
        >>> nan = float("nan")
        >>> survivors({0: (0.5, 0.5), 1: (0.1, 0.2), 2: (nan, nan), 3: (0.3, 0.3)}, 2)
        [1, 3]
    """
    best = ranking(scores)[: n_survivors(len(scores), reduction_factor)]
    return [number for number in best if not math.isnan(scores[number][0])]
