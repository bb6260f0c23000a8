"""Storages that many workers can share, opened from a path or a URL.

Whatever is wrong is said in one sentence, by one of three kinds of exception:

* ``ValueError``: the URL, an option, or the content of the file is wrong.
* ``OSError``: the place is (``FileNotFoundError``, ``IsADirectoryError``, ``PermissionError``),
  the server cannot be reached (``ConnectionError``), or a lock never came free
  (``TimeoutError``).
* ``ImportError``: the driver is not installed; the sentence holds the pip command.

No message contains a password.
"""

from __future__ import annotations

import json
from mmap import ACCESS_READ
from mmap import mmap
import os
from pathlib import Path
import re
import shlex
from urllib.parse import urlsplit

from optuna.storages import _CachedStorage
from optuna.storages import BaseStorage
from optuna.storages import GrpcStorageProxy
from optuna.storages import InMemoryStorage
from optuna.storages import JournalStorage
from optuna.storages import RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal import JournalFileOpenLock

from optuna_ext._bulk import BulkStorage
from optuna_ext._logs import get_logger
from optuna_ext._rdb import accept_experimental
from optuna_ext._rdb import CONNECT_TIMEOUT
from optuna_ext._rdb import DRIVERS
from optuna_ext._rdb import escape
from optuna_ext._rdb import heartbeat_options
from optuna_ext._rdb import place
from optuna_ext._rdb import server
from optuna_ext._rdb import server_url
from optuna_ext._rdb import sqlite
from optuna_ext._rdb import sqlite_url
from optuna_ext._rows import knows_schema


__all__ = ["bulk_storage", "dashboard_command", "open_storage", "sqlite"]

_logger = get_logger(__name__)

_FORMS = (
    "a plain path, sqlite:///PATH, journal:PATH, "
    "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, mysql://USER:PASSWORD@HOST:PORT/DATABASE, "
    "grpc://HOST:PORT or :memory:"
)
_GRPC_PORT = 13000  # Optuna's default
_JOURNAL_LINE = b'{"op_code":'  # with which every line of a journal begins


def open_storage(
    storage: str | os.PathLike[str] | BaseStorage,
    *,
    heartbeat: int | None = None,
    retries: int = 0,
) -> BaseStorage:
    """Open any storage from a path or a URL.

    ==================================  ========================================================
    plain path, ``sqlite:///PATH``      :func:`sqlite`
    ``journal:PATH``                    an append-only file, for network file systems
    ``postgresql://...``                needs ``pip install 'optuna-ext[postgresql]'``
    ``mysql://...``                     needs ``pip install 'optuna-ext[mysql]'``
    ``grpc://HOST:PORT``                a running ``optuna.storages.run_grpc_proxy_server``;
                                        needs ``pip install 'optuna-ext[grpc]'``
    ``:memory:``                        this process only
    ==================================  ========================================================

    Args:
        storage:
            One of the above; a storage that is already open is returned as it is.
        heartbeat:
            As in :func:`sqlite`, for SQLite, PostgreSQL and MySQL.
        retries:
            As in :func:`sqlite`.

    Raises:
        ValueError: If the URL or an option is wrong, or the content of the file is.
        OSError: If the place is missing or read-only, or the server cannot be reached within 10
            seconds.
        ImportError: If the driver of the storage is not installed.

    Example:
        .. code-block:: python

            import optuna
            from optuna_ext import open_storage

            study = optuna.create_study(storage=open_storage("journal:study.log"))
    """
    options = heartbeat_options(heartbeat, retries)
    if isinstance(storage, BaseStorage):
        if options:
            raise ValueError("heartbeat is set when a storage is opened, but this one is open")
        return storage
    kind, target = parse_storage(storage)
    if options and kind != "sqlite" and kind not in DRIVERS:
        raise ValueError(
            "heartbeat needs an SQLite, PostgreSQL or MySQL storage, "
            f"but is {heartbeat} with a storage of kind {kind!r}"
        )
    match kind:
        case "sqlite":
            return sqlite(target, heartbeat=heartbeat, retries=retries)
        case "journal":
            return _journal(target)
        case "grpc":
            return _grpc(target)
        case "memory":
            return InMemoryStorage()
        case _:
            return server(target, options)


def bulk_storage(
    storage: str | os.PathLike[str] | BaseStorage, *, interval: float = 1.0
) -> BaseStorage:
    """Open a storage that answers from memory and writes many trials in one transaction.

    For trials that are faster than the database, above all for many at once that a pruner watches
    (see :class:`optuna_ext._bulk.BulkStorage` for when what is written). It can be used wherever
    a storage can, in several processes at once, and the file is an ordinary one.

    Args:
        storage:
            What :func:`open_storage` takes. Journals, gRPC and ``:memory:`` are returned as they
            are, and so is a database whose tables are not known, with a warning in the log.
        interval:
            Seconds until a report of a running trial is written, and until the work of other
            processes is seen, ``interval > 0``. A trial that was told is written at once.

    Raises:
        ValueError: If ``interval`` is not greater than 0, and as for :func:`open_storage`.
        OSError: As for :func:`open_storage`.
        ImportError: As for :func:`open_storage`.

    Example:
        .. code-block:: python

            import optuna
            from optuna_ext import bulk_storage

            study = optuna.create_study(storage=bulk_storage("study.db"))
            study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=100)
    """
    if not interval > 0:
        raise ValueError(f"interval must be greater than 0 seconds, but is {interval!r}")
    opened = open_storage(storage)
    if isinstance(opened, _CachedStorage):  # which Optuna puts around every RDBStorage
        opened = opened._backend
    if not isinstance(opened, RDBStorage) or opened.engine.url.database in (None, "", ":memory:"):
        return opened
    if not knows_schema(opened.get_current_version()):
        _logger.warning(
            "Optuna's tables are not those that optuna_ext writes in bulk: every value is "
            "written by itself, which is slower"
        )
        return opened
    return BulkStorage(opened, interval=interval)


def dashboard_command(storage: str | os.PathLike[str]) -> str:
    """Return the shell command that shows a storage in optuna-dashboard.

    Args:
        storage:
            What :func:`open_storage` was given. The password of a server is shown as ``***``.

    Raises:
        ValueError: If optuna-dashboard cannot open such a storage.

    Example:
        >>> dashboard_command("study.db")
        'optuna-dashboard sqlite:///study.db'
    """
    kind, target = parse_storage(storage)
    if kind == "sqlite":
        target = sqlite_url(_short(target))
    elif kind == "journal":
        target = str(_short(target))
    elif kind in DRIVERS:
        target = escape(server_url(target).render_as_string(hide_password=True))
    elif kind == "grpc":
        raise ValueError(
            "optuna-dashboard cannot read grpc://: start it on the storage behind the server"
        )
    else:
        raise ValueError("optuna-dashboard cannot read :memory:, which only this process sees")
    return shlex.join(["optuna-dashboard", target])


def parse_storage(storage: str | os.PathLike[str]) -> tuple[str, str]:
    """Return the kind of a storage, and its path or URL; nothing is opened.

    Args:
        storage:
            What :func:`open_storage` takes.

    Returns:
        ``("sqlite", PATH)``, ``("journal", PATH)``, ``("memory", URL)``, or the scheme of a
        server and its URL.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> parse_storage("sqlite:///study.db")
        ('sqlite', 'study.db')
    """
    if isinstance(storage, os.PathLike):
        return "sqlite", os.fspath(storage)
    if not isinstance(storage, str):
        raise TypeError(f"storage must be {_FORMS}, but is of type {type(storage).__name__}")
    if storage in (":memory:", "sqlite://"):
        return "memory", storage
    # Two letters or more, as C:\study.db is a path.
    match = re.fullmatch(r"([A-Za-z][\w.+-]+):(.*)", storage, flags=re.DOTALL)
    scheme = match[1].partition("+")[0] if match else ""
    if match is None:
        kind, target = "sqlite", storage
    elif scheme == "sqlite":
        target = _sqlite_path(storage)
        kind = "memory" if target == ":memory:" else "sqlite"
    elif scheme == "journal":
        kind, target = "journal", match[2].removeprefix("//")
    elif scheme in DRIVERS or scheme == "grpc":
        kind, target = scheme, storage
    else:
        raise ValueError(f"storage must be {_FORMS}, but its scheme is {match[1]!r}")
    if not target:
        raise ValueError(f"storage must be {_FORMS}, but is {storage!r}")
    return kind, target


def _short(path: str) -> Path:
    """The path as one would type it here."""
    file = Path(os.path.expanduser(path)).absolute()
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _sqlite_path(url: str) -> str:
    from sqlalchemy.engine import make_url

    parsed = make_url(url) if re.match(r"sqlite(\+\w+)?:///", url) else None
    if parsed is None or not parsed.database or parsed.query:
        raise ValueError(f"an SQLite URL must be sqlite:///PATH without options, but is {url!r}")
    return parsed.database


def _journal(path: str) -> JournalStorage:
    file = place(path)
    # The other lock, a symbolic link, needs a privilege on Windows and, on a relative path,
    # never notices that its holder died.
    lock = JournalFileOpenLock(str(file))
    try:
        file.open("ab").close()
        lock.acquire()
        try:
            _drop_torn_line(file)
        finally:
            lock.release()
        return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
    except PermissionError as error:
        raise PermissionError(
            f"{file} cannot be written: a journal needs write permission for its directory too, "
            "where it keeps PATH.lock"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not an Optuna journal, or it is damaged") from error


def _drop_torn_line(file: Path) -> None:
    """Remove what is left of a write that was cut short, by a full disk or the end of a machine.

    Nobody has read it, as its end is missing; but the next line would be glued to it, and the
    journal could not be read any more. The caller holds the lock, so that nobody is writing.

    Raises:
        ValueError: If the last line is none of a journal.
    """
    size = file.stat().st_size
    if size == 0:
        return
    with file.open("rb+") as opened:
        with mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1
            torn = content[end:]
            last = content[content.rfind(b"\n", 0, max(end - 1, 0)) + 1 : end]
        if not torn.startswith(_JOURNAL_LINE[: len(torn)]):
            raise ValueError(f"{file} does not end as a journal does")
        if last:
            json.loads(last)
        if torn:
            _logger.warning("The last write to %s was cut short: it is left out", file)
            opened.truncate(end)


def _grpc(url: str) -> GrpcStorageProxy:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _GRPC_PORT
    except ValueError:  # a port that is no number
        host = None
    if host is None or parts.path.strip("/") or parts.query or "@" in parts.netloc:
        raise ValueError("a gRPC storage must be grpc://HOST:PORT")
    host = f"[{host}]" if ":" in host else host  # IPv6
    try:
        with accept_experimental():
            proxy = GrpcStorageProxy(host=host, port=port)
        proxy.wait_server_ready(timeout=CONNECT_TIMEOUT)
    except ImportError as error:
        raise ImportError(
            "a grpc:// storage needs grpcio and protobuf: pip install 'optuna-ext[grpc]'"
        ) from error
    except ConnectionError as error:
        proxy.close()
        raise ConnectionError(
            f"no storage server answers at grpc://{host}:{port} within {CONNECT_TIMEOUT} s: "
            "optuna.storages.run_grpc_proxy_server starts one"
        ) from error
    return proxy
