"""A multilayer perceptron on a small part of Fashion-MNIST, for many short trainings.

Two thousand images to train with and 1,500 to validate with: an epoch takes a few milliseconds,
and six hyperparameters make learning curves that differ and cross.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
import os
from typing import Any
from typing import TYPE_CHECKING

from optuna.distributions import BaseDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.trial import BaseTrial

from objectives.space import suggest


if TYPE_CHECKING:
    import torch

    from objectives.data import Data
    from objectives.training import Recipe

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "batch_size": IntDistribution(16, 256, log=True),
    "momentum": FloatDistribution(0.0, 0.99),
    "weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
    "units": IntDistribution(8, 64, log=True),
    "dropout": FloatDistribution(0.0, 0.7),
}

DIRECTION = "maximize"

_N_TRAIN, _N_VALID = 2000, 1500


def objective(
    trial: BaseTrial,
    *,
    epochs: int = 27,
    device: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> float:
    """Train a network with one hidden layer; return the accuracy on the validation images."""
    from objectives.training import fit
    from objectives.training import Task

    task = Task(
        hyperparameters=lambda trial: {name: suggest(trial, SPACE, name) for name in SPACE},
        recipe=_recipe,
        data=lambda where: [_part(where, data_dir)],
    )
    return fit(trial, task, epochs=epochs, device=device, seed=seed)


def _recipe(params: Mapping[str, Any]) -> Recipe:
    from torch.optim import SGD

    from objectives.nets import mlp
    from objectives.training import Recipe

    return Recipe(
        model=lambda generator: mlp(
            (784, params["units"], 10), dropout=params["dropout"], generator=generator
        ),
        optimizer=lambda weights: SGD(
            weights,
            lr=params["lr"],
            momentum=params["momentum"],
            weight_decay=params["weight_decay"],
        ),
        batch_size=params["batch_size"],
    )


def _part(device: torch.device, data_dir: str | os.PathLike[str] | None) -> Data:
    from objectives.data import load

    whole = load("fashion", device=device, data_dir=data_dir)
    return replace(
        whole,
        train_x=whole.train_x[:_N_TRAIN],
        train_y=whole.train_y[:_N_TRAIN],
        valid_x=whole.valid_x[:_N_VALID],
        valid_y=whole.valid_y[:_N_VALID],
        test_x=whole.test_x[:_N_VALID],
        test_y=whole.test_y[:_N_VALID],
    )
