from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from functools import partial
import math
import time
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import Trial
import torch

from optuna_ext.fused._member import Member
from optuna_ext.fused._problem import last_epoch
from optuna_ext.fused._problem import member_of
from optuna_ext.fused._problem import n_parameters
from optuna_ext.fused._problem import passes_of
from optuna_ext.fused._problem import Problem


_PROGRESS = ("epoch", "value", "notes")


@dataclass(eq=False, kw_only=True)
class Training:
    """A trial in training.

    Args:
        trial: The trial.
        build: Makes the ``members``.
        members: What it trains, a network per fold.
        epochs: The epoch that is to be the last; epochs count from the birth of the weights.
        passes: How often an epoch goes through the rows.
        rows: How many rows each fold has to train on.
        candidates: Epochs of which the best gives the value; ``None`` for the last one.
        maximize: Whether more is better.
        device: Where.
        n_parameters: How many weights and biases a network has.
        more_notes: Makes more of what is recorded.
        noted: User attributes that it began with.
        parent: The number of the trial whose weights it goes on with.
        epoch: The epoch reached so far: at first that of the parent.
        value: What the trial would be worth if it ended now.
        notes: What is to be recorded with this value.
    """

    trial: Trial
    build: Callable[[], list[Member]]
    members: list[Member]
    epochs: int
    passes: int
    rows: Sequence[int]
    candidates: Sequence[int] | None
    maximize: bool
    device: str
    n_parameters: int
    more_notes: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    noted: Mapping[str, Any] = field(default_factory=dict)
    parent: int | None = None
    epoch: int = 0
    value: float | None = None
    notes: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its weights."""
        return shapes_of(self.members[0])

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of all folds together."""
        size = self.members[0].batch_size
        return self.passes * sum(-(-n // min(n, size or n)) for n in self.rows)

    def restart(self) -> None:
        """Begin again."""
        self.epoch, self.value, self.notes = 0, None, {}
        self.members = self.build()

    @property
    def is_over(self) -> bool:
        """Whether it has had all of its epochs."""
        return self.epoch >= self.epochs

    @property
    def is_candidate(self) -> bool:
        """Whether this epoch may give the value."""
        return self.is_over if self.candidates is None else self.epoch in self.candidates

    @property
    def is_reported(self) -> bool:
        """Whether the value of this epoch is reported."""
        return self.candidates is None or self.epoch in self.candidates

    def take_in(
        self, loss: float, valid: Mapping[str, float], test: Mapping[str, float]
    ) -> str | None:
        """Record what an epoch gave, metric by metric; return why it has failed, if it has."""
        if not math.isfinite(loss + sum(valid.values())):
            shown = " and ".join(f"the validation {name} {value}" for name, value in valid.items())
            return f"diverged in epoch {self.epoch}: the training loss is {loss} and {shown}."
        if self.is_candidate:
            notes = {"train_loss": loss}
            notes |= {f"valid_{name}": value for name, value in valid.items()}
            notes |= {f"test_{name}": value for name, value in test.items()}
            self._keep(next(iter(valid.values())), notes)
        return None

    def _keep(self, value: float, notes: Mapping[str, float]) -> None:
        """Compare what a candidate gives with the best so far; of equals, that stays."""
        best = None if self.candidates is None else self.value
        if best is not None and not (value > best if self.maximize else value < best):
            return
        self.value = value
        self.notes = dict(notes)
        if self.candidates is not None:
            self.notes["best_epoch"] = self.epoch

    def state_dict(self) -> dict[str, Any]:
        """Return what has come of it, apart from its networks."""
        return {name: getattr(self, name) for name in _PROGRESS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it to where :meth:`state_dict` has found it, or its parent."""
        for name in _PROGRESS:
            setattr(self, name, state[name])


def shapes_of(member: Member) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's weights, by name."""
    state = member.model.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def members_of(
    problem: Problem, trial: Trial, hyperparameters: Any, *, folds: int
) -> list[Member]:
    """Make what a trial trains, a network per fold."""
    seed = problem.seed(trial) if callable(problem.seed) else problem.seed
    return [member_of(problem, hyperparameters, seed) for _ in range(folds)]


def training_of(
    problem: Problem,
    trial: Trial,
    hyperparameters: Any,
    *,
    noted: Mapping[str, Any],
    origin: tuple[int, int] | None,
    rows: Sequence[int],
    device: torch.device,
) -> Training:
    """Make what a trial trains, with a network per fold.

    Args:
        problem: The problem.
        trial: The trial.
        hyperparameters: What it has decided.
        noted: Its user attributes.
        origin: From which trial it goes on, and after which epoch.
        rows: How many rows each fold has to train on.
        device: Where.
    """
    build = partial(members_of, problem, trial, hyperparameters, folds=len(rows))
    members = build()
    parent, start = origin or (None, 0)
    return Training(
        trial=trial,
        build=build,
        members=members,
        epochs=last_epoch(problem, hyperparameters, start=start),
        passes=passes_of(problem, hyperparameters),
        rows=rows,
        candidates=problem.best_of,
        maximize=trial.study.direction == StudyDirection.MAXIMIZE,
        device=str(device),
        n_parameters=noted.get("n_parameters", n_parameters(members[0])),
        more_notes=problem.notes,
        noted=noted,
        parent=parent,
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out of an epoch of a trial.

    Args:
        trial: The trial.
        step: Epochs since the weights were born, those of the trial's parents included.
        value: The first metric on the validation rows; with folds, the mean.
        is_reported: Whether it is to be reported.
        is_over: Whether the trial has ended, by success or failure.
        reason: Why it failed; ``None`` if it did not.
        final_value: The value of the trial, once it is over.
        training: The training behind it; ``None`` for a trial that ended before it began.
    """

    trial: Trial
    step: int = 0
    value: float = math.nan
    is_reported: bool = False
    is_over: bool = True
    reason: str | None = None
    final_value: float | None = None
    training: Training | None = None

    @classmethod
    def of(
        cls, training: Training, *, value: float = math.nan, is_over: bool, reason: str | None
    ) -> Result:
        """Say what came out of an epoch."""
        return cls(
            trial=training.trial,
            step=training.epoch,
            value=value,
            is_reported=training.is_reported and reason is None,
            is_over=is_over,
            reason=reason,
            final_value=training.value if is_over and reason is None else None,
            training=training,
        )

    def notes(self) -> dict[str, Any]:
        """Return what is to be recorded with a trial that ends now, as user attributes."""
        notes: dict[str, Any] = {}
        if self.training is not None:
            seconds = time.perf_counter() - self.training.started
            notes = {
                "device": self.training.device,
                "n_parameters": self.training.n_parameters,
                "epochs": self.training.epoch,
                "train_seconds": round(seconds, 3),
            }
        if self.final_value is not None and self.training is not None:
            notes |= self.training.notes
            notes |= self.training.more_notes(notes) if self.training.more_notes else {}
        return notes | ({} if self.reason is None else {"reason": self.reason})


def mean(values: Sequence[float]) -> float:
    """Return the mean, correctly rounded; NaN and infinities as they come."""
    if all(map(math.isfinite, values)):
        return math.fsum(values) / len(values)
    return sum(values) / len(values)
