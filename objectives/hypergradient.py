"""Learning rates that tune themselves: softmax regression or a perceptron on digits or MNIST.

The optimizers move their learning rate by hypergradient descent (Baydin et al. 2018); what is left
to search is where it begins, how fast it moves and which optimizer it is.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
from typing import Any
from typing import Final
from typing import Literal
from typing import TYPE_CHECKING

from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.trial import BaseTrial

from objectives.space import suggest


if TYPE_CHECKING:
    import torch

    from objectives.checkpoints import Checkpoints
    from objectives.training import Recipe
    from objectives.training import Task

Images = Literal["digits", "mnist", "fashion"]
Net = Literal["logistic", "mlp"]

SPACE: dict[str, BaseDistribution] = {
    "optimizer": CategoricalDistribution(("sgd", "nesterov", "adam")),
    "lr": FloatDistribution(1e-6, 1.0, log=True),
    "hyper_lr": FloatDistribution(0.1, 4.0, log=True),  # where the rate is tuned
}
"""The optimizer, the learning rate of the first step, and how fast it moves from there."""

ARCHITECTURE = ("optimizer",)
"""What stays with the weights when a trial goes on from another one's."""

DIRECTION: Final = "maximize"
"""The value is the accuracy on the validation images."""

DEFAULTS: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3, "hyper_lr": 1.4}
"""A sensible point to start from."""

EPOCHS = 10
"""How long a trial trains if not told otherwise."""

_BATCH = {"digits": 16, "mnist": 128, "fashion": 128}
_HIDDEN = (100, 100)


def objective(
    trial: BaseTrial,
    *,
    data: Images = "digits",
    net: Net = "logistic",
    fixed: bool = False,
    artifacts: str | None = None,
    epochs: int = EPOCHS,
    device: str | torch.device = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    amp: bool = False,
    compile: bool = False,
    checkpoints: Checkpoints = None,
    interval: int | None = None,
) -> float:
    """Train a network by an optimizer that tunes its own learning rate.

    The learning rate of every step is recorded: ``optuna_ext.online.recorded(trial)``.

    Args:
        trial:
            Gives the parameters of ``SPACE``.
        data:
            ``"digits"``, ``"mnist"`` or ``"fashion"``.
        net:
            ``"logistic"`` (softmax regression) or ``"mlp"`` (two hidden layers of 100).
        fixed:
            Whether the learning rate stays as it is, for comparison.
        artifacts:
            The directory where whole schedules go; by default a trial keeps 200 points of its own.
        epochs:
            Passes over the training images; the value is reported after each.
        device:
            ``"auto"`` (CUDA, else MPS, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        data_dir:
            The directory with the folder of the data; ``None`` means ``$OPTUNA_EXT_DATA``, and
            what is not there is downloaded. The digits are bundled with scikit-learn.
        seed:
            Fixes first weights and order of the images.
        amp:
            Whether to compute in bfloat16 where safe.
        compile:
            Whether to compile the network first.
        checkpoints:
            Where trainings are kept, to go on after a crash or from another trial's weights: a
            directory, a URL or a ``CheckpointStore``.
        interval:
            Epochs to train beyond those of the trial's parent, instead of ``epochs`` in total.

    Returns:
        The accuracy on the validation images; NaN if the training diverged or ran out of memory.

    Raises:
        ValueError: If there is no such ``data``, ``net`` or ``device``.
        NotADirectoryError: If ``artifacts`` cannot be a directory.
    """
    from objectives.checkpoints import make_artifacts
    from objectives.training import fit

    if artifacts is not None:
        make_artifacts(artifacts)
    return fit(
        trial,
        task(data=data, net=net, fixed=fixed, data_dir=data_dir),
        epochs=epochs,
        device=device,
        seed=seed,
        amp=amp,
        compile=compile,
        checkpoints=checkpoints,
        interval=interval,
        artifacts=artifacts,
    )


def task(
    *,
    data: Images = "digits",
    net: Net = "logistic",
    fixed: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
) -> Task:
    """Return what :func:`objective` trains; its arguments are those of the same names there.

    Raises:
        ValueError: If there is no such ``data`` or ``net``.
    """
    from objectives.data import load
    from objectives.training import Task

    if data not in _BATCH:
        raise ValueError(f"data must be one of {list(_BATCH)}, but it is {data!r}.")
    if net not in ("logistic", "mlp"):
        raise ValueError(f"net must be 'logistic' or 'mlp', but it is {net!r}.")
    names = [name for name in SPACE if not (fixed and name == "hyper_lr")]
    return Task(
        hyperparameters=lambda trial: {name: suggest(trial, SPACE, name) for name in names},
        recipe=lambda params: _recipe(params, data=data, net=net),
        data=lambda where: [load(data, device=where, data_dir=data_dir)],
    )


def _recipe(params: Mapping[str, Any], *, data: Images, net: Net) -> Recipe:
    from objectives.nets import mlp
    from objectives.training import Recipe
    from optuna_ext import HypergradientAdam
    from optuna_ext import HypergradientSGD

    n_pixels = 64 if data == "digits" else 784
    widths = (n_pixels, *(_HIDDEN if net == "mlp" else ()), 10)
    rates = {"lr": params["lr"], "hyper_lr": params.get("hyper_lr", 0.0)}

    def optimizer(weights: Any) -> torch.optim.Optimizer:
        match params["optimizer"]:
            case "sgd":
                return HypergradientSGD(weights, **rates)
            case "nesterov":
                return HypergradientSGD(weights, momentum=0.9, nesterov=True, **rates)
        return HypergradientAdam(weights, **rates)

    return Recipe(
        model=lambda _: mlp(widths),
        optimizer=optimizer,
        batch_size=_BATCH[data],
        recorded=True,
    )
