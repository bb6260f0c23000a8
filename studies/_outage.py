"""What does not work for a while: a server restarts, a connection is dropped, a disk is full."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
import errno
import sqlite3
import time

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError

from studies._errors import UserError
from studies._interrupt import Interrupt


_PATIENCE = 60.0  # seconds without success until the storage counts as lost
_PAUSE = 0.5  # seconds between two attempts


class Outage:
    """Waits for the storage or the disk to work again, but not forever.

    Args:
        interrupt: Ends the wait.
    """

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._since: float | None = None

    def is_over(self) -> None:
        """Note that all works."""
        self._since = None

    def wait(self, error: BaseException) -> None:
        """Let a moment pass before the next attempt.

        Args:
            error: What came of the last one.

        Raises:
            UserError: If that has lasted for a minute.
            BaseException: ``error``, if it is none of these.
        """
        if not is_outage(error):
            raise error
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > _PATIENCE:
            raise UserError(
                f"the storage or a disk has not worked for {_PATIENCE:.0f} s: the same command "
                f"goes on when it does ({reason(error)})"
            ) from error
        if self._interrupt.signum is None:
            time.sleep(_PAUSE)


def tolerant(action: Callable[[], None]) -> Callable[[], None]:
    """Return an action that does nothing while the storage is out of reach."""

    def tolerating() -> None:
        try:
            action()
        except Exception as error:
            if not is_outage(error):
                raise

    return tolerating


@contextmanager
def outage_in_a_sentence() -> Iterator[None]:
    """Turn what is left of an outage into one sentence.

    Raises:
        UserError: If the storage or a disk did not work.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_outage(error):
            raise
        raise UserError(f"the storage or a disk does not work: {reason(error)}") from error


@contextmanager
def damage_in_a_sentence(storage: str) -> Iterator[None]:
    """Name a storage whose file is damaged, which no waiting mends.

    Args:
        storage: Path or URL.

    Raises:
        UserError: If it is.
    """
    try:
        yield
    except Exception as error:
        damage = _sqlite_error(error, sqlite3.SQLITE_CORRUPT)
        if damage is None:
            raise
        raise UserError(
            f"the file of --storage {storage} is damaged ({damage}): put back a copy, or save "
            "with sqlite3's .recover what can be read"
        ) from error


def _sqlite_error(error: BaseException | None, *codes: int) -> sqlite3.Error | None:
    """Return what is behind an error, if it is one of SQLite's with such a code."""
    while error is not None:
        if (
            isinstance(error, sqlite3.Error)
            and getattr(error, "sqlite_errorcode", -1) & 0xFF in codes
        ):
            return error
        error = error.__cause__ or error.__context__  # Optuna stumbles while it handles one
    return None


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the storage does not work at the moment, or a disk is full."""
    if _sqlite_error(error, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) is not None:
        return False
    return any(
        isinstance(e, StorageInternalError | DBAPIError)
        or type(e).__module__.startswith("grpc")
        or (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT))
        for e in _chain(error)
    )


def reason(error: BaseException) -> str:
    """Return the first cause of an error in one line."""
    *_, first = _chain(error)
    return " ".join(str(first).split())[:200] or type(first).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
