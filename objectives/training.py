"""One training loop for every objective, and what a trial needs around it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
import logging
import math
import os
import statistics
import time
from typing import Any
from typing import Literal

import optuna
from optuna.trial import BaseTrial
import torch
from torch import nn

from objectives.checkpoints import Checkpoints
from objectives.checkpoints import open_checkpoints
from objectives.checkpoints import Unsaved
from objectives.data import Data
from objectives.runs import Evaluation
from objectives.runs import Run
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.checkpoints import Run as CheckpointRun
from optuna_ext.online import record


_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train, and how: everything about a training that its parameters decide.

    Args:
        model:
            Builds a network on the CPU. The generator, on the CPU too, has the seed for what is
            random inside the network.
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
        recorded:
            Whether the learning rate of every step is recorded with the trial, because the
            optimizer changes it; see ``optuna_ext.online.record``.

    Raises:
        ValueError: If ``batch_size`` or ``max_epochs`` is below 1.
    """

    model: Callable[[torch.Generator], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    batch_size: int | None
    passes_per_epoch: int = 1
    n_parameters: int | None = None
    max_epochs: int | None = None
    recorded: bool = False

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
        notes:
            Makes more user attributes of those that a trial with a value has.
    """

    hyperparameters: Callable[[BaseTrial], dict[str, Any]]
    recipe: Callable[[Mapping[str, Any]], Recipe]
    data: Callable[[torch.device], Sequence[Data]]
    metric: Literal["accuracy", "error"] = "accuracy"
    best_of: Sequence[int] | None = None
    notes: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


def fit(
    trial: BaseTrial,
    task: Task,
    *,
    epochs: int,
    device: str | torch.device = "auto",
    seed: int = 0,
    amp: bool = False,
    compile: bool = False,
    checkpoints: Checkpoints = None,
    interval: int | None = None,
    artifacts: str | os.PathLike[str] | None = None,
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

    With ``checkpoints`` the training goes on from the trial's parent, or from where its worker
    died, and is kept when it is paused, when it ends and now and then in between. On the CPU a
    training that was interrupted ends with the same numbers as one that was not.

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
        checkpoints:
            Where to keep them: a directory, a URL, or a ``CheckpointStore``. ``None`` keeps none.
        interval:
            Epochs to train beyond those of the parent, instead of ``epochs`` in total; population
            based training needs it.
        artifacts:
            A directory for what is ``recorded``; ``None`` keeps its thinned form only.

    Returns:
        The metric on the validation rows after the last epoch, or the best one of the task's
        ``best_of``; NaN for a failed trial.

    Raises:
        optuna.TrialPruned: If the pruner ends the trial.
        ValueError: If ``epochs`` or ``interval`` is below 1, or ``epochs`` below all of
            ``best_of``, or there is ``interval`` without ``checkpoints`` or with ``best_of``, or
            this machine has no such device.
        OSError: If ``checkpoints`` cannot be a directory.
        CheckpointError: If a checkpoint cannot be used or written.
    """
    _check(epochs, interval=interval, checkpoints=checkpoints, best_of=task.best_of)
    store = None if checkpoints is None else open_checkpoints(checkpoints)
    recipe = task.recipe(task.hyperparameters(trial))
    where = resolve_device(device)
    trial.set_user_attr("device", str(where))
    runs: list[Run] = []
    try:
        runs += (
            Run(recipe, part, device=where, seed=seed, amp=amp, compile=compile)
            for part in task.data(where)
        )
        training = _Training(trial, runs, store, metric=task.metric, artifacts=artifacts)
        last = epochs if interval is None else training.run.start + interval
        last = min(last, recipe.max_epochs or last)
        value = training.train(last, best_of=_up_to(last, task.best_of))
        for name, note in task.notes(trial.user_attrs).items() if task.notes else ():
            trial.set_user_attr(name, note)
        return value
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


def _check(
    epochs: int,
    *,
    interval: int | None,
    checkpoints: Checkpoints,
    best_of: Sequence[int] | None,
) -> None:
    for name, value in {"epochs": epochs, "interval": interval}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, but it is {value}.")
    if interval is not None and checkpoints is None:
        raise ValueError("interval needs checkpoints, from which trials go on.")
    if interval is not None and best_of is not None:
        raise ValueError("interval must be None where the best of some epochs is the value.")


def _up_to(epochs: int, best_of: Sequence[int] | None) -> Sequence[int] | None:
    if best_of is None:
        return None
    within = [epoch for epoch in best_of if epoch <= epochs]
    if not within:
        raise ValueError(f"best_of must have an epoch up to {epochs}, but it has none.")
    return within


class _DivergedError(Exception):
    """The loss is no longer finite."""


@dataclass
class _Progress:
    """What has come of a training beside its weights; checkpoints hold it, too."""

    value: float | None = None
    notes: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self.notes = state["value"], state["notes"]


class _Training:
    """The training of one trial, from where it stands to where it ends."""

    def __init__(
        self,
        trial: BaseTrial,
        runs: Sequence[Run],
        store: CheckpointStore | None,
        *,
        metric: Literal["accuracy", "error"],
        artifacts: str | os.PathLike[str] | None,
    ) -> None:
        self.trial = trial
        self.runs = runs
        self.metric = metric
        self.artifacts = artifacts
        self.progress = _Progress()
        things: dict[str, Any] = {"progress": self.progress}
        for i, run in enumerate(runs):
            things |= {f"{name}_{i}" if i else name: thing for name, thing in run.things().items()}
        self.run: Unsaved | CheckpointRun = (
            Unsaved() if store is None else store.resume(trial, **things)
        )
        trial.set_user_attr("n_parameters", runs[0].n_parameters)

    def train(self, last: int, *, best_of: Sequence[int] | None) -> float:
        """Train up to an epoch, or the last of ``best_of``; return the value."""
        started = time.perf_counter()
        last = best_of[-1] if best_of else last
        prunable = not (
            isinstance(self.trial, optuna.Trial) and len(self.trial.study.directions) > 1
        )
        epoch = self.run.step
        try:
            if prunable and self.run.origin == self.trial.number and epoch < last:
                self._pause_if_told(epoch, last)  # its worker died between saving and pausing
            for epoch in range(self.run.step + 1, last + 1):
                value = self._train_epoch(epoch, is_last=epoch == last, best_of=best_of)
                if prunable and epoch in (best_of or (epoch,)):
                    self.trial.report(value, epoch)
                    if epoch < last:
                        self._pause_if_told(epoch, last)
                if epoch < last:
                    self.run.autosave(epoch)
            if epoch > self.run.step:
                self.run.save(epoch)
        finally:
            self.run = Unsaved()  # likewise: it holds the networks
            self.trial.set_user_attr("epochs", epoch)
            self.trial.set_user_attr("train_seconds", round(time.perf_counter() - started, 3))
            if self.runs[0].recorder is not None:
                record(self.trial, self.runs[0].recorder, place=self.artifacts)
        for name, note in self.progress.notes.items():
            self.trial.set_user_attr(name, note)
        return math.nan if self.progress.value is None else self.progress.value

    def _train_epoch(self, epoch: int, *, is_last: bool, best_of: Sequence[int] | None) -> float:
        """Return the metric on the validation rows."""
        train_loss = statistics.fmean(run.train_epoch() for run in self.runs)
        valid = _mean([run.evaluate("valid") for run in self.runs])
        if not math.isfinite(train_loss + valid.loss):
            raise _DivergedError(
                f"diverged in epoch {epoch}: the training loss is {train_loss} and the "
                f"validation loss {valid.loss}."
            )
        value = _value(valid, self.metric)
        is_candidate = best_of is None or (epoch in best_of and self._is_best(value))
        if is_candidate:
            self.progress.value = value
        if is_candidate and (best_of or is_last):
            test = _mean([run.evaluate("test") for run in self.runs])
            self.progress.notes = {
                **({"best_epoch": epoch} if best_of else {}),
                "train_loss": train_loss,
                "valid_loss": valid.loss,
                f"test_{self.metric}": _value(test, self.metric),
            }
        return value

    def _is_best(self, value: float) -> bool:
        best = self.progress.value
        return best is None or (value > best if self.metric == "accuracy" else value < best)

    def _pause_if_told(self, epoch: int, last: int) -> None:
        if self.trial.should_prune():
            self.run.save(epoch)
            raise optuna.TrialPruned(f"Pruned after epoch {epoch} of {last}.")


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
    # Only CUDA's allocator has an exception of its own for it, beside which cuBLAS allocates.
    texts = "out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in texts
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
