"""Optuna's relational storages, made safe for workers that start and write together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from functools import partial
import importlib.util
import os
from pathlib import Path
import re
import sqlite3
import time
from typing import Any
from typing import TYPE_CHECKING
import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.storages import RetryHeartbeatStaleTrialCallback

from optuna_ext._logs import get_logger
from optuna_ext._rows import knows_schema
from optuna_ext._sqlite import AtomicStorage
from optuna_ext._sqlite import SQLiteStorage


if TYPE_CHECKING:
    from sqlalchemy.engine import URL


_logger = get_logger(__name__)

CONNECT_TIMEOUT = 10  # seconds until a server counts as unreachable

# Drivers by preference, the one that the extra of the same name installs first.
DRIVERS = {"postgresql": ("psycopg2", "psycopg"), "mysql": ("pymysql",)}

# Held while tables are created. The number is "optuna" in ASCII; the lock is per database.
_SCHEMA_LOCKS = {
    "postgresql": "SELECT pg_advisory_lock(122528780873313)",
    "mysql": "SELECT GET_LOCK('optuna', 60)",
}


def sqlite(
    path: str | os.PathLike[str],
    *,
    timeout: float = 60.0,
    heartbeat: int | None = None,
    retries: int = 0,
) -> RDBStorage:
    """Open an SQLite file as a storage that does not lock up under several workers.

    Every connection uses write-ahead logging (WAL) with ``synchronous=NORMAL``: a write then
    seldom waits for the disk, and readers, optuna-dashboard among them, never wait for writers.
    A killed process loses nothing; a power cut may lose the last writes but leaves the file
    whole. Any number of processes may open a missing file at the same moment, and each waiting
    trial is claimed by exactly one of them: with Optuna's own storage on SQLite the first can
    crash and the second is not so. Trials are read and written in plain SQL, without an object
    for every row, in less than a tenth of the time.

    While the study is open, SQLite keeps ``PATH-wal`` and ``PATH-shm`` beside the file: copy
    them together, and keep all three on a local disk. Where the file system has no WAL, a
    warning says so and SQLite's rollback journal is used.

    Args:
        path:
            The file; created if missing, in a directory that exists. ``~`` is the home directory.
        timeout:
            Seconds to wait while another process writes, ``timeout > 0``.
        heartbeat:
            Seconds between two signs of life of a running trial, ``heartbeat >= 1``. A trial of
            ``study.optimize`` that gave none for twice as long is marked as failed when the next
            trial starts. ``None`` switches this off.
        retries:
            How often a trial that failed in this way is enqueued again, ``retries >= 0``; more
            than 0 needs ``heartbeat``.

    Returns:
        A storage for ``optuna.create_study(storage=...)``; it can be pickled.

    Raises:
        ValueError: If an option is out of range, the file is not an SQLite database, or it was
            written by an incompatible version of Optuna.
        OSError: If the directory is missing, the path is a directory, the file or its directory
            cannot be written, or the file stays locked for longer than ``timeout``.

    Example:
        .. code-block:: python

            import optuna
            from optuna_ext import sqlite

            study = optuna.create_study(storage=sqlite("study.db", heartbeat=30, retries=2))
            study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=10)
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be greater than 0 seconds, but is {timeout!r}")
    options = heartbeat_options(heartbeat, retries)
    if os.fspath(path) == ":memory:":
        raise ValueError("path must name a file, but is ':memory:', which open_storage accepts")
    file = place(path)
    connect = partial(_connect, str(file), timeout)
    try:
        with closing(connect()) as connection:
            revision = _prepare(connection, file, timeout)
    except sqlite3.Error as error:
        raise _explain(error, file, timeout) from error
    kind = SQLiteStorage if knows_schema(revision) else AtomicStorage
    with _explain_incompatibility(sqlite_url(file)):
        return kind(sqlite_url(file), engine_kwargs={"creator": connect}, **options)


def server_url(url: str) -> URL:
    """Parse the URL of a database server and fill in an installed driver.

    SQLAlchemy's own default differs between its versions, and need not be installed.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    kind = re.split(r"[+:]", url)[0]
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or not parsed.database or "@" in (parsed.host or ""):
        # Not shown, because a wrong URL may hold the password in any of its parts.
        raise ValueError(
            f"the URL must be {kind}://USER:PASSWORD@HOST:PORT/DATABASE, "
            "with special characters percent-encoded (urllib.parse.quote_plus)"
        ) from None
    if "+" in parsed.drivername:
        return parsed
    drivers = DRIVERS[kind]
    installed = [name for name in drivers if importlib.util.find_spec(name)]
    return parsed.set(drivername=f"{kind}+{(installed or drivers)[0]}")


def server(url: str, options: dict[str, Any]) -> RDBStorage:
    """Open a PostgreSQL or MySQL storage; ``options`` are those of :func:`heartbeat_options`."""
    from sqlalchemy import create_engine
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.exc import NoSuchModuleError
    from sqlalchemy.pool import NullPool

    parsed = server_url(url)
    kind, _, driver = parsed.drivername.partition("+")
    shown = parsed.set(query={}).render_as_string(hide_password=True)
    # A sleeping server drops idle connections while a network trains: ping before use.
    engine_kwargs: dict[str, Any] = {"pool_pre_ping": True}
    if driver in DRIVERS[kind] and "connect_timeout" not in parsed.query:
        engine_kwargs["connect_args"] = {"connect_timeout": CONNECT_TIMEOUT}
    try:
        gate = create_engine(parsed, poolclass=NullPool, **engine_kwargs)
        # As in _prepare: one worker at a time, until the tables are there.
        with gate.connect() as connection, _explain_incompatibility(shown):
            connection.execute(text(_SCHEMA_LOCKS[kind]))
            address = escape(parsed.render_as_string(hide_password=False))
            return RDBStorage(address, engine_kwargs=engine_kwargs, **options)
    except NoSuchModuleError:
        raise ValueError(f"{driver!r} is not a driver of {kind}://: leave it out") from None
    except ImportError as error:
        raise ImportError(
            f"a {kind}:// storage needs {driver}: pip install 'optuna-ext[{kind}]'"
        ) from error
    except DBAPIError as error:
        reason = str(error.orig.args[-1] if error.orig else error).splitlines()[0]
        raise ConnectionError(f"cannot use {shown}: {reason}") from None


def _connect(path: str, timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=timeout, check_same_thread=False)
    # NORMAL is safe with WAL only; a rollback journal keeps SQLite's default, FULL.
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _prepare(connection: sqlite3.Connection, file: Path, timeout: float) -> str | None:
    """Switch to WAL and create Optuna's tables, all of them or none; return their revision.

    RDBStorage checks for each table and then creates it, so that workers starting together on a
    new file crash with "table already exists". In one transaction the first one does it all.
    """
    connection.isolation_level = None
    mode = _switch_to_wal(connection, timeout)
    if mode != "wal":
        _logger.warning(
            "The file system of %s has no write-ahead logging, so SQLite uses its slower %r "
            "journal there: prefer a local disk, or journal:PATH",
            *(file, mode),
        )
    connection.execute("BEGIN IMMEDIATE")
    if not _has_table(connection, "studies"):
        for statement in _schema():
            connection.execute(statement)
    connection.execute("COMMIT")
    if not _has_table(connection, "alembic_version"):  # of an Optuna of 2018
        return None
    found: tuple[str] | None = connection.execute(
        "SELECT version_num FROM alembic_version"
    ).fetchone()
    return None if found is None else found[0]


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE name = ?"
    return connection.execute(query, (name,)).fetchone() is not None


def _switch_to_wal(connection: sqlite3.Connection, timeout: float) -> str:
    """Return the journal mode that the file then has."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            mode: str = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            # While another process writes, this fails at once, whatever the busy timeout.
            if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return mode


def _schema() -> list[str]:
    """Return the statements that make an empty database an Optuna storage."""
    template = RDBStorage("sqlite:///:memory:")
    with closing(template.engine.raw_connection()) as connection:
        driver: Any = connection.driver_connection
        script = list(driver.iterdump())
    template.engine.dispose()
    return script[1:-1]  # without BEGIN and COMMIT


def _primary_code(error: sqlite3.Error) -> int:
    return error.sqlite_errorcode & 0xFF  # https://www.sqlite.org/rescode.html, section 2


def _explain(error: sqlite3.Error, file: Path, timeout: float) -> Exception:
    code = _primary_code(error)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return ValueError(f"{file} is not an SQLite database, or it is damaged")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return PermissionError(
            f"{file} cannot be written: SQLite needs write permission for its directory too, "
            "where it keeps PATH-wal and PATH-shm"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TimeoutError(f"{file} was locked by another process for more than {timeout:g} s")
    return OSError(f"SQLite cannot use {file}: {error}")


def heartbeat_options(heartbeat: int | None, retries: int) -> dict[str, Any]:
    """Return the arguments of RDBStorage that stand for these two."""
    if heartbeat is not None and not (isinstance(heartbeat, int) and heartbeat >= 1):
        raise ValueError(f"heartbeat must be None or an integer >= 1, but is {heartbeat!r}")
    if not (isinstance(retries, int) and retries >= 0):
        raise ValueError(f"retries must be an integer >= 0, but is {retries!r}")
    if retries and heartbeat is None:
        raise ValueError(f"retries needs heartbeat, but is {retries} with heartbeat=None")
    if heartbeat is None:
        return {}
    with accept_experimental():
        retry = RetryHeartbeatStaleTrialCallback(max_retry=retries) if retries else None
    return {"heartbeat_interval": heartbeat, "heartbeat_stale_trial_callback": retry}


@contextmanager
def accept_experimental() -> Iterator[None]:
    """Silence Optuna's word that heartbeats and gRPC storages may change: they were asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def _explain_incompatibility(shown: str) -> Iterator[None]:
    with accept_experimental():
        try:
            yield
        except RuntimeError as error:
            older = "storage upgrade" in str(error)
            advice = (
                f"optuna storage upgrade --storage {shown}" if older else "pip install -U optuna"
            )
            raise ValueError(
                f"{shown} was written by an incompatible version of Optuna: run `{advice}`"
            ) from error


def place(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a file that can be written or may be created."""
    file = Path(os.path.expanduser(path)).absolute()
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a directory: name a file in it, such as study.db")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"the directory {file.parent} of {file.name} does not exist")
    effective = os.access in os.supports_effective_ids
    if file.exists() and not os.access(file, os.W_OK, effective_ids=effective):
        raise PermissionError(f"{file} cannot be written: it is read-only for this user")
    return file


def sqlite_url(file: Path) -> str:
    from sqlalchemy.engine import URL

    return escape(URL.create("sqlite", database=str(file)).render_as_string())


def escape(url: str) -> str:
    # RDBStorage formats its URL, in which SQLAlchemy before 2.1 leaves braces as they are.
    return url.replace("{", "{{").replace("}", "}}")
