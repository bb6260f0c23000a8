"""Population-based training: whose weights a member goes on with, and with what parameters.

A population trains in intervals. Between two of them, *exploit* decides whether a member goes on
with its own weights or with those of a better one, and *explore* changes the parameters of those
that took over another's (Jaderberg et al. 2017, *Population based training of neural networks*,
arXiv:1711.09846).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
import functools
import math

import numpy as np

from optuna_ext.moves.variation import Mutation
from optuna_ext.moves.variation import Scale
from optuna_ext.moves.variation import Snap


PERTURB = Mutation(factor=2.0, largest=0.25)
"""Numbers by 2 or 0.5, about zero and below by a thirty-second to a quarter of their range.

Whoever takes over trains beside its donor, so a learning rate is tried with its double or its half
until the end. With smaller factors, such as 1.25, small populations may collapse to one value.
"""

_DONORS = 0.2  # share of a population, the best, that may stand in for a lost member


@dataclass(frozen=True)
class Result:
    """What came of a member's last interval.

    Attributes:
        value: Minimized; ``+inf`` if the member is lost: it failed, diverged or died.
        evaluations: The last ones of its weights, minimized, the newest first; as many as the
            exploit asks for, or all there are.
    """

    value: float
    evaluations: tuple[float, ...] = ()

    @property
    def is_lost(self) -> bool:
        """Whether there is nothing to go on from."""
        return not math.isfinite(self.value)


Results = Sequence[Result | None]  # by member; None: not known yet


class Exploit(abc.ABC):
    """Decides whose weights a member goes on with.

    Attributes:
        n_evaluations: How many evaluations of each result it looks at.
    """

    n_evaluations: int = 0

    @abc.abstractmethod
    def rival(self, member: int, results: Results, rng: np.random.Generator) -> int | None:
        """Return the member whose weights one that is not lost goes on with; may be its own.

        None, if that depends on results which are not known yet. Whatever is returned must not
        change when more results become known.
        """

    def source(self, member: int, results: Results, rng: np.random.Generator) -> int | None:
        """Return the member whose weights ``member`` goes on with; may be itself.

        A lost member takes over the weights of one of the best.

        Args:
            member: Index into ``results``.
            results: Of all members, at least two.
            rng: Random generator, the same at every attempt.

        Returns:
            A member that is not lost; None while that depends on results that are not known yet,
            or if everybody is lost.
        """
        own = results[member]
        if own is None:
            return None
        if not own.is_lost:
            return self.rival(member, results, rng)
        return None if None in results else donor(results, rng)


@dataclass(frozen=True)
class Truncation(Exploit):
    """A member among the worst takes over one of the best, drawn uniformly.

    Members in between go on as soon as enough are known to be worse; nobody waits for more.

    Args:
        fraction: Share of the population that is replaced, and that is copied, in ``(0, 0.5]``;
            their number is rounded up.

    Raises:
        ValueError: If ``fraction`` is not in ``(0, 0.5]``.
    """

    fraction: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction <= 0.5:
            raise ValueError(f"`fraction` must be in (0, 0.5], but got {self.fraction}.")

    def rival(self, member: int, results: Results, rng: np.random.Generator) -> int | None:
        """Return one of the best if the member is among the worst."""
        ranking = _ranking(results)
        n = _share(self.fraction, len(results))
        n_worse = len(ranking) - 1 - ranking.index(member)
        if n_worse >= n:
            return member
        if None in results:
            return None
        best = [i for i in ranking[:n] if _value(results[i]) < _value(results[member])]
        return best[rng.integers(len(best))] if best else member


@dataclass(frozen=True)
class Tournament(Exploit):
    """A member meets another one, drawn uniformly, and takes it over if that is better."""

    def rival(self, member: int, results: Results, rng: np.random.Generator) -> int | None:
        """Return the opponent if it is better."""
        opponent = _opponent(member, results, rng)
        other = results[opponent]
        if other is None:
            return None
        return opponent if other.value < _value(results[member]) else member


@dataclass(frozen=True)
class TTest(Exploit):
    """A member meets another one and takes it over if that is better beyond chance.

    Better by Welch's t-test, one-sided, on the last evaluations of both. It needs at least two of
    each: report more often than once per interval, or nobody is replaced after the first one.

    Args:
        n_evaluations: How many evaluations to look at, at least 2.
        alpha: Level of significance, in ``(0, 1)``.

    Raises:
        ValueError: If an argument is out of range.
    """

    n_evaluations: int = 10
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.n_evaluations < 2:
            raise ValueError(f"`n_evaluations` must be at least 2, but got {self.n_evaluations}.")
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"`alpha` must be in (0, 1), but got {self.alpha}.")

    def rival(self, member: int, results: Results, rng: np.random.Generator) -> int | None:
        """Return the opponent if it is significantly better."""
        opponent = _opponent(member, results, rng)
        own, other = results[member], results[opponent]
        if own is None or other is None:
            return None
        better = not other.is_lost and self._is_better(other.evaluations, own.evaluations)
        return opponent if better else member

    def _is_better(self, ours: Sequence[float], theirs: Sequence[float]) -> bool:
        a = np.array(ours[: self.n_evaluations])
        b = np.array(theirs[: self.n_evaluations])
        if min(len(a), len(b)) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return False
        if a.std() == b.std() == 0.0:  # no noise at all, where the statistic is 0 / 0
            return bool(a[0] < b[0])
        from scipy.stats import ttest_ind

        test = ttest_ind(a, b, equal_var=False, alternative="less")
        return bool(test.pvalue < self.alpha)


EXPLOITS: dict[str, type[Exploit]] = {
    "truncation": Truncation,
    "tournament": Tournament,
    "t-test": TTest,
}


def donor(results: Results, rng: np.random.Generator, *, fraction: float = _DONORS) -> int | None:
    """Return one of the best members to stand in for a lost one.

    Args:
        results: Of all members; what is not known is left out.
        rng: Random generator.
        fraction: Share of the population to draw from.

    Returns:
        A member that is not lost, None if there is none.
    """
    best = [i for i in _ranking(results) if math.isfinite(_value(results[i]))]
    best = best[: _share(fraction, len(results))]
    return best[rng.integers(len(best))] if best else None


def explore(
    row: np.ndarray,
    *,
    resample_probability: float,
    scales: tuple[Scale | None, ...],
    snap: Snap,
    mutation: Mutation,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the row of a member that has taken over the weights of the one at ``row``.

    Each coordinate is drawn anew with ``resample_probability``. Otherwise a number moves, by one
    value at least, and a choice without an order stays: there is nothing near it.

    Args:
        row: Row of values, shape ``(d,)``, in ``[0, 1)``.
        resample_probability: In ``[0, 1]``.
        scales: For each column its values, None if they have no order.
        snap: Gives the coordinate of a column's nearest value.
        mutation: How numbers move.
        rng: Random generator.

    Returns:
        Row of shape ``(d,)``.
    """
    row = row.copy()
    resampled = rng.random(len(row)) < resample_probability
    for column, scale in enumerate(scales):
        if resampled[column]:
            row[column] = snap(column, rng.random())
        elif scale is not None:
            nearest = functools.partial(snap, column)
            row[column] = mutation.number(float(row[column]), scale, nearest, rng)
    return row


def _ranking(results: Results) -> list[int]:
    """Return the members whose results are known, best first; of two equals, the first."""
    known = [i for i, result in enumerate(results) if result is not None]
    return sorted(known, key=lambda i: (_value(results[i]), i))


def _value(result: Result | None) -> float:
    return math.inf if result is None or result.is_lost else result.value


def _share(fraction: float, n: int) -> int:
    return math.ceil(fraction * n - 1e-9)  # 0.07 * 100 is a little more than 7


def _opponent(member: int, results: Results, rng: np.random.Generator) -> int:
    """Return another member, drawn uniformly."""
    other = int(rng.integers(len(results) - 1))
    return other + (other >= member)
