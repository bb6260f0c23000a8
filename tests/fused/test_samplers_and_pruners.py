from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import TrialState
import pytest

import optuna_ext


SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "tpe": lambda: optuna.samplers.TPESampler(seed=0, constant_liar=True, n_startup_trials=5),
    "gp": lambda: optuna.samplers.GPSampler(seed=0, n_startup_trials=5),
    "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=0, n_startup_trials=2),
    "sobol": lambda: optuna_ext.SobolSampler(seed=0),
    "lhs": lambda: optuna_ext.LatinHypercubeSampler(n_points=16, seed=0),
    "evolutionary": lambda: optuna_ext.EvolutionarySampler(population_size=5, seed=0),
    "nelder-mead": lambda: optuna_ext.NelderMeadSampler(seed=0),
    "particle-swarm": lambda: optuna_ext.ParticleSwarmSampler(seed=0),
    "approximate-gradient": lambda: optuna_ext.ApproximateGradientSampler(seed=0),
}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=4),
}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestSamplersAndPruners:
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_samplers(self, toy: Any, name: str) -> None:
        study = toy.run(12, slots=4, study=toy.new_study(sampler=SAMPLERS[name]()))
        assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
        assert len({tuple(trial.params.values()) for trial in study.trials}) > 6

    @pytest.mark.parametrize("name", [*SAMPLERS])
    def test_one_slot_is_the_ordinary_study(self, toy: Any, name: str) -> None:
        theirs = toy.new_study(sampler=SAMPLERS[name]())
        theirs.optimize(lambda trial: toy.alone(trial, toy.problem()), n_trials=9)
        ours = toy.run(9, slots=1, study=toy.new_study(sampler=SAMPLERS[name]()))
        assert [t.params for t in ours.trials] == [
            pytest.approx(t.params, rel=1e-6) for t in theirs.trials
        ]

    @pytest.mark.parametrize("name", PRUNERS)
    def test_pruners(self, toy: Any, name: str) -> None:
        study = toy.run(40, slots=8, study=toy.new_study(pruner=PRUNERS[name]()))
        states = [trial.state for trial in study.trials]
        assert {*states} == {TrialState.COMPLETE, TrialState.PRUNED}
        full = toy.run(40, slots=8)
        for one, two in zip(toy.curves(study), toy.curves(full), strict=True):
            assert one == pytest.approx({step: two[step] for step in one}, rel=1e-12)

    def test_one_slot_prunes_as_the_ordinary_study(self, toy: Any) -> None:
        for make in PRUNERS.values():
            theirs = toy.new_study(pruner=make(), study_name="same")
            theirs.optimize(lambda trial: toy.alone(trial, toy.problem()), n_trials=20)
            toy.assert_same(
                toy.run(20, slots=1, study=toy.new_study(pruner=make(), study_name="same")), theirs
            )
