"""The lock that the processes of a study share: a file's, or one of the database server."""

from __future__ import annotations

import getpass
import hashlib
import os
from pathlib import Path
import tempfile
import threading
from types import TracebackType
from typing import Protocol

from filelock import FileLock
from optuna.storages import BaseStorage
from optuna.storages import RDBStorage
from sqlalchemy import Connection
from sqlalchemy import Engine
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from studies._job import storage_file


_POLL = 0.005  # seconds between two looks at a file's lock

# Both wait; both end with the connection, and so with the process, that holds them.
_TAKE = {
    "postgresql": "SELECT pg_advisory_lock(:number)",
    "mysql": "SELECT GET_LOCK(:name, 1e9)",
}
_LET_GO = {
    "postgresql": "SELECT pg_advisory_unlock(:number)",
    "mysql": "SELECT RELEASE_LOCK(:name)",
}


class Lock(Protocol):
    """What locks of both kinds can do."""

    def acquire(self) -> object:
        """Wait for the lock."""

    def release(self) -> None:
        """Let it go."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def study_lock(location: str, storage: BaseStorage, study: str) -> Lock:
    """Return the lock that all processes share which run trials of a study.

    Those of this machine, or of all machines where the storage is a database server.

    Args:
        location: Path or URL of the storage.
        storage: The storage.
        study: Name of the study.
    """
    file = storage_file(location)
    if file is not None:
        return FileLock(file.absolute().with_name(file.name + "-lock"), poll_interval=_POLL)
    if isinstance(storage, RDBStorage):
        return _ServerLock(storage.engine, study)
    digest = hashlib.sha256(location.encode()).hexdigest()[:16]
    name = f"optuna-ext-{_user()}-{digest}.lock"
    return FileLock(Path(tempfile.gettempdir(), name), poll_interval=_POLL)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())


class _ServerLock:
    """A named lock of a PostgreSQL or MySQL server."""

    def __init__(self, engine: Engine, study: str) -> None:
        self._engine = engine
        # MySQL's names are the whole server's, PostgreSQL's numbers the database's.
        digest = hashlib.sha256(f"{engine.url.database} {study}".encode()).digest()
        self._key = {
            "number": int.from_bytes(digest[:8], "big", signed=True),
            "name": f"optuna-ext-{digest.hex()[:32]}",
        }
        self._mutex = threading.Lock()  # between the threads of this process
        self._connection: Connection | None = None

    def acquire(self) -> None:
        self._mutex.acquire()
        try:
            self._connection = self._engine.connect()
            self._execute(_TAKE)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        try:
            self._execute(_LET_GO)
        except SQLAlchemyError:  # the connection is gone, and the lock with it
            if self._connection is not None:
                self._connection.invalidate()
        finally:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._mutex.release()

    def _execute(self, statements: dict[str, str]) -> None:
        if self._connection is not None:
            names = ("number",) if self._engine.dialect.name == "postgresql" else ("name",)
            key = {name: self._key[name] for name in names}
            self._connection.execute(text(statements[self._engine.dialect.name]), key)
            self._connection.commit()  # the lock is the session's, not the transaction's

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
