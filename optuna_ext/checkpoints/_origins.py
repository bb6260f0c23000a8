from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna_ext.checkpoints._errors import CheckpointError
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import parent_of


if TYPE_CHECKING:
    from optuna.trial import BaseTrial
    from optuna.trial import FrozenTrial


def candidates(
    trial: BaseTrial | FrozenTrial, trials: Sequence[FrozenTrial]
) -> Iterator[tuple[int, Checkpoint]]:
    """Yield the checkpoints a trial may go on from and whose they are, the best first.

    Args:
        trial:
            The one that begins.
        trials:
            All trials of its study, by number.

    Raises:
        CheckpointError: If a parent is none of them.
    """
    seen: set[int] = set()
    current: BaseTrial | FrozenTrial | None = trial
    while current is not None and current.number not in seen:
        seen.add(current.number)
        checkpoint = Checkpoint.of(current)
        while checkpoint is not None:
            yield current.number, checkpoint
            checkpoint = checkpoint.previous
        parent = parent_of(current)
        if parent is not None and not 0 <= parent < len(trials):
            raise CheckpointError(
                f"trial {current.number} names trial {parent} as its parent, which the study does "
                "not have."
            )
        current = None if parent is None else trials[parent]
