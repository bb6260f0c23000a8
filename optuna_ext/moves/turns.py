"""Whose turn it is: which part of a space a neighborhood search goes on in."""

from __future__ import annotations

import numpy as np

from optuna_ext.moves.history import agreeing
from optuna_ext.moves.history import History
from optuna_ext.moves.history import SAME


_RANK_POWER = 1.5  # how much fewer trials a branch gets, the worse its best row is
_MAX_REGIONS = 4  # of a branch that are looked at by turns
_LEAVE = 1 / 3  # probability of leaving a region that yields nothing for the next one


def whose_turn(
    history: History, ranking: np.ndarray, radius: float, rng: np.random.Generator
) -> int:
    """Return the index of the row to poll around: the best one of a region of a branch.

    A region is what has the same choices as its best row and is within ``radius`` of it. It
    yields nothing when as many of its rows as there are columns came after its best. Then chance
    may give the turn to the next region.

    Args:
        history: At least one evaluated row.
        ranking: Indices of its rows from best to worst.
        radius: Of a region, as a share of each parameter's range.
        rng: Source of chance.
    """
    radii = SAME + np.where(history.ordered, radius, 0.0)
    rest = _branch(history, ranking)
    is_left = np.zeros(len(history), bool)
    is_left[rest] = True
    for _ in range(_MAX_REGIONS):
        head = int(rest[0])
        region = agreeing(history.rows, history.rows[head], radii)
        region = region[is_left[region]]
        n_in_vain = np.count_nonzero(region > head)
        if n_in_vain < len(radii) or len(region) == len(rest) or rng.random() >= _LEAVE:
            break
        is_left[region] = False
        rest = rest[is_left[rest]]
    return head


def _branch(history: History, ranking: np.ndarray) -> np.ndarray:
    """Return the rows, best first, of the branch of a conditional space whose turn it is.

    A branch is what has the same parameters. The neighbors of the best row hardly show what
    another branch is good for, as each needs values of its own. So trials are shared among the
    branches, by the rank of their best rows: the k-th best gets one in proportion to k**-1.5.
    """
    if not history.has_absent:
        return ranking
    present = ~np.isnan(history.rows[ranking])
    packed = np.packbits(present, axis=1)
    _, bests, branches, counts = np.unique(
        packed.view(f"S{packed.shape[1]}").ravel(),
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    centers = history.rows[ranking[bests]]
    for row in history.planned:
        distances = np.nan_to_num(np.abs(centers - row))
        distances = np.where(history.ordered, distances, distances > SAME)
        counts[distances.sum(axis=1).argmin()] += 1
    places = bests.argsort().argsort() + 1
    return np.asarray(ranking[branches == (counts * places**_RANK_POWER).argmin()])
