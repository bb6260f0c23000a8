"""Optuna's own conformance suite on every sampler."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler
from optuna.samplers import nsgaii
from optuna.testing.pytest_samplers import BasicSamplerTestCase
from optuna.testing.pytest_samplers import MultiObjectiveSamplerTestCase
from optuna.testing.pytest_samplers import RelativeSamplerTestCase
from optuna.testing.pytest_samplers import SingleOnlySamplerTestCase
import pytest

import optuna_ext


Factory = Callable[[], BaseSampler]


class _Contract(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    pass


class _SingleObjectiveContract(
    BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
):
    pass


class TestSobol(_Contract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return optuna_ext.SobolSampler


class TestHalton(_Contract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return optuna_ext.HaltonSampler


class TestHammersley(_Contract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.HammersleySampler(n_points=7)


class TestLatinHypercube(_Contract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.LatinHypercubeSampler(n_points=7, retry_failed=True)


class TestStrength2LatinHypercube(_Contract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.LatinHypercubeSampler(n_points=9, kind="strength-2")


class TestPoissonDisk(_Contract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.PoissonDiskSampler(n_points=7)


class TestPoissonDiskOfRadius(_Contract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.PoissonDiskSampler(radius=0.3)


class TestWarmup(_Contract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.WarmupSampler(
            optuna_ext.SobolSampler(), 3, optuna_ext.HaltonSampler()
        )


class TestApproximateGradient(_SingleObjectiveContract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.ApproximateGradientSampler(n_startup_trials=2)


class TestCompleteApproximateGradient(_SingleObjectiveContract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.ApproximateGradientSampler(
            n_startup_trials=1, poll="complete", gradient="central", n_repeats=2
        )


class TestGridOfApproximateGradient(_SingleObjectiveContract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.ApproximateGradientSampler(n_startup_trials=2, n_levels=4)


class TestEvolutionary(_SingleObjectiveContract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.EvolutionarySampler(population_size=2)


class TestGenerationalEvolutionary(_SingleObjectiveContract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.EvolutionarySampler(
            population_size=2,
            crossover=nsgaii.UniformCrossover(),
            replacement="generational",
            steady_state=False,
        )


class TestNelderMead(_SingleObjectiveContract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.NelderMeadSampler(n_startup_trials=2)


class TestParticleSwarm(_SingleObjectiveContract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.ParticleSwarmSampler(n_particles=2)


class TestPopulationBasedTraining(_SingleObjectiveContract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.PopulationBasedTrainingSampler(population_size=2)


class TestAsynchronousPopulationBasedTraining(_SingleObjectiveContract):
    @pytest.fixture
    def sampler(self) -> Factory:
        return lambda: optuna_ext.PopulationBasedTrainingSampler(
            population_size=2,
            synchronous=False,
            exploit="tournament",
            explore=optuna.samplers.TPESampler(n_startup_trials=2),
        )
