"""MNIST with regularization tuned while it trains: T1-T2 (Fioravanti 2020, Luketina et al. 2016).

A trial says where L2 and input noise start and how often they move; the tuner does the rest. The
networks are those of Fioravanti, but their logits are linear, as a ReLU on them kills classes, and
the learning rate falls to 0, as otherwise the last step has too much of a say in the result.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
import math
import os
from typing import Any
from typing import Literal
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.trial import BaseTrial

from objectives.checkpoints import make_artifacts
from objectives.space import suggest


if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch import Tensor

    from optuna_ext import Schedule
    from optuna_ext import T1T2

SPACE: dict[str, BaseDistribution] = {
    "l2": FloatDistribution(10**-5.5, 10**-2.5, log=True),
    "input_noise": FloatDistribution(0.01, 0.8),
    "every": IntDistribution(5, 40, log=True),
}
"""Where L2 and the noise's standard deviation start (Fioravanti's box), and the steps between."""

DIRECTION = "maximize"
"""The value is the accuracy on the validation images, which the tuner does not see."""

DEFAULTS: dict[str, Any] = {"l2": 1e-4, "input_noise": 0.3, "every": 10}
"""A sensible point to start from."""

EPOCHS = 2
"""How long a trial trains if not told otherwise."""

WIDTHS: dict[str, tuple[int, ...]] = {
    "small": (1000, 1000, 1000),
    "medium": (2000, 1000, 1000, 500),
    "large": (4000, 2000, 1000, 500, 250),
}
"""Hidden units of the three networks of Fioravanti."""

_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Splits:
    """MNIST for tuning inside a training; all pairs of images and classes.

    Args:
        t1: What trains the weights.
        t2: What tunes the hyperparameters.
        valid: What chooses between trials.
        test: What is reported in the end.
    """

    t1: tuple[Tensor, Tensor]
    t2: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def objective(
    trial: BaseTrial,
    *,
    net: Literal["small", "medium", "large"] = "small",
    width: float = 1.0,
    epochs: int = EPOCHS,
    device: str | torch.device = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    amp: bool | None = None,
    artifacts: str | None = None,
) -> float:
    """Train a multilayer perceptron by Adam while T1-T2 tunes L2 and input noise.

    What was tuned is kept with the trial; ``optuna_ext.online.recorded`` returns it.

    Args:
        trial:
            Gives the parameters of ``SPACE``.
        net:
            ``"small"`` (1000-1000-1000), ``"medium"`` or ``"large"``.
        width:
            Factor of all hidden layers, for a quick look.
        epochs:
            Passes over 50,000 images; the value is reported after each.
        device:
            ``"auto"`` (CUDA, else MPS, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        data_dir:
            The directory with the folder ``mnist``; ``None`` means ``$OPTUNA_EXT_DATA``, and what
            is not there is downloaded.
        seed:
            Fixes first weights, order of the images and noise.
        amp:
            Whether to compute what only tuning needs in bfloat16; ``None`` where it is faster.
        artifacts:
            A directory for the values of all steps, one file per trial; ``None`` keeps at most
            200 changes of them, with the trial.

    Returns:
        The accuracy on 5,000 validation images; NaN if the training diverged.

    Raises:
        ValueError: If there is no such ``net``, or ``width`` is not positive.
        NotADirectoryError: If ``artifacts`` cannot be a directory.
    """
    from objectives.training import resolve_device
    from optuna_ext import online

    hidden = hidden_units(net, width)
    if artifacts is not None:
        make_artifacts(artifacts)
    start = {name: suggest(trial, SPACE, name) for name in ("l2", "input_noise")}
    every = suggest(trial, SPACE, "every")
    splits = load_splits(device=resolve_device(device), data_dir=data_dir, with_valid=True)
    accuracy = math.nan
    training = train(splits, hidden, start=start, every=every, epochs=epochs, seed=seed, amp=amp)
    model, tuner = training.model, training.tuner
    try:
        for epoch in training:
            accuracy = 1 - error(model, splits.valid)
            trial.report(accuracy, epoch)
            if epoch < epochs and trial.should_prune():
                raise optuna.TrialPruned(f"Pruned after epoch {epoch} of {epochs}.")
    finally:
        online.record(trial, tuner, place=artifacts)
    trial.set_user_attr("test_accuracy", 1 - error(model, splits.test))
    return accuracy


def hidden_units(net: str, width: float) -> tuple[int, ...]:
    """Return the hidden units of a network.

    Raises:
        ValueError: If there is no such ``net``, or ``width`` is not positive.
    """
    if net not in WIDTHS:
        raise ValueError(f"net must be one of {list(WIDTHS)}, but it is {net!r}.")
    if not width > 0:
        raise ValueError(f"width must be positive, but it is {width}.")
    return tuple(max(1, round(units * width)) for units in WIDTHS[net])


def load_splits(
    *, device: torch.device, data_dir: str | os.PathLike[str] | None, with_valid: bool
) -> Splits:
    """Return T1 / T2 / validation / test: 50,000 / 5,000 / 5,000 / 10,000 images of MNIST.

    Args:
        device: Where the tensors live.
        data_dir: As for :func:`objective`.
        with_valid: Otherwise 55,000 / 5,000 / 0 / 10,000, as published.
    """
    from objectives.data import load

    data = load("mnist", device=device, data_dir=data_dir)
    train, held = (data.train_x, data.train_y), (data.valid_x, data.valid_y)
    test = data.test_x, data.test_y
    if not with_valid:
        return Splits(t1=train, t2=held, valid=(held[0][:0], held[1][:0]), test=test)
    n = len(train[0]) - len(held[0])
    t1, t2 = (train[0][:n], train[1][:n]), (train[0][n:], train[1][n:])
    return Splits(t1=t1, t2=t2, valid=held, test=test)


@dataclass(frozen=True)
class Training:
    """A training under way: going through it trains an epoch at a time.

    Args:
        model: What is trained.
        tuner: What tunes it, or follows a schedule.
        epochs: Yields the epochs, from 1 on, when they are over.
    """

    model: nn.Module
    tuner: T1T2
    epochs: Callable[[], Iterator[int]]

    def __iter__(self) -> Iterator[int]:
        return self.epochs()


def train(
    splits: Splits,
    hidden: tuple[int, ...],
    *,
    start: Mapping[str, float],
    every: int = 10,
    epochs: int,
    schedule: Schedule | None = None,
    seed: int = 0,
    amp: bool | None = None,
) -> Training:
    """Prepare the training of a network on T1 by Adam, whose rate falls to 0, in batches of 100.

    Args:
        splits: The images.
        hidden: Hidden units.
        start: First values of ``l2`` and ``input_noise``.
        every: Steps between two moves of them.
        epochs: Passes over T1.
        schedule: Values to follow instead of tuning.
        seed: Fixes first weights, order of the images and noise.
        amp: As for :func:`objective`.
    """
    import torch

    from objectives.nets import mlp
    from objectives.nets import seeded
    from optuna_ext import T1T2
    from optuna_ext.online.t1t2 import InputNoise
    from optuna_ext.online.t1t2 import L2

    x, y = splits.t1
    steps = math.ceil(len(x) / _BATCH) * epochs
    with seeded(seed):
        model = mlp((x.shape[1], *hidden, 10)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters())
    # At a constant rate the errors after two epochs in a row differ by up to a fifth.
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    tuner = T1T2(
        model,
        optimizer,
        [L2(init=start["l2"]), InputNoise(init=start["input_noise"])],
        n_steps=None if schedule else steps,
        every=every,
        hold_length=True,
        schedule=schedule,
        amp=amp,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)

    def batches(rows: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(rows[0]), generator=generator).to(x.device)
        for part in torch.split(order, _BATCH):
            yield rows[0][part], rows[1][part]

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from batches(splits.t2)

    def run() -> Iterator[int]:
        t2 = endless()
        for epoch in range(1, epochs + 1):
            for batch in batches(splits.t1):
                tuner.step(batch, t2)
                scheduler.step()
            yield epoch

    return Training(model, tuner, run)


def error(model: nn.Module, rows: tuple[Tensor, Tensor]) -> float:
    """Return the share of the rows that a network gets wrong; 1 if its outputs are not finite."""
    import torch

    x, y = rows
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in torch.split(x, 2048)])
    wrong = (outputs.argmax(1) != y) | ~outputs.isfinite().all(1)
    return int(wrong.sum()) / len(y)
