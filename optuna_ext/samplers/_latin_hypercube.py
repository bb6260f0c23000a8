from __future__ import annotations

import math
from typing import get_args
from typing import TYPE_CHECKING

from optuna_ext.points import latin_hypercube
from optuna_ext.points import LatinHypercubeKind
from optuna_ext.points.latin_hypercube import check_latin_hypercube
from optuna_ext.samplers._sets import DeclaredSizeSampler


if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class LatinHypercubeSampler(DeclaredSizeSampler):
    """Sampler that places a declared number of trials as a Latin hypercube.

    Every parameter's range is cut into ``n_points`` equal parts and each part is used by exactly
    one trial, in any number of dimensions, with parallel workers and after a restart.

    Trial ``i`` takes row ``i``; nothing is stored and workers need not talk. Later trials open a
    further hypercube with a seed of its own. Conditional and changing spaces, enqueued and
    partially fixed parameters are welcome.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import LatinHypercubeSampler

            study = optuna.create_study(sampler=LatinHypercubeSampler(n_points=20, seed=0))
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20)

    Args:
        n_points:
            Number of points of the set, normally the number of trials.
        kind:
            ``"plain"`` (default): a random place inside each part. ``"centered"``: the middle of
            each part. ``"random-cd"``: columns permuted to lower the centered discrepancy; needs
            ``search_space``. ``"strength-2"``: any two parameters also form a balanced grid
            (Tang 1993); ``n_points`` must be the square of a prime ``p``, for up to ``p + 1``
            parameters.
        search_space:
            Distributions by name, if known: they take the first columns in this order. The
            default, :obj:`None`, gives columns in order of first appearance in the study.
        seed:
            Seed of the permutations, a non-negative integer. The default, :obj:`None`, derives it
            from the study's name.
        retry_failed:
            Whether trials beyond the set first take again the points whose trial FAILed or ran
            with enqueued parameters instead (noted in the user attribute ``design_row``).
        first_trial:
            Number of the trial that takes row 0, for a study that began with something else.

    Raises:
        TypeError: If ``n_points``, ``seed`` or ``first_trial`` is not an integer.
        ValueError: If an argument is out of range, ``kind`` is unknown, or ``kind`` does not fit
            ``n_points`` or ``search_space``.

    .. seealso::
        M. D. McKay, R. J. Beckman, W. J. Conover (1979), Technometrics 21(2); B. Tang (1993),
        J. Am. Stat. Assoc. 88(424).
    """

    def __init__(
        self,
        *,
        n_points: int,
        kind: LatinHypercubeKind = "plain",
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
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
        self._kind: LatinHypercubeKind = kind
        try:
            check_latin_hypercube(n_points, len(self._space), kind=kind)
        except ValueError as error:
            if kind not in get_args(LatinHypercubeKind):
                raise
            raise ValueError(
                f"There is no Latin hypercube for {n_points=} and {len(self._space)} declared "
                f"parameters: {error}"
            ) from None
        if kind == "random-cd" and not self._space:
            raise ValueError(
                "`kind='random-cd'` optimizes a known number of columns: give `search_space`."
            )

    def _n_columns(self, study: Study, trial: FrozenTrial) -> int | None:
        del study, trial
        if self._kind == "random-cd":
            return len(self._space)
        if self._kind == "strength-2":
            return math.isqrt(self._n_points) + 1
        return None

    def _points(self, seed: int, size: int, n_columns: int) -> NDArray[np.float64]:
        return latin_hypercube(size, n_columns, seed=seed, kind=self._kind)
