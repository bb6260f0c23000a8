from __future__ import annotations

from typing import get_args
from typing import TYPE_CHECKING

from optuna_ext._checks import check_int
from optuna_ext.moves import swarm
from optuna_ext.samplers._history import HistorySampler
from optuna_ext.samplers._snap import row_snap


if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

    from optuna_ext.moves import History
    from optuna_ext.samplers._history import FailedTrials
    from optuna_ext.space import UnitSpace


class ParticleSwarmSampler(HistorySampler):
    """Sampler that moves a swarm of particles, drawn to the best places they have found.

    Trial ``i`` is the next step of particle ``i % n_particles``. A particle keeps some of its
    velocity and is drawn to the best place it has been to and to the best one that it has heard
    of. On a plateau, where its neighbor has exactly the same value, it starts anew. Numbers are
    seen on their own scale, linear or logarithmic, integers are rounded, and particles out of
    bounds are reflected. Choices are voted on: by the particle, for the present one and its best
    one, and by its neighbors, for their best ones. Choices that are increasing or decreasing
    numbers are treated as numbers. No trial repeats another one, finished or running, before the
    space is all but used up.

    Positions and velocities are read from the study's trials. So a study goes on in a new process
    as if it had not been interrupted, and any number of workers can join. Nobody waits: a
    particle whose trial is still running, or has failed, goes on from its last finished one.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import ParticleSwarmSampler


            def objective(trial):
                lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
                optimizer = trial.suggest_categorical("optimizer", ["sgd", "adam"])
                return abs(lr - 1e-3) * 100 + (optimizer == "sgd")


            study = optuna.create_study(sampler=ParticleSwarmSampler(seed=0))
            study.optimize(objective, n_trials=40)

    Args:
        n_particles:
            Size of the swarm, at least 2. The default suits studies of some ten to some hundred
            trials; take 20 to 50 for thousands.
        topology:
            Whose best places a particle hears of: ``"global"``, those of all particles, or
            ``"ring"``, those of the particles before and after it, which is slower to agree on a
            place.
        startup_sampler:
            Sampler of the first ``n_particles`` trials and of parameters that no trial has had.
            The default, :obj:`None`, is a :class:`~optuna_ext.SobolSampler`. Velocities start at
            zero.
        failed:
            Whether to ``"ignore"`` failed trials or to count them as ``"worst"``, so that their
            points are not tried again. Pruned trials count with their last reported value.
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
        J. Kennedy, R. Eberhart (1995), *Particle swarm optimization*, ICNN; M. Clerc, J. Kennedy
        (2002), *The particle swarm: explosion, stability, and convergence in a multidimensional
        complex space*, IEEE Trans. Evol. Comput. 6(1), for the constriction.
    """

    def __init__(
        self,
        *,
        n_particles: int = 8,
        topology: swarm.Topology = "global",
        startup_sampler: BaseSampler | None = None,
        failed: FailedTrials = "ignore",
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
    ) -> None:
        self._n_particles = check_int("n_particles", n_particles, low=2)
        if topology not in get_args(swarm.Topology):
            raise ValueError(
                f"`topology` must be one of {get_args(swarm.Topology)}, but got {topology!r}."
            )
        super().__init__(
            search_space=search_space,
            seed=seed,
            n_startup_trials=self._n_particles,
            startup_sampler=startup_sampler,
            failed=failed,
        )
        self._topology: swarm.Topology = topology

    def _next_row(
        self, history: History, space: UnitSpace, number: int, rng: np.random.Generator
    ) -> np.ndarray:
        return swarm.next_row(
            history,
            number=number,
            n_particles=self._n_particles,
            rng=rng,
            topology=self._topology,
            snap=row_snap(space),
        )
