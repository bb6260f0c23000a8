from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_ext.points import hammersley
from optuna_ext.samplers._sets import DeclaredSizeSampler


if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class HammersleySampler(DeclaredSizeSampler):
    """Sampler that places a declared number of trials by the Hammersley set.

    One column is the equidistant grid ``(i + 1/2) / n_points``, the others are the Halton
    sequence: for a number of trials known beforehand this is more even than
    :class:`~optuna_ext.HaltonSampler`. The rows are shuffled once, so that a part of the study is
    spread, too.

    Trial ``i`` takes row ``i``; nothing is stored and workers need not talk. Later trials open a
    further set with a seed of its own. Conditional and changing spaces, enqueued and partially
    fixed parameters are welcome, up to 1,025 of them.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import HammersleySampler

            study = optuna.create_study(sampler=HammersleySampler(n_points=20, seed=0))
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20)

    Args:
        n_points:
            Number of points of the set, normally the number of trials.
        search_space:
            Distributions by name, if known: they take the first columns in this order. The
            default, :obj:`None`, gives columns in order of first appearance in the study.
        seed:
            Seed of the digit permutations and of the order, a non-negative integer. The default,
            :obj:`None`, derives it from the study's name.
        scramble:
            Whether to permute the digits of the Halton columns.
        retry_failed:
            Whether trials beyond the set first take again the points whose trial FAILed or ran
            with enqueued parameters instead (noted in the user attribute ``design_row``).
        first_trial:
            Number of the trial that takes row 0, for a study that began with something else.

    Raises:
        TypeError: If ``n_points``, ``seed`` or ``first_trial`` is not an integer.
        ValueError: If ``n_points < 1``, or ``seed`` or ``first_trial`` is negative.

    .. seealso::
        J. M. Hammersley (1960), Ann. N. Y. Acad. Sci. 86.
    """

    def __init__(
        self,
        *,
        n_points: int,
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
        scramble: bool = True,
        retry_failed: bool = False,
        first_trial: int = 0,
    ) -> None:
        super().__init__(
            n_points=n_points,
            search_space=search_space,
            seed=seed,
            retry_failed=retry_failed,
            first_trial=first_trial,
        )
        self._scramble = bool(scramble)

    def _n_columns(self, study: Study, trial: FrozenTrial) -> None:
        del study, trial

    def _points(self, seed: int, size: int, n_columns: int) -> NDArray[np.float64]:
        return hammersley(size, n_columns, seed=seed, scramble=self._scramble)
