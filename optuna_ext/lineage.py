"""Where a trial's weights come from: its parents back to birth, and what each of them contributed.

Two user attributes say it all, so that every storage keeps them and the dashboard shows them:

* ``parent``: the number of the trial from whose checkpoint this one goes on. A sampler writes it
  before the trial begins, or you do.
* ``checkpoint``: the newest complete checkpoint of the trial. Only a ``CheckpointStore`` writes
  it, after the file is whole and safe.

A third, ``resumed``, is the store's note of what a trial really went on from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from typing import TYPE_CHECKING

from optuna_ext.schedule import Schedule


if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.study import Study
    from optuna.trial import BaseTrial
    from optuna.trial import FrozenTrial

PARENT = "parent"
CHECKPOINT = "checkpoint"
RESUMED = "resumed"  # {"trial": number, "step": int}: what it really went on from


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One complete checkpoint: where it is, and how to tell that it is whole.

    Args:
        artifact:
            Its identifier in the artifact store.
        step:
            The step after which it was written; steps count from the birth of the lineage.
        size:
            Bytes.
        sha256:
            The SHA-256 of these bytes, in hexadecimal digits.
        previous:
            The one before it, kept in case that this one gets lost.

    Example:
        >>> Checkpoint(artifact="a1", step=3, size=10, sha256="00").to_dict()
        {'artifact': 'a1', 'step': 3, 'size': 10, 'sha256': '00'}
    """

    artifact: str
    step: int
    size: int
    sha256: str
    previous: Checkpoint | None = None

    @classmethod
    def of(cls, trial: BaseTrial | FrozenTrial) -> Checkpoint | None:
        """Return a trial's newest checkpoint; None if it has none."""
        return cls.from_dict(trial.user_attrs.get(CHECKPOINT))

    @classmethod
    def from_dict(cls, values: Any) -> Checkpoint | None:
        """Read what :meth:`to_dict` wrote; None if it is anything else."""
        match values:
            case {
                "artifact": str(artifact),
                "step": int(step),
                "size": int(size),
                "sha256": str(sha256),
            }:
                previous = cls.from_dict(values.get("previous"))
                return cls(
                    artifact=artifact, step=step, size=size, sha256=sha256, previous=previous
                )
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the user attribute that names this checkpoint."""
        values: dict[str, Any] = {
            "artifact": self.artifact,
            "step": self.step,
            "size": self.size,
            "sha256": self.sha256,
        }
        return values if self.previous is None else {**values, "previous": self.previous.to_dict()}


def parent_of(trial: BaseTrial | FrozenTrial) -> int | None:
    """Return the number of the trial from which this one goes on; None for a newborn."""
    parent = trial.user_attrs.get(PARENT)
    return parent if isinstance(parent, int) and not isinstance(parent, bool) else None


def resumed_from(trial: BaseTrial | FrozenTrial) -> tuple[int, int] | None:
    """Return the trial and the step that this one has really gone on from; None if neither yet."""
    match trial.user_attrs.get(RESUMED):
        case {"trial": int(number), "step": int(step)}:
            return number, step
    return None


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The part of a lineage that one trial trained.

    Args:
        trial:
            Its number.
        steps:
            The steps it contributed, as ``range(first, last + 1)``; steps count from 1 at birth.
        params:
            Its hyperparameters.
    """

    trial: int
    steps: range
    params: dict[str, Any]


def lineage(study: Study, trial: int | BaseTrial | FrozenTrial) -> list[Interval]:
    """Return who trained a trial's weights: one interval per trial, from birth to this one.

    The intervals' steps follow each other without gap or overlap. An ancestor's interval ends
    where its child went on, which need not be where the ancestor itself ended.

    Args:
        study:
            The study.
        trial:
            A trial of the study, in any state, or its number.

    Raises:
        ValueError: If the study has no such trial, or one of the lineage is missing or its own
            ancestor.

    Example:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> _ = study.tell(study.ask(), 1.0)
        >>> [(part.trial, part.steps) for part in lineage(study, 0)]
        [(0, range(1, 1))]
    """
    trials = study.get_trials(deepcopy=False)
    number = trial if isinstance(trial, int) else trial.number
    current = _find(trials, number)
    last = _last_step(current)
    parts: list[Interval] = []
    while True:
        origin = origin_of(current, trials)
        start = 0 if origin is None else origin[1]
        parts.append(
            Interval(
                trial=current.number,
                steps=range(start + 1, max(start, last) + 1),
                params=dict(current.params),
            )
        )
        if origin is None:
            return parts[::-1]
        if origin[0] in {part.trial for part in parts}:
            raise ValueError(f"trial {origin[0]} is its own ancestor: check the `{PARENT}` of it.")
        current, last = _find(trials, origin[0]), start


def schedule(study: Study, trial: int | BaseTrial | FrozenTrial) -> Schedule:
    """Return the hyperparameters over the steps that produced a trial's weights.

    Args:
        study:
            The study.
        trial:
            A trial of the study, in any state, or its number.

    Returns:
        Its hyperparameters and its ancestors', each over exactly the steps that were trained with
        them.

    Raises:
        ValueError: As :func:`lineage`, or if the trial has trained no step.

    Example:
        >>> import optuna
        >>> study = optuna.create_study()
        >>> trial = study.ask({"lr": optuna.distributions.FloatDistribution(0.1, 0.1)})
        >>> trial.report(1.0, 3)
        >>> schedule(study, trial).to_dict()
        {'points': {1: {'lr': 0.1}}, 'last': 3}
    """
    parts = [part for part in lineage(study, trial) if part.steps]
    if not parts:
        number = trial if isinstance(trial, int) else trial.number
        raise ValueError(f"trial {number} has trained no step, so there is no schedule.")
    return Schedule(
        {part.steps.start: part.params for part in parts}, last=parts[-1].steps.stop - 1
    )


def origin_of(
    trial: BaseTrial | FrozenTrial, trials: Sequence[FrozenTrial]
) -> tuple[int, int] | None:
    """Return from which trial one went on, and after which step; None for a newborn.

    What the trial noted when it went on counts, as that may be an older checkpoint than its
    parent's newest; until then, the parent's newest does.
    """
    resumed = resumed_from(trial)
    if resumed is not None:
        return resumed
    parent = parent_of(trial)
    if parent is None:
        return None
    checkpoint = Checkpoint.of(_find(trials, parent))
    return parent, 0 if checkpoint is None else checkpoint.step


def _find(trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    if not 0 <= number < len(trials):
        raise ValueError(f"the study has no trial {number}.")
    return trials[number]


def _last_step(trial: FrozenTrial) -> int:
    checkpoint = Checkpoint.of(trial)
    return max(trial.last_step or 0, 0 if checkpoint is None else checkpoint.step)
