from __future__ import annotations

import optuna
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
import pytest

from objectives.space import suggest


SPACE: dict[str, BaseDistribution] = {
    "float": FloatDistribution(-1.0, 1.0),
    "log": FloatDistribution(1e-3, 1.0, log=True),
    "stepped": FloatDistribution(0.0, 1.0, step=0.25),
    "int": IntDistribution(1, 9, step=2),
    "log_int": IntDistribution(1, 64, log=True),
    "choice": CategoricalDistribution((None, "a", 3)),
}


def test_the_trial_records_the_distribution_of_the_space() -> None:
    trial = optuna.create_study().ask()
    values = {name: suggest(trial, SPACE, name) for name in SPACE}
    assert trial.distributions == SPACE
    assert trial.params == values


def test_another_kind_of_distribution_is_refused() -> None:
    class Other(BaseDistribution):
        def to_external_repr(self, param_value_in_internal_repr: float) -> float:
            return param_value_in_internal_repr

        def to_internal_repr(self, param_value_in_external_repr: float) -> float:
            return param_value_in_external_repr

        def single(self) -> bool:
            return False

        def _contains(self, param_value_in_internal_repr: float) -> bool:
            return True

    with pytest.raises(TypeError, match="distribution of 'x' must be"):
        suggest(optuna.create_study().ask(), {"x": Other()}, "x")
