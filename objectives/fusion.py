"""The objectives as problems of ``optuna_ext.fused``: many trials trained as one program.

Example:
    .. code-block:: python

        from objectives import digits
        from objectives.fusion import problem
        import optuna
        from optuna_ext import fused

        study = optuna.create_study(direction=digits.DIRECTION)
        fused.optimize(study, problem(digits.task(), epochs=2), n_trials=16)
"""

from __future__ import annotations

from collections.abc import Iterable

from optuna.trial import Trial
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F

from objectives.training import Recipe
from objectives.training import resolve_device
from objectives.training import Task
from optuna_ext.fused import Problem


def problem(
    task: Task,
    *,
    epochs: int,
    device: str | torch.device = "auto",
    seed: int = 0,
    interval: int | None = None,
) -> Problem:
    """Return a problem whose trials compute and record what ``objectives.training.fit`` does.

    Args:
        task:
            What to train, such as ``objectives.digits.task()``.
        epochs:
            How long to train, at least 1; a recipe's ``max_epochs`` may be less.
        device:
            Where; see :func:`objectives.training.resolve_device`.
        seed:
            Fixes what is random in the training.
        interval:
            Epochs to train beyond those of the parent, instead of ``epochs`` in total; not where
            a recipe has ``max_epochs``.

    Raises:
        ValueError: If ``epochs`` or ``interval`` is below 1 or this machine has no such device.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, but it is {epochs}.")
    where = resolve_device(device)
    parts = task.data(where)

    def suggest(trial: Trial) -> Recipe:
        recipe = task.recipe(task.hyperparameters(trial))
        if interval is not None and recipe.max_epochs is not None:
            raise ValueError(
                "interval must be None where the parameters of a trial decide how long it trains, "
                f"but it is {interval}."
            )
        if recipe.n_parameters is not None:
            trial.set_user_attr("n_parameters", recipe.n_parameters)
        return recipe

    def model(recipe: Recipe) -> nn.Module:
        return recipe.model(torch.Generator().manual_seed(seed))

    def optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
        return recipe.optimizer(parameters)

    return Problem(
        suggest=suggest,
        model=model,
        optimizer=optimizer,
        loss=_losses,
        train=[(part.train_x, part.train_y) for part in parts],
        valid=[(part.valid_x, part.valid_y) for part in parts],
        test=[(part.test_x, part.test_y) for part in parts],
        metrics={task.metric: _METRICS[task.metric], "loss": _losses},
        epochs=lambda recipe: min(epochs, recipe.max_epochs or epochs),
        batch_size=lambda recipe: recipe.batch_size,
        passes=lambda recipe: recipe.passes_per_epoch,
        interval=interval,
        best_of=task.best_of,
        notes=task.notes,
        seed=seed,
    )


def _losses(outputs: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of each row; one output means the log-odds of class 1."""
    if outputs.shape[1] == 1:
        targets = y.to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")
    return F.cross_entropy(outputs, y, reduction="none")


def _right(outputs: Tensor, y: Tensor) -> Tensor:
    classes = (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)
    return classes == y


def _wrong(outputs: Tensor, y: Tensor) -> Tensor:
    return ~_right(outputs, y)


_METRICS = {"accuracy": _right, "error": _wrong}
