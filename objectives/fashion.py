"""Fashion-MNIST: softmax regression with one parameter, the learning rate.

The first example of Dive into Deep Learning, section 19.1, with validation images that are not the
test images and a range of learning rates that reaches from too small to too large.
"""

from __future__ import annotations

import os
from typing import Any
from typing import TYPE_CHECKING

from optuna.distributions import BaseDistribution
from optuna.distributions import FloatDistribution
from optuna.trial import BaseTrial

from objectives.space import suggest


if TYPE_CHECKING:
    import torch

    from objectives.training import Recipe
    from objectives.training import Task

SPACE: dict[str, BaseDistribution] = {"lr": FloatDistribution(1e-4, 1.0, log=True)}
"""The learning rate of SGD."""

DIRECTION = "minimize"
"""The value is the share of validation images classified wrongly."""

DEFAULTS: dict[str, Any] = {"lr": 0.1}
"""A sensible point to start from."""

EPOCHS = 8
"""How long a trial trains if not told otherwise, as in the book."""


def objective(
    trial: BaseTrial,
    *,
    batch_size: int = 256,
    epochs: int = EPOCHS,
    device: str | torch.device = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    amp: bool = False,
    compile: bool = False,
) -> float:
    """Train softmax regression by SGD on 50,000 images.

    Args:
        trial:
            Gives the parameters of ``SPACE``.
        batch_size:
            Images per step. The book takes 16, which is slower and wants smaller learning rates.
        epochs:
            Passes over the training images; the value is reported after each.
        device:
            ``"auto"`` (CUDA, else MPS, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        data_dir:
            The directory with the folder ``fashion-mnist``; ``None`` means ``$OPTUNA_EXT_DATA``,
            and what is not there is downloaded.
        seed:
            Fixes first weights and order of the images.
        amp:
            Whether to compute in bfloat16 where safe.
        compile:
            Whether to compile the network first.

    Returns:
        The error on 10,000 validation images; NaN if the training diverged or ran out of memory.
    """
    from objectives.training import fit

    return fit(
        trial,
        task(batch_size=batch_size, data_dir=data_dir),
        epochs=epochs,
        device=device,
        seed=seed,
        amp=amp,
        compile=compile,
    )


def task(*, batch_size: int = 256, data_dir: str | os.PathLike[str] | None = None) -> Task:
    """Return what :func:`objective` trains; its arguments are those of the same names there."""
    from objectives.data import load
    from objectives.training import Task

    return Task(
        hyperparameters=lambda trial: {"lr": suggest(trial, SPACE, "lr")},
        recipe=lambda params: _recipe(params["lr"], batch_size=batch_size),
        data=lambda where: [load("fashion", device=where, data_dir=data_dir)],
        metric="error",
    )


def _recipe(lr: float, *, batch_size: int) -> Recipe:
    from torch.optim import SGD

    from objectives.nets import mlp
    from objectives.training import Recipe

    return Recipe(
        model=lambda _: mlp((784, 10)),
        optimizer=lambda weights: SGD(weights, lr=lr),
        batch_size=batch_size,
    )
