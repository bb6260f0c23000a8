from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import pickle
import time
from typing import Any
import uuid

from filelock import FileLock  # comes with torch
from filelock import Timeout
from optuna.study import Study
import torch

from optuna_ext.fused._trainer import Trainer


_VERSION = 2


class CheckpointInUseError(RuntimeError):
    """Another process uses the checkpoint.

    Example:
        >>> issubclass(CheckpointInUseError, RuntimeError)
        True
    """


@contextmanager
def locked(checkpoint: str | os.PathLike[str] | None) -> Iterator[None]:
    """Keep other processes from using a checkpoint inside the block.

    :func:`~optuna_ext.fused.optimize` does so by itself. Around it, this keeps what is asked
    before, such as how many trials are missing, true until then.

    Args:
        checkpoint:
            As for :func:`~optuna_ext.fused.optimize`; ``None`` needs no lock.

    Raises:
        CheckpointInUseError: If another process uses it.

    Example:
        .. code-block:: python

            from optuna_ext import fused

            with fused.locked("run.pt"):
                pass  # count what is missing, and call fused.optimize
    """
    if checkpoint is None:
        yield
        return
    # One lock per file in this thread, which may be taken again inside.
    lock = FileLock(f"{os.fspath(checkpoint)}.lock", timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise CheckpointInUseError(
            f"checkpoint {os.fspath(checkpoint)!r} must be of one process, but another one uses "
            "it."
        ) from None
    try:
        yield
    finally:
        lock.release()


class Checkpoint:
    """A file with all trials in training, from which another process goes on.

    Args:
        path:
            The file; ``None`` writes none.
        interval:
            Seconds between two writes, ``interval > 0``.

    Raises:
        ValueError: If ``interval`` is not greater than 0, or the file is something else.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, interval: float) -> None:
        if not interval > 0:
            raise ValueError(
                f"checkpoint_interval must be greater than 0 seconds, but it is {interval}."
            )
        self._path = None if path is None else Path(path).expanduser().absolute()
        self._interval = interval
        self._next = time.monotonic() + interval
        self.run = uuid.uuid4().hex
        """Names the run in its trials, so that another process finds them."""
        self.state: dict[str, Any] | None = None
        """What an earlier process has left."""
        self._study: str | None = None
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def __bool__(self) -> bool:
        return self._path is not None

    def _read(self, path: Path) -> None:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            if found["version"] != _VERSION:
                raise KeyError
            self.state, self._study = found["state"], found["study"]
            self.run = found["run"] or self.run
        except (KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"checkpoint {str(path)!r} is not one of this program.") from error

    def check(self, study: Study) -> None:
        """Refuse to go on with another study.

        Raises:
            ValueError: If the checkpoint is of another study.
        """
        if self._study not in (None, study.study_name):
            raise ValueError(
                f"checkpoint {str(self._path)!r} must be of study {study.study_name!r}, but it is "
                f"of {self._study!r}."
            )

    def write(self, study: Study, trainer: Trainer, *, is_over: bool = False) -> None:
        """Write the file, at once or not at all; none of its trials is running once it is over."""
        if self._path is None:
            return
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        contents = {
            "version": _VERSION,
            "run": None if is_over else self.run,
            "study": study.study_name,
            "state": trainer.state_dict(),
        }
        try:
            with new.open("wb") as file:
                torch.save(contents, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        finally:
            new.unlink(missing_ok=True)
        self._next = time.monotonic() + self._interval

    def write_if_due(self, study: Study, trainer: Trainer) -> None:
        """Write the file if the last time is long ago."""
        if time.monotonic() >= self._next:
            self.write(study, trainer)

    def close(self, study: Study, trainer: Trainer) -> None:
        """Remove the file, or keep in it what a later run may go on from."""
        if trainer.has_parents:
            self.write(study, trainer, is_over=True)
        elif self._path is not None:
            self._path.unlink(missing_ok=True)
