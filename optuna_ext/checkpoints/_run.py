from __future__ import annotations

from collections.abc import Callable
import time
from typing import Any
from typing import TYPE_CHECKING

from optuna_ext._checks import check_int
from optuna_ext.checkpoints._errors import CheckpointError
from optuna_ext.checkpoints._things import random_state
from optuna_ext.checkpoints._things import set_random_state
from optuna_ext.checkpoints._things import Things


if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna_ext.lineage import Checkpoint

_SHARE = 0.02  # of the time that saving now and then may take


class Run:
    """A training under way, as :meth:`CheckpointStore.resume` returns it.

    Args:
        things:
            What it consists of.
        keep:
            Keeps a checkpoint of a step.
        autosave:
            Seconds between two checkpoints of :meth:`autosave`.

    Attributes:
        step:
            The step after which the training stands: 0 for a newborn, else that of the checkpoint
            it goes on from or wrote last. Steps count along the whole lineage.
        start:
            The step after which the trial itself began: 0 for a newborn, else that of its parent's
            checkpoint. It stays the same when the trial is tried again after its worker died, so
            an interval of ``n`` steps ends at ``start + n``.
        origin:
            The number of the trial whose checkpoint it goes on from: its parent's, or its own
            after its worker died; ``None`` for a newborn.
    """

    def __init__(
        self,
        things: Things,
        keep: Callable[[Mapping[str, Any], int], Checkpoint],
        *,
        autosave: float,
    ) -> None:
        self.step = 0
        self.start = 0
        self.origin: int | None = None
        self._things = things
        self._keep = keep
        self._autosave = autosave
        self._saved_at = time.monotonic()
        self._cost = 0.0

    def save(self, step: int) -> Checkpoint:
        """Keep the state of everything; when this returns, it is safe.

        Args:
            step:
                The last step that was trained, not below :attr:`step`.

        Raises:
            ValueError: If ``step`` is below :attr:`step`.
            TypeError: If something has a state that is not safe to load.
            CheckpointError: If it cannot be written; the checkpoint before it stays.
        """
        step = check_int("step", step, low=self.step)
        started = time.monotonic()
        random = random_state(self._things.devices())
        checkpoint = self._keep(content_of(self._things, step, random=random), step)
        self.step = step
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - started
        return checkpoint

    def autosave(self, step: int) -> Checkpoint | None:
        """Save if the last checkpoint is old, so that a crash costs little.

        Call it after every step: it does nothing before the seconds given to the store are over,
        or while saving would take more than 2% of the time.

        Args:
            step:
                As for :meth:`save`.

        Returns:
            The checkpoint, if there is a new one.
        """
        age = time.monotonic() - self._saved_at
        return self.save(step) if age >= max(self._autosave, self._cost / _SHARE) else None

    def restore(self, content: Mapping[str, Any], *, origin: int) -> None:
        """Go on from the content of a checkpoint, with this trial's hyperparameters."""
        self._things.restore(content["things"], content["own"])
        if content["random"] is not None:
            set_random_state(content["random"], self._things.devices())
        self.step = content["step"]
        self.start = self.step
        self.origin = origin


def content_of(things: Things, step: int, *, random: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a checkpoint holds, without random numbers if ``random`` is ``None``."""
    return {"step": step, "things": things.states(), "own": things.own, "random": random}


def restore(target: Run | Things, content: Mapping[str, Any], number: int) -> None:
    """Give what the checkpoint of a trial holds to a run, or just to things."""
    try:
        if isinstance(target, Run):
            target.restore(content, origin=number)
        else:
            target.restore(content["things"], None)
    except CheckpointError as error:
        raise CheckpointError(f"the checkpoint of trial {number} {error}") from error
