"""Where trainings and what they recorded are kept, if anywhere."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from optuna_ext.checkpoints import CheckpointStore


Checkpoints = CheckpointStore | str | os.PathLike[str] | None


def open_checkpoints(place: CheckpointStore | str | os.PathLike[str]) -> CheckpointStore:
    """Return the store at a place: within a process always the same one, which knows its files."""
    if isinstance(place, CheckpointStore):
        return place
    place = os.fspath(place)
    is_elsewhere = place == ":memory:" or "://" in place
    return _open(place if is_elsewhere else os.path.abspath(place))  # wherever one is next time


@functools.cache
def _open(place: str) -> CheckpointStore:
    return CheckpointStore(place)


def make_artifacts(place: str | os.PathLike[str]) -> None:
    """Make the directory of the artifacts.

    Raises:
        NotADirectoryError: If it cannot be one.
    """
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotADirectoryError(
            f"artifacts must be a directory, but {os.fspath(place)!r} cannot be one: "
            f"{error.strerror}."
        ) from error


class Unsaved:
    """Stands in for the run of a store where nothing is kept."""

    step = 0
    start = 0
    origin = None

    def save(self, step: int) -> None:
        """Keep nothing."""

    def autosave(self, step: int) -> None:
        """Keep nothing."""
