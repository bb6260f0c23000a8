"""Handwritten digits: a multilayer perceptron whose depth decides which parameters exist.

The 1797 digits (8x8 pixels) come with scikit-learn; on a CPU a trial takes part of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
from typing import Any
from typing import TYPE_CHECKING

from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.trial import BaseTrial

from objectives.space import suggest


if TYPE_CHECKING:
    import torch

    from objectives.training import Recipe
    from objectives.training import Task

SPACE: dict[str, BaseDistribution] = {
    "n_layers": IntDistribution(1, 3),
    "units_0": IntDistribution(8, 128, log=True),
    "units_1": IntDistribution(8, 128, log=True),  # with n_layers > 1
    "units_2": IntDistribution(8, 128, log=True),  # with n_layers > 2
    "activation": CategoricalDistribution(("relu", "tanh")),
    "dropout": FloatDistribution(0.0, 0.5),
    "lr": FloatDistribution(1e-3, 1.0, log=True),
    "momentum": FloatDistribution(0.0, 0.95),
    "batch_size": IntDistribution(16, 256, log=True),
}
"""Every parameter that can occur; ``units_i`` exists when ``n_layers > i``."""

DIRECTION = "maximize"
"""The value is the accuracy on the validation digits."""

DEFAULTS: dict[str, Any] = {
    "n_layers": 1,
    "units_0": 64,
    "activation": "relu",
    "dropout": 0.0,
    "lr": 0.1,
    "momentum": 0.9,
    "batch_size": 64,
}
"""A sensible point to start from."""

EPOCHS = 20
"""How long a trial trains if not told otherwise."""


def objective(
    trial: BaseTrial,
    *,
    epochs: int = EPOCHS,
    device: str | torch.device = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    amp: bool = False,
    compile: bool = False,
) -> float:
    """Train a multilayer perceptron by SGD with momentum on 1197 digits.

    Args:
        trial:
            Gives the parameters of ``SPACE``.
        epochs:
            Passes over the training digits; the value is reported after each.
        device:
            ``"auto"`` (CUDA, else MPS, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        data_dir:
            Not needed: the digits are bundled with scikit-learn.
        seed:
            Fixes first weights, order of the rows and dropout masks.
        amp:
            Whether to compute in bfloat16 where safe.
        compile:
            Whether to compile the network first.

    Returns:
        The accuracy on 300 validation digits; NaN if the training diverged or ran out of memory.
    """
    from objectives.training import fit

    return fit(
        trial,
        task(data_dir=data_dir),
        epochs=epochs,
        device=device,
        seed=seed,
        amp=amp,
        compile=compile,
    )


def task(*, data_dir: str | os.PathLike[str] | None = None) -> Task:
    """Return what :func:`objective` trains; its argument is the one of the same name there."""
    from objectives.data import load
    from objectives.training import Task

    return Task(
        hyperparameters=_hyperparameters,
        recipe=_recipe,
        data=lambda where: [load("digits", device=where, data_dir=data_dir)],
    )


def _hyperparameters(trial: BaseTrial) -> dict[str, Any]:
    n_layers = suggest(trial, SPACE, "n_layers")
    units = [f"units_{i}" for i in range(n_layers)]
    others = ("activation", "dropout", "lr", "momentum", "batch_size")
    return {
        "n_layers": n_layers,
        **{name: suggest(trial, SPACE, name) for name in (*units, *others)},
    }


def _recipe(params: Mapping[str, Any]) -> Recipe:
    from torch.optim import SGD

    from objectives.nets import mlp
    from objectives.training import Recipe

    units = [params[f"units_{i}"] for i in range(params["n_layers"])]
    return Recipe(
        model=lambda generator: mlp(
            (64, *units, 10),
            activation=params["activation"],
            dropout=params["dropout"],
            generator=generator,
        ),
        optimizer=lambda weights: SGD(weights, lr=params["lr"], momentum=params["momentum"]),
        batch_size=params["batch_size"],
    )
