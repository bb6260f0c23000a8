from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from functools import partial
import inspect
import threading
from typing import Any
from typing import Literal

from optuna.trial import Trial
import torch
from torch import nn
from torch import Tensor
from torch.optim import Adam
from torch.optim import AdamW
from torch.optim import Optimizer
from torch.optim import SGD
from torch.utils.data import DataLoader

from optuna_ext._checks import check_int
from optuna_ext.fused._member import Member


Rows = tuple[Tensor, Tensor] | DataLoader[Any]
"""Inputs and targets, row by row, or what loads them."""

OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}

_seeding = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What the trials of a study train, made of what a training script has already.

    What one trial decides, its *hyperparameters*, is whatever ``suggest`` returns, usually a
    dictionary; it is given to the functions below that differ by trial.

    Args:
        suggest:
            ``suggest(trial) -> hyperparameters``: asks the trial for its parameters.
        model:
            ``model(hyperparameters) -> torch.nn.Module``: the network, on the CPU. Its first
            weights follow from ``seed``.
        loss:
            ``loss(outputs, targets)``: one number per row, whose mean is minimized; or their mean,
            and then batches of different sizes cannot be trained together. Takes the numbers of
            ``loss_arguments`` as keywords.
        train:
            Inputs and targets to train on, ``(n, ...)`` each. Or a ``DataLoader``, from which all
            rows are read once, in the order of its data set. Or a list of these: a trial then
            trains a network on each, and its values are their means (cross-validation).
        valid:
            What a trial is judged by, in the same form.
        test:
            Rows that decide nothing, in the same form: what a trial that ends says on them is
            recorded with it.
        optimizer:
            ``optimizer(parameters, hyperparameters) -> torch.optim.Optimizer``: ``SGD``,
            ``Adam`` or ``AdamW``. Or ``"sgd"``, ``"adam"`` or ``"adamw"``, with those of the
            hyperparameters that are arguments of it, such as ``lr`` and ``weight_decay``;
            ``beta1`` and ``beta2`` are Adam's betas.
        metrics:
            ``metric(outputs, targets)`` by name, one number per row or the mean of many. What the
            first one gives on the validation rows is the value of the trial. The default is the
            loss, without ``loss_arguments``.
        epochs:
            How long a trial trains, at least 1; or ``epochs(hyperparameters)``. The value is
            reported after each, as steps ``1, 2, ...``. A trial that goes on with the weights of
            another one, its parent, goes on counting: it trains what is left.
        interval:
            Epochs to train beyond those of the parent, at least 1, instead of ``epochs`` in
            total; population-based training needs it.
        batch_size:
            Rows per step; ``None`` means all. Or ``batch_size(hyperparameters)``. The default is
            that of the ``DataLoader``, or 256.
        passes:
            How often an epoch goes through the rows; or ``passes(hyperparameters)``.
        schedule:
            ``schedule(hyperparameters) -> factor``, where ``factor(epoch)`` multiplies the
            learning rate in an epoch, which counts from 0.
        loss_arguments:
            ``loss_arguments(hyperparameters)``: keyword arguments of the loss, numbers, such as
            a label smoothing.
        best_of:
            Epochs, in increasing order, of which the best gives the value; the user attribute
            ``best_epoch`` says which, the first of equals. Only they are reported, and training
            ends with the last of them that is within ``epochs``. By default the last epoch gives
            the value.
        notes:
            ``notes(attributes)``: makes more user attributes of those that are recorded with the
            value of a trial.
        order:
            ``"own"``: every trial goes through the rows in an order of its own, which follows
            from its seed. ``"shared"``: all that train together share one, which is faster for
            the smallest networks; a trial's values then depend on when it began.
        seed:
            Fixes first weights, order of the rows and what is random in the layers; or
            ``seed(trial)``, such as ``lambda trial: trial.number``. By default the same for all
            trials.

    Raises:
        ValueError: If an argument is out of its range or not one of its choices.
        TypeError: If a number is no integer, or rows are something else.
    """

    suggest: Callable[[Trial], Any]
    model: Callable[[Any], nn.Module]
    loss: Callable[..., Tensor]
    train: Rows | Sequence[Rows]
    valid: Rows | Sequence[Rows]
    test: Rows | Sequence[Rows] | None = None
    optimizer: Callable[[Iterable[nn.Parameter], Any], Optimizer] | str = "sgd"
    metrics: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    epochs: int | Callable[[Any], int] = 10
    interval: int | None = None
    batch_size: int | Callable[[Any], int | None] | None | Literal["auto"] = "auto"
    passes: int | Callable[[Any], int] = 1
    schedule: Callable[[Any], Callable[[int], float]] | None = None
    loss_arguments: Callable[[Any], Mapping[str, float]] | None = None
    best_of: Sequence[int] | None = None
    notes: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    order: Literal["own", "shared"] = "own"
    seed: int | Callable[[Trial], int] = 0

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer must be a function or one of {sorted(OPTIMIZERS)}, but it is "
                f"{self.optimizer!r}."
            )
        if self.order not in ("own", "shared"):
            raise ValueError(f"order must be 'own' or 'shared', but it is {self.order!r}.")
        for name in ("epochs", "interval", "passes", "batch_size"):
            value = getattr(self, name)
            if value not in (None, "auto") and not callable(value):
                check_int(name, value, low=1)
        if self.interval is not None and self.best_of is not None:
            raise ValueError(
                "interval must be None where the best of some epochs is the value, but it is "
                f"{self.interval}."
            )
        if self.best_of is not None and (
            not self.best_of or sorted({*self.best_of}) != [*self.best_of] or self.best_of[0] < 1
        ):
            raise ValueError(
                f"best_of must be epochs from 1 on in increasing order, but it is {self.best_of}."
            )
        for name in ("train", "valid", "test"):
            rows = getattr(self, name)
            if not all(map(_is_rows, _folds(rows))) and (name, rows) != ("test", None):
                raise TypeError(
                    f"{name} must be a tuple of two tensors, a DataLoader or a list of these, but "
                    f"it is {type(rows).__name__}."
                )
        counts = {len(_folds(rows)) for rows in (self.train, self.valid, self.test) if rows}
        if len(counts) != 1:
            raise ValueError("train, valid and test must be lists of one length, or no lists.")


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The rows of one training, on the device."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor] | None


def folds_on(problem: Problem, device: torch.device) -> list[Fold]:
    """Put all rows on a device."""
    train, valid = _folds(problem.train), _folds(problem.valid)
    test = [None] * len(train) if problem.test is None else _folds(problem.test)
    return [
        Fold(
            train=_rows_on(parts[0], device),
            valid=_rows_on(parts[1], device),
            test=None if parts[2] is None else _rows_on(parts[2], device),
        )
        for parts in zip(train, valid, test, strict=True)
    ]


def member_of(problem: Problem, hyperparameters: Any, seed: int) -> Member:
    """Make what a trial trains."""
    with _seeded(seed):
        model = problem.model(hyperparameters)
    if isinstance(problem.optimizer, str):
        kind = OPTIMIZERS[problem.optimizer]
        optimizer = kind(model.parameters(), **_arguments(kind, hyperparameters))
    else:
        optimizer = problem.optimizer(model.parameters(), hyperparameters)
    arguments = problem.loss_arguments
    return Member(
        model=model,
        optimizer=optimizer,
        batch_size=_batch_size(problem, hyperparameters),
        seed=seed,
        hyper={} if arguments is None else arguments(hyperparameters),
        schedule=None if problem.schedule is None else problem.schedule(hyperparameters),
    )


def metrics_of(problem: Problem) -> dict[str, Callable[..., Tensor]]:
    """Return the metrics by name; the first gives the value. All give one number per row."""
    metrics = dict(problem.metrics) or {"loss": problem.loss}
    return {name: partial(_per_row, metric) for name, metric in metrics.items()}


def _per_row(metric: Callable[..., Tensor], outputs: Tensor, y: Tensor) -> Tensor:
    values = metric(outputs, y)
    return values if values.dim() else values.expand(len(y))


def epochs_of(problem: Problem, hyperparameters: Any) -> int:
    """Return for how many epochs a trial trains, those of its parents included."""
    epochs = problem.epochs
    return check_int("epochs", epochs(hyperparameters) if callable(epochs) else epochs, low=1)


def passes_of(problem: Problem, hyperparameters: Any) -> int:
    """Return how often an epoch of a trial goes through the rows."""
    passes = problem.passes
    return check_int("passes", passes(hyperparameters) if callable(passes) else passes, low=1)


def n_parameters(member: Member) -> int:
    """Return how many weights and biases a network has."""
    return sum(parameter.numel() for parameter in member.model.parameters())


def last_epoch(problem: Problem, hyperparameters: Any, *, start: int) -> int:
    """Return with which epoch a trial ends that begins after the epoch ``start``.

    Raises:
        ValueError: If its number of epochs is below 1 or none of ``best_of`` is within them.
    """
    if problem.interval is not None:
        return start + problem.interval
    epochs = epochs_of(problem, hyperparameters)
    if problem.best_of is None:
        return epochs
    within = [epoch for epoch in problem.best_of if epoch <= epochs]
    if not within:
        raise ValueError(f"best_of must have an epoch up to {epochs}, but it has none.")
    return within[-1]


@torch.no_grad()
def is_rowwise(problem: Problem, member: Member, x: Tensor, y: Tensor) -> bool:
    """Find out whether the loss gives one number per row."""
    outputs = member.model.eval()(x[:2].cpu())
    member.model.train()
    return problem.loss(outputs, y[:2].cpu(), **member.hyper).dim() > 0


def _batch_size(problem: Problem, hyperparameters: Any) -> int | None:
    if callable(problem.batch_size):
        return problem.batch_size(hyperparameters)
    if problem.batch_size != "auto":
        return problem.batch_size
    loader = _folds(problem.train)[0]
    return (loader.batch_size if isinstance(loader, DataLoader) else None) or 256


def _arguments(kind: type[Optimizer], hyperparameters: Any) -> dict[str, Any]:
    if not isinstance(hyperparameters, Mapping):
        raise TypeError(
            "optimizer must be a function where suggest returns no dictionary, but it is a name."
        )
    accepted = inspect.signature(kind).parameters
    arguments = {key: value for key, value in hyperparameters.items() if key in accepted}
    if "betas" in accepted and not {"beta1", "beta2"}.isdisjoint(hyperparameters):
        beta1, beta2 = arguments.get("betas", accepted["betas"].default)
        arguments["betas"] = (
            hyperparameters.get("beta1", beta1),
            hyperparameters.get("beta2", beta2),
        )
    return arguments


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make first weights depend on the seed alone; the process's generator stays as it is."""
    with _seeding, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _folds(rows: Rows | Sequence[Rows]) -> list[Rows]:
    several = isinstance(rows, list | tuple) and not _is_rows(rows)
    return [*rows] if several else [rows]  # type: ignore[list-item]


def _is_rows(rows: object) -> bool:
    return isinstance(rows, DataLoader) or (
        isinstance(rows, tuple) and len(rows) == 2 and all(map(torch.is_tensor, rows))
    )


def _rows_on(rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    x, y = _read(rows) if isinstance(rows, DataLoader) else rows
    if len(x) != len(y) or not len(x):
        raise ValueError(
            "inputs and targets must be of one length above 0, but they are of lengths "
            f"{len(x)} and {len(y)}."
        )
    return x.to(device), y.to(device)


def _read(loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """Read all rows of a data set, in its order."""
    in_order: DataLoader[Any] = DataLoader(
        loader.dataset,
        batch_size=loader.batch_size or 256,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )
    xs, ys = zip(*in_order, strict=True)
    return torch.cat(xs), torch.cat(ys)
