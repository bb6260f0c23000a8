"""Where trainings are kept, if anywhere."""

from __future__ import annotations

import functools
import os

from optuna_ext.checkpoints import CheckpointStore


Checkpoints = CheckpointStore | str | os.PathLike[str] | None


def open_checkpoints(place: CheckpointStore | str | os.PathLike[str]) -> CheckpointStore:
    """Return the store at a place: within a process always the same one, which knows its files."""
    return place if isinstance(place, CheckpointStore) else _open(os.fspath(place))


@functools.cache
def _open(place: str) -> CheckpointStore:
    return CheckpointStore(place)


class Unsaved:
    """Stands in for the run of a store where nothing is kept."""

    step = 0
    start = 0
    origin = None

    def save(self, step: int) -> None:
        """Keep nothing."""

    def autosave(self, step: int) -> None:
        """Keep nothing."""
