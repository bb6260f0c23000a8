"""Decision boundaries in the plane: very small networks, trained by Adam on all points at once.

The three data sets and three networks of Auto-Tune (Jacobson & Gonzalez 2020) as they were meant:
with teachers that separate the classes at 1/2 and use both, with a validation split of its own,
and with a logarithmic scale for the learning rate.
"""

from __future__ import annotations

import os
from typing import Any
from typing import Literal
from typing import TYPE_CHECKING

from optuna.distributions import BaseDistribution
from optuna.distributions import FloatDistribution
from optuna.trial import BaseTrial

from objectives.space import suggest


if TYPE_CHECKING:
    import torch

    from objectives.training import Recipe
    from objectives.training import Task

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-3, 1.0, log=True),
    "beta1": FloatDistribution(0.0, 0.99),
}
"""Adam's learning rate, in the range of the paper, and the decay of its first moment."""

DIRECTION = "maximize"
"""The value is the accuracy on the validation points."""

DEFAULTS: dict[str, Any] = {"lr": 0.03, "beta1": 0.9}
"""A sensible point to start from."""

EPOCHS = 5
"""How long a trial trains if not told otherwise."""

_STEPS = 70  # of an epoch, each on all points


def objective(
    trial: BaseTrial,
    *,
    dataset: int = 1,
    net: Literal["logistic", "simple", "three-layer"] = "simple",
    epochs: int = EPOCHS,
    device: str | torch.device = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    amp: bool = False,
    compile: bool = False,
) -> float:
    """Train a network of 3, 13 or 51 parameters by Adam on 8,000 points.

    Args:
        trial:
            Gives the parameters of ``SPACE``.
        dataset:
            1 (two Gaussian clusters, 1% mislabeled), 2 (classes given by a random ``"simple"``
            network) or 3 (given by a random ``"three-layer"`` network).
        net:
            ``"logistic"`` (2-1), ``"simple"`` (2-3-1) or ``"three-layer"`` (2-5-5-1).
        epochs:
            How long to train, 70 steps on all points each; the value is reported after each.
        device:
            ``"auto"`` (CUDA, else MPS, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        data_dir:
            Not needed: the points are generated.
        seed:
            Fixes the first weights.
        amp:
            Whether to compute in bfloat16 where safe.
        compile:
            Whether to compile the network first.

    Returns:
        The accuracy on 2,000 validation points; NaN if the training diverged or ran out of memory.

    Raises:
        ValueError: If there is no such ``dataset``, ``net`` or ``device``.
    """
    from objectives.training import fit

    return fit(
        trial,
        task(dataset=dataset, net=net, data_dir=data_dir),
        epochs=epochs,
        device=device,
        seed=seed,
        amp=amp,
        compile=compile,
    )


def task(
    *,
    dataset: int = 1,
    net: Literal["logistic", "simple", "three-layer"] = "simple",
    data_dir: str | os.PathLike[str] | None = None,
) -> Task:
    """Return what :func:`objective` trains; its arguments are those of the same names there.

    Raises:
        ValueError: If there is no such ``dataset``.
    """
    from objectives.data import load
    from objectives.training import Task

    if dataset not in (1, 2, 3):
        raise ValueError(f"dataset must be 1, 2 or 3, but it is {dataset!r}.")
    return Task(
        hyperparameters=lambda trial: {name: suggest(trial, SPACE, name) for name in SPACE},
        recipe=lambda params: _recipe(**params, net=net),
        data=lambda where: [load(f"boundaries-{dataset}", device=where, data_dir=data_dir)],
    )


def _recipe(
    *, lr: float, beta1: float, net: Literal["logistic", "simple", "three-layer"]
) -> Recipe:
    from torch.optim import Adam

    from objectives.nets import boundary_net
    from objectives.training import Recipe

    return Recipe(
        model=lambda _: boundary_net(net),
        optimizer=lambda weights: Adam(weights, lr=lr, betas=(beta1, 0.999)),
        batch_size=None,
        passes_per_epoch=_STEPS,
    )
