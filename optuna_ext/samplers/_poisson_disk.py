from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_ext._checks import check_int
from optuna_ext.points import poisson_disk
from optuna_ext.points.poisson_disk import check_poisson_disk
from optuna_ext.samplers import _host
from optuna_ext.samplers._sets import SetSampler


if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class PoissonDiskSampler(SetSampler):
    """Sampler that places trials as blue noise: random, but no two closer than a radius.

    Distances are taken in the unit cube of the transformed parameters (log scales straightened)
    and around its borders, so the borders are not crowded. Declare either how many points there
    shall be (as far apart as possible) or the radius (as many points as fit).

    A distance needs a known number of parameters: those of ``search_space``, else those of the
    study's first trial; any further parameter is stratified by itself. Give ``search_space``
    where workers start at the same moment: until the first trial has suggested all its
    parameters, the distance is not guaranteed.

    Trial ``i`` takes row ``i``; nothing is stored and workers need not talk. Later trials open a
    further set with a seed of its own.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import PoissonDiskSampler

            space = {
                "x": optuna.distributions.FloatDistribution(0, 1),
                "y": optuna.distributions.FloatDistribution(0, 1),
            }
            sampler = PoissonDiskSampler(n_points=30, search_space=space, seed=0)
            study = optuna.create_study(sampler=sampler)
            study.optimize(
                lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1),
                n_trials=30,
            )

    Args:
        n_points:
            Number of points of the set, normally the number of trials.
        radius:
            Smallest distance of two points instead, in units of the cube's edge.
        search_space:
            Distributions by name, if known: they take the first columns in this order. The
            default, :obj:`None`, gives columns in order of first appearance in the study.
        seed:
            Seed of the set, a non-negative integer. The default, :obj:`None`, derives it from the
            study's name.
        retry_failed:
            Whether trials beyond the set first take again the points whose trial FAILed or ran
            with enqueued parameters instead (noted in the user attribute ``design_row``).
        first_trial:
            Number of the trial that takes row 0, for a study that began with something else.

    Raises:
        TypeError: If ``n_points``, ``seed`` or ``first_trial`` is not an integer.
        ValueError: If an argument is out of range, or not exactly one of ``n_points`` and
            ``radius`` is given.

    .. seealso::
        R. L. Cook (1986), ACM Trans. Graph. 5(1); M. N. Gamito, S. C. Maddock (2009), ACM Trans.
        Graph. 29(1).
    """

    def __init__(
        self,
        *,
        n_points: int | None = None,
        radius: float | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
        retry_failed: bool = False,
        first_trial: int = 0,
    ) -> None:
        if (n_points is None) == (radius is None):
            raise ValueError(
                f"Give exactly one of `n_points` and `radius`, but {n_points=} and {radius=}."
            )
        if n_points is not None:
            check_int("n_points", n_points, low=1)
        super().__init__(
            search_space=search_space,
            seed=seed,
            retry_failed=retry_failed,
            first_trial=first_trial,
        )
        try:
            check_poisson_disk(len(self._space), n=n_points, radius=radius)
        except ValueError as error:
            raise ValueError(
                f"There is no Poisson disk set for {n_points=} and {radius=}: {error}"
            ) from None
        self._n_points = n_points
        self._radius = radius
        self._sizes: dict[tuple[int, int], int] = {}  # how many points fit: a cache

    def _n_columns(self, study: Study, trial: FrozenTrial | None) -> int | None:
        return len(self._space) or self._columns.n_first(study, trial)

    def _size(self, study: Study, trial: FrozenTrial | None) -> int | None:
        n_columns = self._n_columns(study, trial)
        if n_columns is None:
            return None
        if self._n_points is not None:
            return self._n_points
        seed = _host.seed_of(study, self._seed)
        if (seed, n_columns) not in self._sizes:
            rows = poisson_disk(n_columns, radius=self._radius, seed=seed)
            self._sizes[seed, n_columns] = len(rows)
        return self._sizes[seed, n_columns]

    def _points(self, seed: int, size: int, n_columns: int) -> NDArray[np.float64]:
        if self._radius is None:
            return poisson_disk(n_columns, n=size, seed=seed)
        rows = poisson_disk(n_columns, radius=self._radius, seed=seed)
        # How many points fit differs a little by seed; all sets have the size of the first.
        return rows if len(rows) >= size else poisson_disk(n_columns, n=size, seed=seed)
