"""Which checkpoints a trial may go on from."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import math
from typing import TYPE_CHECKING

from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_ext.checkpoints._errors import CheckpointError
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import parent_of


if TYPE_CHECKING:
    from optuna.trial import BaseTrial
    from optuna.trial import FrozenTrial


def candidates(
    trial: BaseTrial | FrozenTrial,
    trials: Sequence[FrozenTrial],
    direction: StudyDirection,
) -> Iterator[tuple[int, Checkpoint]]:
    """Yield the checkpoints a trial may go on from and whose they are, the first choice first.

    Args:
        trial:
            Its own come first, then its parent's, and so on; then, for a member of a population
            that has a parent, those of the best trials.
        trials:
            All trials of the study, in order of their numbers.
        direction:
            That of the study.

    Raises:
        CheckpointError: If a trial names a parent that the study does not have.
    """
    seen: set[int] = set()
    current: BaseTrial | FrozenTrial | None = trial
    while current is not None and current.number not in seen:
        seen.add(current.number)
        yield from _both(current)
        parent = parent_of(current)
        if parent is not None and not 0 <= parent < len(trials):
            raise CheckpointError(
                f"trial {current.number} names trial {parent} as its parent, which the study does "
                "not have."
            )
        current = None if parent is None else trials[parent]
    if is_member(trial) and parent_of(trial) is not None:
        sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        others = [t for t in trials if t.number not in seen and t.state == TrialState.COMPLETE]
        others = [t for t in others if t.value is not None and math.isfinite(t.value)]
        for other in sorted(others, key=lambda t: sign * (t.value or 0.0)):
            yield from _both(other)


def is_member(trial: BaseTrial | FrozenTrial) -> bool:
    """Return whether a trial is an interval of a population's member."""
    return isinstance(trial.user_attrs.get("member"), int)


def _both(trial: BaseTrial | FrozenTrial) -> Iterator[tuple[int, Checkpoint]]:
    checkpoint = Checkpoint.of(trial)
    while checkpoint is not None:
        yield trial.number, checkpoint
        checkpoint = checkpoint.previous
