"""Reading parameters of a published ``SPACE`` through Optuna's public suggest methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.trial import BaseTrial


Space = Mapping[str, BaseDistribution]


def suggest(trial: BaseTrial, space: Space, name: str) -> Any:
    """Ask ``trial`` for the parameter ``name`` with the distribution that ``space`` gives it.

    Raises:
        TypeError: If the distribution is none of Optuna's float, int and categorical kinds.
    """
    match space[name]:
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
    raise TypeError(
        f"The distribution of {name!r} must be a FloatDistribution, an IntDistribution or a "
        f"CategoricalDistribution, but it is {space[name]!r}."
    )
