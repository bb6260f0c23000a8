"""MNIST: a convolutional network in the style of LeNet-5, best on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
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

    from objectives.training import Recipe
    from objectives.training import Task

SPACE: dict[str, BaseDistribution] = {
    "channels": IntDistribution(4, 32, log=True),
    "hidden": IntDistribution(32, 256, log=True),
    "lr": FloatDistribution(1e-3, 1.0, log=True),
    "momentum": FloatDistribution(0.0, 0.95),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "batch_size": IntDistribution(32, 512, log=True),
}
"""``channels`` of the first convolution, the second has twice as many; ``hidden`` dense units."""

DIRECTION = "maximize"
"""The value is the accuracy on the validation images."""

DEFAULTS: dict[str, Any] = {
    "channels": 8,
    "hidden": 128,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 128,
}
"""A sensible point to start from."""

EPOCHS = 3
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
    """Train a convolutional network by SGD with momentum on 55,000 images.

    Args:
        trial:
            Gives the parameters of ``SPACE``.
        epochs:
            Passes over the training images; the value is reported after each.
        device:
            ``"auto"`` (CUDA, else MPS, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        data_dir:
            The directory with the folder ``mnist``; ``None`` means ``$OPTUNA_EXT_DATA``, and what
            is not there is downloaded.
        seed:
            Fixes first weights and order of the images.
        amp:
            Whether to compute in bfloat16 where safe.
        compile:
            Whether to compile the network first.

    Returns:
        The accuracy on 5,000 validation images; NaN if the training diverged or ran out of memory.
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
        hyperparameters=lambda trial: {name: suggest(trial, SPACE, name) for name in SPACE},
        recipe=_recipe,
        data=lambda where: [load("mnist", device=where, data_dir=data_dir)],
    )


def _recipe(params: Mapping[str, Any]) -> Recipe:
    from torch.optim import SGD

    from objectives.nets import lenet
    from objectives.training import Recipe

    channels = params["channels"]
    settings = {name: params[name] for name in ("lr", "momentum", "weight_decay")}
    return Recipe(
        model=lambda _: lenet(channels=(channels, 2 * channels), hidden=(params["hidden"],)),
        optimizer=lambda weights: SGD(weights, **settings),
        batch_size=params["batch_size"],
    )
