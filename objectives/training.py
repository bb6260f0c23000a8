"""One training loop for every objective, and what a trial needs around it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
import logging
import math
import statistics
import time
from typing import Any
from typing import Literal

import optuna
from optuna.trial import BaseTrial
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F

from objectives.data import Data
from objectives.nets import seeded


_logger = logging.getLogger(__name__)
_ROWS_AT_ONCE = 2048  # rows evaluated at once, which bounds the memory of the activations


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train, and how: everything about a training that its parameters decide.

    Args:
        model:
            Builds a network on the CPU. The generator, on the device of the training, is for what
            is random inside the network.
        optimizer:
            Builds the optimizer of the parameters it is given.
        batch_size:
            Rows per step; the last batch of a pass may be shorter. ``None`` means all rows.
        passes_per_epoch:
            How often an epoch goes through the rows; full-batch methods need many.
        n_parameters:
            To be recorded if it is not what the network has, because it was built in other
            coordinates.
        max_epochs:
            Where the training ends even if more epochs are allowed.

    Raises:
        ValueError: If ``batch_size`` or ``max_epochs`` is below 1.
    """

    model: Callable[[torch.Generator], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    batch_size: int | None
    passes_per_epoch: int = 1
    n_parameters: int | None = None
    max_epochs: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but it is {value}.")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the trials of a study train, whichever way they are run.

    Args:
        hyperparameters:
            Asks a trial for everything it decides.
        recipe:
            Turns that into what to train.
        data:
            Gives the data on a device. Several sets (folds) are trained side by side, a network
            each, and the value is the mean.
        metric:
            ``"accuracy"`` (to maximize) or ``"error"`` (to minimize), shares in ``[0, 1]``.
        best_of:
            Epochs, in increasing order, of which the best gives the value; the user attribute
            ``best_epoch`` says which, the first of equals. Training ends with the last of them
            that is within its epochs. By default the last epoch gives the value.
    """

    hyperparameters: Callable[[BaseTrial], dict[str, Any]]
    recipe: Callable[[Mapping[str, Any]], Recipe]
    data: Callable[[torch.device], Sequence[Data]]
    metric: Literal["accuracy", "error"] = "accuracy"
    best_of: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How good a network is on some rows.

    Args:
        loss:
            Mean cross-entropy in nats.
        accuracy:
            Share of the rows classified correctly, in ``[0, 1]``.
    """

    loss: float
    accuracy: float


def fit(
    trial: BaseTrial,
    task: Task,
    *,
    epochs: int,
    device: str | torch.device = "auto",
    seed: int = 0,
    amp: bool = False,
    compile: bool = False,
) -> float:
    """Train a network for a trial and measure it on the validation rows.

    The value is reported after every epoch (steps ``1..epochs``, or those of ``best_of``), unless
    the study has several objectives, where Optuna knows no pruning. Equal parameters and ``seed``
    give equal values, in threads too: ``seed`` fixes the first weights, the order of the rows and
    the dropout masks.

    A loss that is no longer finite, or memory that runs out, ends this trial and not the study:
    the value is NaN, which Optuna records as a failed trial, and the user attribute ``reason``
    says why. The other user attributes are ``device``, ``n_parameters``, ``epochs`` (begun),
    ``train_seconds`` and, of the network that gives the value, ``train_loss``, ``valid_loss`` and
    ``test_accuracy`` or ``test_error``. No value depends on the test rows.

    Args:
        trial:
            A running or fixed trial.
        task:
            What to train, and how to measure it.
        epochs:
            How long to train, at least 1; the recipe's ``max_epochs`` may be less.
        device:
            See :func:`resolve_device`.
        seed:
            Fixes what is random in the training.
        amp:
            Whether the network computes in bfloat16 where torch holds that to be safe.
        compile:
            Whether to ``torch.compile`` the network first, which pays off in long trainings.

    Returns:
        The metric on the validation rows after the last epoch, or the best one of the task's
        ``best_of``; NaN for a failed trial.

    Raises:
        optuna.TrialPruned: If the pruner ends the trial.
        ValueError: If ``epochs`` is below 1, or below all of ``best_of``, or this machine has no
            such device.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, but it is {epochs}.")
    recipe = task.recipe(task.hyperparameters(trial))
    epochs = min(epochs, recipe.max_epochs or epochs)
    best_of = _up_to(epochs, task.best_of)
    where = resolve_device(device)
    trial.set_user_attr("device", str(where))
    runs: list[Run] = []
    try:
        runs += (
            Run(recipe, part, device=where, seed=seed, amp=amp, compile=compile)
            for part in task.data(where)
        )
        return _train(trial, runs, epochs=epochs, best_of=best_of, metric=task.metric)
    except _DivergedError as error:
        reason = str(error)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = f"out of memory on {where}: {str(error).partition(chr(10))[0]}"
    finally:
        runs.clear()  # the traceback of a pruned trial would keep them
        _release_memory(where, compiled=compile)
    trial.set_user_attr("reason", reason)
    _logger.warning("Trial %d fails: %s", trial.number, reason)
    return math.nan


def _up_to(epochs: int, best_of: Sequence[int] | None) -> Sequence[int] | None:
    if best_of is None:
        return None
    within = [epoch for epoch in best_of if epoch <= epochs]
    if not within:
        raise ValueError(f"best_of must have an epoch up to {epochs}, but it has none.")
    return within


class _DivergedError(Exception):
    """The loss is no longer finite."""


def _train(
    trial: BaseTrial,
    runs: Sequence[Run],
    *,
    epochs: int,
    best_of: Sequence[int] | None,
    metric: Literal["accuracy", "error"],
) -> float:
    trial.set_user_attr("n_parameters", runs[0].n_parameters)
    prunable = not (isinstance(trial, optuna.Trial) and len(trial.study.directions) > 1)
    reported = best_of or range(1, epochs + 1)
    candidates = best_of or (epochs,)
    best = Evaluation(loss=math.inf, accuracy=-math.inf)
    notes: dict[str, float] = {}
    started = time.perf_counter()
    epoch = 0
    try:
        for epoch in range(1, reported[-1] + 1):
            train_loss = statistics.fmean(run.train_epoch() for run in runs)
            valid = _mean([run.evaluate("valid") for run in runs])
            if not math.isfinite(train_loss + valid.loss):
                raise _DivergedError(
                    f"diverged in epoch {epoch}: the training loss is {train_loss} and the "
                    f"validation loss {valid.loss}."
                )
            if prunable and epoch in reported:
                trial.report(_value(valid, metric), epoch)
                if epoch < reported[-1] and trial.should_prune():
                    raise optuna.TrialPruned(f"Pruned after epoch {epoch} of {reported[-1]}.")
            if epoch in candidates and valid.accuracy > best.accuracy:
                best = valid
                notes = {"best_epoch": epoch} if best_of else {}
                notes |= _notes(runs, train_loss, valid, metric)
    finally:
        trial.set_user_attr("epochs", epoch)
        trial.set_user_attr("train_seconds", round(time.perf_counter() - started, 3))
    for name, note in notes.items():
        trial.set_user_attr(name, note)
    return _value(best, metric)


def _notes(
    runs: Sequence[Run],
    train_loss: float,
    valid: Evaluation,
    metric: Literal["accuracy", "error"],
) -> dict[str, float]:
    test = _mean([run.evaluate("test") for run in runs])
    return {
        "train_loss": train_loss,
        "valid_loss": valid.loss,
        f"test_{metric}": _value(test, metric),
    }


class Run:
    """A network in training on one data set.

    Args:
        recipe:
            What to train.
        data:
            The data, on ``device``.
        device:
            Where to train.
        seed:
            As for :func:`fit`.
        amp:
            As for :func:`fit`.
        compile:
            As for :func:`fit`.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        *,
        device: torch.device,
        seed: int = 0,
        amp: bool = False,
        compile: bool = False,
    ) -> None:
        self.data = data
        self.recipe = recipe
        self.generator = torch.Generator(device).manual_seed(seed)
        with seeded(seed):  # on the CPU: equal first weights on every device
            self.model = recipe.model(self.generator)
        self.model.to(device)
        self.optimizer = recipe.optimizer(self.model.parameters())
        self.forward = torch.compile(self.model) if compile else self.model
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp)

    @property
    def n_parameters(self) -> int:
        """The number of weights and biases."""
        return self.recipe.n_parameters or sum(p.numel() for p in self.model.parameters())

    def train_epoch(self) -> float:
        """Go through the training rows; return the mean loss of the steps."""
        self.model.train()
        total = self.data.train_x.new_zeros(())
        steps = 0
        for _ in range(self.recipe.passes_per_epoch):
            for x, y in self._batches():
                self.optimizer.zero_grad()
                with self.autocast:
                    loss = _loss(self.forward(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                total += loss.detach()
                steps += 1
        return total.item() / steps

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Split the rows, in a new order; they are on the device, so nothing is copied to it."""
        x, y = self.data.train_x, self.data.train_y
        if self.recipe.batch_size is None or self.recipe.batch_size >= len(x):
            yield x, y
            return
        order = torch.randperm(len(x), generator=self.generator, device=x.device)
        for rows in torch.split(order, self.recipe.batch_size):
            yield x[rows], y[rows]

    @torch.no_grad()
    def evaluate(self, part: Literal["train", "valid", "test"]) -> Evaluation:
        """Measure the network; every row weighs the same, however the rows are split."""
        self.model.eval()
        x, y = getattr(self.data, f"{part}_x"), getattr(self.data, f"{part}_y")
        loss = x.new_zeros(())
        correct = y.new_zeros(())
        for rows, classes in zip(x.split(_ROWS_AT_ONCE), y.split(_ROWS_AT_ONCE), strict=True):
            with self.autocast:
                outputs = self.forward(rows)
                loss += _loss(outputs, classes) * len(rows)
            correct += (_classes(outputs) == classes).sum()
        return Evaluation(loss=loss.item() / len(x), accuracy=correct.item() / len(x))


def _loss(outputs: Tensor, y: Tensor) -> Tensor:
    if outputs.shape[1] == 1:  # the log-odds of class 1
        return F.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype))
    return F.cross_entropy(outputs, y)


def _classes(outputs: Tensor) -> Tensor:
    return (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)


def _mean(evaluations: Sequence[Evaluation]) -> Evaluation:
    return Evaluation(
        loss=statistics.fmean(evaluation.loss for evaluation in evaluations),
        accuracy=statistics.fmean(evaluation.accuracy for evaluation in evaluations),
    )


def _value(evaluation: Evaluation, metric: Literal["accuracy", "error"]) -> float:
    return evaluation.accuracy if metric == "accuracy" else 1 - evaluation.accuracy


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Find a device of this machine.

    Args:
        device:
            ``"auto"`` (CUDA, else MPS, else the CPU) or a device as torch names it: ``"cpu"``,
            ``"cuda"``, ``"cuda:1"``, ``"mps"``.

    Raises:
        ValueError: If that is no device or this machine does not have it.
    """
    present = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    present += ["mps"] if torch.backends.mps.is_available() else []
    present += ["cpu"]
    name = str(device)
    if name == "auto":
        return torch.device(present[0])
    if name == "cuda":
        name = "cuda:0"
    if name not in present:
        raise ValueError(
            f"device must be one of {['auto', *present]} on this machine, but it is {name!r}."
        )
    return torch.device(name)


def _is_out_of_memory(error: BaseException) -> bool:
    # Only CUDA has an exception of its own for it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory")
    )


def _release_memory(device: torch.device, *, compiled: bool) -> None:
    """Give back what a trial held: the next one may run in another process."""
    if compiled:
        # Every trial compiles its own network; past a few, torch would stop compiling.
        torch.compiler.reset()
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
