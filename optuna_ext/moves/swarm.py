"""Particle swarm optimization (Kennedy and Eberhart 1995) without a state.

A trial's number tells which particle it moves; where the particle was, how fast it went and what
it found best are read from the history. So nobody waits for a generation to be complete: a
particle that has lost a trial, or whose trial is still running, goes on from its last position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal
from typing import TYPE_CHECKING

import numpy as np

from optuna_ext.moves.plateaus import is_on_plateau
from optuna_ext.moves.simplex import reflect_at_bounds


if TYPE_CHECKING:
    from optuna_ext.moves.history import History

Topology = Literal["global", "ring"]

_PHI = 2.05  # of the particle's own best and of its neighbors' best, c1 = c2
_CHI = 2.0 / abs(2.0 - 2 * _PHI - np.sqrt((2 * _PHI) ** 2 - 8 * _PHI))  # 0.7298, eq. (4)
_MAX_VELOCITY = 0.5  # of a parameter's range
_NOVELTY = 0.1  # weight of every choice that nobody votes for
_SHAKES = 16  # how often a row is shaken that would repeat a trial


def next_row(
    history: History,
    *,
    number: int,
    n_particles: int,
    rng: np.random.Generator,
    topology: Topology = "global",
    snap: Callable[[np.ndarray], np.ndarray] = np.copy,
) -> np.ndarray:
    """Return the next position of the particle ``number % n_particles``.

    Columns with an order follow the constricted velocity (Clerc and Kennedy 2002) and are
    reflected at the bounds; the velocity is the difference of the last two positions. In the
    others a vote is drawn: the particle votes for its present choice and for its best one, its
    neighbors for their best ones, the better the neighbor the more.

    A row that would repeat a trial is shaken, a bit harder each time. A particle that has come to
    lie on a plateau, where its velocity means nothing, starts anew anywhere.

    Args:
        history: What is known, with at least one row.
        number: Number of the trial to place.
        n_particles: Size of the swarm, at least 2.
        rng: Source of randomness; one of its own for each trial.
        topology: Whose best attracts a particle: ``"global"``, that of the whole swarm, or
            ``"ring"``, that of the particle itself and the ones before and after it.
        snap: Maps a row to the row that stands for the same parameters. The default is for
            continuous columns.

    Returns:
        Array of shape ``(d,)``. A coordinate is NaN where any will do; all are, if the particle
        has no position yet or lies on a plateau, if what it hears of is all equally good, or if
        everything around it is taken.

    References:
        J. Kennedy, R. Eberhart (1995), ICNN. M. Clerc, J. Kennedy (2002), IEEE Trans. Evol.
        Comput. 6(1), *The particle swarm: explosion, stability, and convergence*. A. Engelbrecht
        (2012), CEC, *Particle swarm optimization: velocity initialization* (to zero).
    """
    nowhere = np.full(history.rows.shape[1], np.nan)
    particle = number % n_particles
    flight = np.flatnonzero(history.numbers % n_particles == particle)
    if not len(flight) or is_on_plateau(
        history.rows, history.values, int(flight[-1]), history.n_values
    ):
        return nowhere
    informants = _informants(history, particle, n_particles, topology)
    if len(informants) > 1 and history.values[informants[0]] == history.values[informants[-1]]:
        return nowhere
    best = history.rows[informants[0]]
    if np.isnan(best).any():
        best = history.inherit(best)
    position = history.rows[flight[-1]]
    velocity = np.nan_to_num(position - history.rows[flight[-2]] if len(flight) > 1 else nowhere)
    position = np.where(np.isnan(position), best, position)
    own = history.rows[flight[np.argmin(history.values[flight])]]
    own = np.where(np.isnan(own), position, own)

    for shake in np.linspace(0.0, 1.0, _SHAKES):
        to_own, to_best = rng.uniform(0.0, _PHI, size=(2, len(position)))
        step = _CHI * (velocity + to_own * (own - position) + to_best * (best - position))
        row = position + step.clip(-_MAX_VELOCITY, _MAX_VELOCITY)
        row = reflect_at_bounds(row + shake * rng.uniform(-0.5, 0.5, size=len(row)))
        for j in np.flatnonzero(~np.array(history.ordered) & ~np.isnan(row)):
            votes = np.full(history.n_values[j] or 0, _NOVELTY + shake)
            _vote(votes, position[j], 1.0)
            _vote(votes, own[j], to_own[j])
            ranks = np.arange(len(informants), 0, -1)
            _vote(votes, history.rows[informants, j], to_best[j] * ranks / ranks.sum())
            row[j] = (rng.choice(len(votes), p=votes / votes.sum()) + 0.5) / len(votes)
        if not history.is_taken(snap(row)):
            return row
    return nowhere


def _informants(
    history: History, particle: int, n_particles: int, topology: Topology
) -> np.ndarray:
    """Return the indices of the best rows of a particle's neighbors and its own, best first."""
    ranking = history.ranking()
    particles = history.numbers[ranking] % n_particles
    best = np.full(n_particles, -1)
    best[particles[::-1]] = ranking[::-1]  # of several of a particle the last one stays
    if topology == "ring":
        best = best[[(particle + side) % n_particles for side in (-1, 0, 1)]]
    best = np.unique(best[best >= 0])
    return best[np.argsort(history.values[best], kind="stable")]


def _vote(votes: np.ndarray, coordinates: np.ndarray | float, weights: np.ndarray | float) -> None:
    coordinates, weights = np.broadcast_arrays(coordinates, weights)
    has_one = ~np.isnan(coordinates)
    choices = (coordinates[has_one] * len(votes)).astype(int)
    np.add.at(votes, choices, weights[has_one])
