from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from optuna_ext._checks import check_int
from optuna_ext.moves.replay import Replay
from optuna_ext.moves.simplex import local_search
from optuna_ext.samplers._history import HistorySampler
from optuna_ext.samplers._snap import row_snap


if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import numpy as np
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

    from optuna_ext.moves import History
    from optuna_ext.moves.replay import SnapRow
    from optuna_ext.samplers._history import FailedTrials
    from optuna_ext.space import UnitSpace


class NelderMeadSampler(HistorySampler):
    """Sampler that moves a simplex downhill, by the rules of Nelder and Mead.

    From the best of the start-up trials, the sampler first tries other choices, one parameter
    at a time, and then lets a simplex of ``d + 1`` points crawl and shrink over the ``d`` numbers
    with the choices held. Both take turns until neither is better; then they start over from the
    second best start-up trial, and so on. A simplex that makes no progress where neighbors have
    exactly the same value, on a plateau, is given up. Numbers are seen on their own scale, linear
    or logarithmic, integers are rounded, and points out of bounds are reflected. Choices that are
    increasing or decreasing numbers are treated as numbers.

    The method suits smooth objectives with little noise and up to about ten numbers. On a
    continuous objective it evaluates the same points as scipy's ``method="Nelder-Mead"`` from the
    same simplex until it meets a bound.

    It is sequential by nature. When several trials run at once, they evaluate the points among
    which the simplex may have to decide next (reflection, expansion and both contractions), and
    then go on to the next start; nobody waits. A study goes on in a new process as if it had not
    been interrupted.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import NelderMeadSampler


            def objective(trial):
                lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
                width = trial.suggest_int("width", 8, 512, log=True)
                return abs(lr - 1e-3) * 100 + abs(width - 100) / 100


            study = optuna.create_study(sampler=NelderMeadSampler(seed=0))
            study.optimize(objective, n_trials=40)

    Args:
        edge:
            Length of the first simplex's edges as a share of each parameter's range, in
            ``(0, 0.5]``. Where a parameter has few values, one step if that is longer.
        adaptive:
            Whether the coefficients depend on the number of dimensions ``d`` (Gao and Han 2012).
            For ``d > 2`` the simplex then shrinks more slowly and keeps its shape. That pays from
            about ten dimensions and a thousand trials on; in a hundred trials it gets less far.
        tolerance:
            A simplex has converged when it is not longer than this along any axis, as a share of
            the parameter's range, or when all of its corners stand for the same parameters.
        n_startup_trials:
            Number of trials that ``startup_sampler`` makes, enqueued trials included.
        startup_sampler:
            Sampler of the first trials and of parameters that no trial has had. The default,
            :obj:`None`, is a :class:`~optuna_ext.SobolSampler`.
        failed:
            ``"worst"`` counts failed trials as worse than all others, which makes the simplex
            turn away. ``"ignore"`` tries their points again until they succeed, which is only
            right where failures have nothing to do with the parameters. Pruned trials count with
            their last reported value.
        search_space:
            Distributions by name, if known. The default, :obj:`None`, takes them from the trials.
        seed:
            Seed, a non-negative integer. The default, :obj:`None`, derives it from the study's
            name, so that all workers on a study agree.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range or not one of its choices; at the first
            trial, if the study has several objectives.

    .. seealso::
        J. A. Nelder, R. Mead (1965), *A simplex method for function minimization*, Comput. J.
        7(4); F. Gao, L. Han (2012), *Implementing the Nelder-Mead simplex algorithm with adaptive
        parameters*, Comput. Optim. Appl. 51.
    """

    def __init__(
        self,
        *,
        edge: float = 0.25,
        adaptive: bool = False,
        tolerance: float = 0.01,
        n_startup_trials: int = 16,
        startup_sampler: BaseSampler | None = None,
        failed: FailedTrials = "worst",
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
    ) -> None:
        if not 0.0 < edge <= 0.5:
            raise ValueError(f"`edge` must be in (0, 0.5], but got {edge}.")
        if not 0.0 <= tolerance < edge:
            raise ValueError(
                f"`tolerance` must be in [0, `edge`), `edge` is {edge}, but got {tolerance}."
            )
        check_int("n_startup_trials", n_startup_trials, low=1)
        super().__init__(
            search_space=search_space,
            seed=seed,
            n_startup_trials=n_startup_trials,
            startup_sampler=startup_sampler,
            failed=failed,
        )
        self._edge = edge
        self._adaptive = bool(adaptive)
        self._tolerance = tolerance
        self._replay: tuple[UnitSpace, Replay] | None = None  # a cache

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_replay": None}

    def _next_row(
        self, history: History, space: UnitSpace, number: int, rng: np.random.Generator
    ) -> np.ndarray:
        del number, rng  # everything follows from the history
        if self._replay is None or self._replay[0] is not space:
            self._replay = space, self._start_replay(row_snap(space))
        return self._replay[1].next_row(history)

    def _start_replay(self, snap: SnapRow) -> Replay:
        search = functools.partial(
            local_search,
            edge=self._edge,
            adaptive=self._adaptive,
            tolerance=self._tolerance,
            snap=snap,
        )
        return Replay(search, n_startup=self._n_startup_trials, snap=snap)
