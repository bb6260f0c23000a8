"""The direct searches of ``scipy.optimize``, which know nothing of studies, as competitors."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from contextlib import suppress
import math

import numpy as np
import numpy.typing as npt
from optuna.trial import FixedTrial

from optuna_ext import UnitSpace
from studies._errors import unknown
from studies._errors import UserError
from studies._problems import Objective
from studies._problems import Problem


Vector = npt.NDArray[np.float64]
Function = Callable[[Vector], float]
# Minimizes a function on the unit cube: (function, start, generator, evaluations there will be).
Search = Callable[[Function, Vector, np.random.Generator, int], object]

PREFIX = "scipy:"

_LAST = math.nextafter(1.0, 0.0)  # scipy's cube is closed, that of UnitSpace half-open


def _local(method: str) -> Search:
    def search(function: Function, start: Vector, rng: np.random.Generator, n: int) -> object:
        from scipy.optimize import minimize

        del rng, n
        return minimize(function, start, method=method, bounds=_cube(start))

    return search


def _direct(function: Function, start: Vector, rng: np.random.Generator, n: int) -> object:
    from scipy.optimize import direct

    del rng
    # It always begins at the center, so nothing but the budget must end it.
    return direct(function, _cube(start), maxfun=n, maxiter=n, vol_tol=0, len_tol=0)


def _evolution(function: Function, start: Vector, rng: np.random.Generator, n: int) -> object:
    from scipy.optimize import differential_evolution

    del n
    return differential_evolution(function, _cube(start), x0=start, rng=rng)


def _annealing(function: Function, start: Vector, rng: np.random.Generator, n: int) -> object:
    from scipy.optimize import dual_annealing

    del n
    return dual_annealing(function, _cube(start), x0=start, rng=rng)


SEARCHES: Mapping[str, Search] = {
    "scipy:nelder-mead": _local("Nelder-Mead"),
    "scipy:powell": _local("Powell"),
    "scipy:cobyqa": _local("COBYQA"),
    "scipy:direct": _direct,
    "scipy:differential-evolution": _evolution,
    "scipy:dual-annealing": _annealing,
}


def check_search(name: str, problem: Problem, *, parallel_trials: int) -> UnitSpace:
    """Return the unit cube in which a search of :data:`SEARCHES` looks at a problem.

    Raises:
        UserError: If there is no such search, or it cannot be tried on the problem.
    """
    if name not in SEARCHES:
        raise unknown("sampler", name, SEARCHES)
    if parallel_trials > 1:
        raise UserError(
            f"sampler {name!r} evaluates one point at a time: it takes no --parallel-trials "
            f"{parallel_trials}"
        )
    if problem.space is None:
        raise UserError(f"sampler {name!r} needs an objective whose module publishes its SPACE")
    space = UnitSpace(problem.space)
    finite = [n for n, count in zip(space.names, space.n_values, strict=True) if count is not None]
    if finite or not space.names:
        which = f"{finite[0]!r} is not" if finite else "there is none"
        raise UserError(f"sampler {name!r} needs parameters that are continuous, but {which}")
    return space


def search(
    name: str, objective: Objective, space: UnitSpace, *, maximize: bool, n_trials: int, seed: int
) -> Vector:
    """Run a search until it has evaluated ``n_trials`` points.

    Whenever it converges before, it begins anew at another random point. Everything but start and
    bounds is as scipy has it.

    Args:
        name: Name in :data:`SEARCHES`.
        objective: Objective whose value is NaN where it has none; the search meets the worst
            value there.
        space: Continuous parameters; the search works in its cube, so log scales are log scales.
        maximize: Whether larger values are better.
        n_trials: Number of evaluations.
        seed: Seed of the start points, equal for all searches, and of what is random in a search.

    Returns:
        The value at every point, shape ``(n_trials,)``.
    """
    values: list[float] = []

    def function(row: Vector) -> float:
        if len(values) == n_trials:
            raise _SpentError
        params = space.to_params(np.clip(row, 0.0, _LAST))
        values.append(objective(FixedTrial(params, number=len(values))))
        if math.isnan(values[-1]):
            return math.inf
        return -values[-1] if maximize else values[-1]

    # Not the stream of a test function of the same seed, which places its optimum.
    rng = np.random.default_rng((seed, 0x5C1))
    # Differences of infinite values are NaN, which compare as they should.
    with suppress(_SpentError), np.errstate(invalid="ignore"):
        while True:
            SEARCHES[name](function, rng.random(len(space)), rng, n_trials)
    return np.array(values)


class _SpentError(Exception):
    """The search asks for more points than it may evaluate."""


def _cube(start: Vector) -> list[tuple[float, float]]:
    return [(0.0, 1.0)] * len(start)
