"""Evolutionary search: who survives, who becomes a parent, and what the child looks like.

The population is a function of the history; nothing is remembered. ``P`` is its size.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np

from optuna_ext.moves.history import History
from optuna_ext.moves.selection import Selection
from optuna_ext.moves.variation import Crossover
from optuna_ext.moves.variation import mutate
from optuna_ext.moves.variation import Mutation
from optuna_ext.moves.variation import Scale
from optuna_ext.moves.variation import Snap


_ATTEMPTS = 32  # children tried before random rows, and then as many of those


def elitism(history: History, size: int, *, n_elites: int) -> np.ndarray:
    """Return who survives if the best stay and the rest is replaced by the youngest.

    Args:
        history: Evaluated rows.
        size: Size ``P`` of the population.
        n_elites: How many of the best of all rows survive whatever comes, ``0 <= n_elites <= P``.
            0 is full generational replacement, ``P`` the "plus" strategy.

    Returns:
        Indices of at most ``P`` rows, best first.
    """
    elites = _best(history, n_elites)
    if len(elites) >= min(size, len(history)):
        return elites
    recent = np.arange(max(0, len(history) - size), len(history))
    others = recent[~np.isin(recent, elites)]
    youngest = others[max(0, len(others) - size + n_elites) :]
    return _sorted(history, np.concatenate([elites, youngest]))


def duels(history: History, size: int) -> np.ndarray:
    """Return who survives if every child meets one member of the population, the better stays.

    The trials with numbers ``i``, ``i + P``, ``i + 2P``, ... meet each other. A trial's number
    says nothing about its value, so this is the binary tournament with a random member, without
    its dice; it keeps ``P`` independent lines, as differential evolution does.

    Args:
        history: Evaluated rows.
        size: Size ``P`` of the population.

    Returns:
        Indices of at most ``P`` rows, best first.
    """
    ranking = _sorted(history, np.arange(len(history)))
    _, winners = np.unique(history.numbers[ranking] % size, return_index=True)
    return ranking[np.sort(winners)]


def earlier_generations(history: History, number: int, size: int) -> History:
    """Return what generational replacement lets a trial see: the generations before its own.

    A generation is ``P`` consecutive trial numbers. Trials of earlier generations that are not
    finished are done without, so nobody waits; if none is finished, all there is counts.

    Args:
        history: Evaluated rows.
        number: Number of the trial.
        size: Size ``P`` of the population.

    Returns:
        The first rows of ``history``: indices into them hold there, too.
    """
    earlier = history.before(number - number % size)
    return earlier if len(earlier) else history


@dataclass(frozen=True, kw_only=True)
class Breeding:
    """How parents are chosen and children made.

    Attributes:
        selection: Gives the survivors' probabilities to become parents, from their values.
        crossover: Makes one row from the rows of ``n_parents`` parents.
        n_parents: Number of parents; different ones, if that many can be selected.
        crossover_prob: Probability of a crossover; a child without has one parent.
        mutation: What a change of a coordinate is.
        mutation_prob: Probability of each coordinate to change. None is ``1 / d``, where ``d`` is
            how many coordinates the parents have: one change on average.
    """

    selection: Selection
    crossover: Crossover
    n_parents: int
    crossover_prob: float
    mutation: Mutation
    mutation_prob: float | None


def breed(
    history: History,
    survivors: np.ndarray,
    *,
    breeding: Breeding,
    scales: tuple[Scale | None, ...],
    snap: Snap,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a child of the survivors that repeats no row, evaluated or pending.

    A coordinate that a parent does not have, because it belongs to another branch of a
    conditional space, is that of the best row that has it. Where children keep repeating rows, a
    random row is returned; where the space is all but used up, or nothing mutates, a repetition.

    Args:
        history: Evaluated and pending rows, at least one evaluated.
        survivors: Indices of the population, at least one, best first.
        breeding: How parents are chosen and children made.
        scales: For each column its values, None if they have no order.
        snap: Gives the coordinate of a column's nearest value.
        rng: Random generator.

    Returns:
        Row of shape ``(d,)``, in ``[0, 1)``, NaN where no evaluated row has the coordinate.
    """
    rows = history.rows[survivors]
    donor = rows[0]
    if np.isnan(rows).any():
        donor = history.inherit(np.full(rows.shape[1], np.nan))
    probabilities = breeding.selection(history.values[survivors])
    n_attempts = _ATTEMPTS if breeding.mutation_prob == 0 else 2 * _ATTEMPTS
    for attempt in range(n_attempts):
        if attempt < _ATTEMPTS:
            parents = rows[_draw(probabilities, breeding, rng)]
            child = _child(parents, donor, breeding, history.n_values, scales, snap, rng)
        else:
            child = _snapped(rng.random(rows.shape[1]), snap)
        if not history.is_taken(child):
            break
    return child


def _child(
    parents: np.ndarray,
    donor: np.ndarray,
    breeding: Breeding,
    n_values: tuple[int | None, ...],
    scales: tuple[Scale | None, ...],
    snap: Snap,
    rng: np.random.Generator,
) -> np.ndarray:
    n_present = np.count_nonzero(~np.isnan(parents).all(axis=0))
    parents = np.where(np.isnan(parents), donor, parents)
    row = _snapped(breeding.crossover(parents, rng), snap) if len(parents) > 1 else parents[0]
    prob = 1 / n_present if breeding.mutation_prob is None else breeding.mutation_prob
    # Also where the parents have nothing: it is needed if the child takes the donor's branch.
    return mutate(
        row,
        prob,
        n_values=n_values,
        scales=scales,
        snap=snap,
        mutation=breeding.mutation,
        rng=rng,
    )


def _draw(probabilities: np.ndarray, breeding: Breeding, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of one child's parents among the survivors."""
    crossed = breeding.n_parents > 1 and rng.random() < breeding.crossover_prob
    n = breeding.n_parents if crossed else 1
    scarce = bool(np.count_nonzero(probabilities) < n)
    return rng.choice(len(probabilities), n, replace=scarce, p=probabilities)


def _best(history: History, n: int) -> np.ndarray:
    """Return the indices of the ``n`` best rows, or of all."""
    if not n:
        return np.arange(0)
    values = history.values
    last = history.ranking()[:n][-1]
    candidates = np.flatnonzero(values <= values[last])
    return _sorted(history, candidates)[:n]


def _sorted(history: History, indices: np.ndarray) -> np.ndarray:
    """Return the indices of rows, best first.

    The younger of two equals comes first, so that a population on a plateau wanders about.
    """
    values, ties = history.values[indices], history.ties[indices]
    ranking: np.ndarray = indices[np.lexsort((-history.numbers[indices], ties, values))]
    return ranking


def _snapped(row: np.ndarray, snap: Snap) -> np.ndarray:
    return np.array([u if math.isnan(u) else snap(c, u) for c, u in enumerate(row.tolist())])
