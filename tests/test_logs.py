from __future__ import annotations

import optuna
import pytest

from optuna_ext import PopulationBasedTrainingSampler


@pytest.mark.parametrize("verbosity", [optuna.logging.WARNING, optuna.logging.ERROR])
def test_optuna_decides_what_is_said(verbosity: int, caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.set_verbosity(verbosity)
    study = optuna.create_study(sampler=PopulationBasedTrainingSampler(population_size=2, seed=0))
    study.optimize(lambda trial: float("nan") if trial.number == 0 else 1.0, n_trials=3)
    said = [record for record in caplog.records if "Member 0 is lost" in record.getMessage()]
    assert len(said) == (verbosity == optuna.logging.WARNING)
    assert all(record.name.startswith("optuna.") for record in said)  # so its handlers apply
