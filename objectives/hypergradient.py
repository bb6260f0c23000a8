"""MNIST by an optimizer that tunes its own learning rate: hypergradient descent (Baydin 2018).

A trial says from where the learning rate starts and how fast it moves. With ``tuned=False`` the
same optimizer keeps the rate, for comparison: how much does the start matter?
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
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
    from optuna_ext.online.hypergradient import RateRecorder

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-6, 1e-1, log=True),
    "hyper_lr": FloatDistribution(0.1, 2.0, log=True),
}
"""The first learning rate and the step size of its logarithm."""

DIRECTION = "maximize"
"""The value is the accuracy on the validation images."""

DEFAULTS: dict[str, Any] = {"lr": 1e-3, "hyper_lr": 0.7}
"""A sensible point to start from."""

EPOCHS = 3
"""How long a trial trains if not told otherwise."""

WIDTHS: dict[str, tuple[int, ...]] = {"logistic": (784, 10), "mlp": (784, 1000, 1000, 10)}
"""The two networks of Baydin et al. on MNIST."""


def objective(
    trial: BaseTrial,
    *,
    net: Literal["logistic", "mlp"] = "logistic",
    optimizer: Literal["adam", "adamw", "sgd"] = "adam",
    tuned: bool = True,
    epochs: int = EPOCHS,
    device: str | torch.device = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    amp: bool = False,
    compile: bool = False,
) -> float:
    """Train a network on 55,000 images while its learning rate follows its own gradient.

    The rates of all steps are kept with the trial; ``optuna_ext.online.recorded`` returns them.

    Args:
        trial:
            Gives the parameters of ``SPACE``; ``hyper_lr`` only if ``tuned``.
        net:
            ``"logistic"`` (784-10) or ``"mlp"`` (784-1000-1000-10).
        optimizer:
            ``"adam"``, ``"adamw"`` or ``"sgd"``, which has Nesterov momentum of 0.9.
        tuned:
            Whether the learning rate moves.
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

    Raises:
        ValueError: If there is no such ``net`` or ``optimizer``.
    """
    from objectives.data import load
    from objectives.training import fit
    from objectives.training import Task
    from optuna_ext import online

    if net not in WIDTHS:
        raise ValueError(f"net must be one of {list(WIDTHS)}, but it is {net!r}.")
    if optimizer not in ("adam", "adamw", "sgd"):
        raise ValueError(
            f"optimizer must be one of ['adam', 'adamw', 'sgd'], but it is {optimizer!r}."
        )
    recorders: list[RateRecorder] = []

    def hyperparameters(trial: BaseTrial) -> dict[str, Any]:
        lr = suggest(trial, SPACE, "lr")
        return {"lr": lr, "hyper_lr": suggest(trial, SPACE, "hyper_lr") if tuned else 0.0}

    def recipe(params: Mapping[str, Any]) -> Recipe:
        return _recipe(params, WIDTHS[net], optimizer, recorders.append)

    task = Task(
        hyperparameters=hyperparameters,
        recipe=recipe,
        data=lambda where: [load("mnist", device=where, data_dir=data_dir)],
    )
    try:
        return fit(trial, task, epochs=epochs, device=device, seed=seed, amp=amp, compile=compile)
    finally:
        if recorders:
            online.record(trial, recorders[0])


def _recipe(
    params: Mapping[str, Any],
    widths: tuple[int, ...],
    optimizer: str,
    keep: Callable[[RateRecorder], None],
) -> Recipe:
    from objectives.nets import mlp
    from objectives.training import Recipe
    from optuna_ext import HypergradientAdam
    from optuna_ext import HypergradientAdamW
    from optuna_ext import HypergradientSGD
    from optuna_ext.online.hypergradient import RateRecorder

    def build(weights: Any) -> torch.optim.Optimizer:
        built: torch.optim.Optimizer
        if optimizer == "sgd":
            built = HypergradientSGD(weights, momentum=0.9, nesterov=True, **params)
        else:
            kind = HypergradientAdamW if optimizer == "adamw" else HypergradientAdam
            built = kind(weights, **params)
        keep(RateRecorder(built))
        return built

    return Recipe(model=lambda _: mlp(widths), optimizer=build, batch_size=128)
