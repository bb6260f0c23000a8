from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
import json
import os
from pathlib import Path
import pickle
import shlex
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from typing import Any
from typing import TYPE_CHECKING
from typing import TypeVar
import urllib.request

import optuna
from optuna.storages import GrpcStorageProxy
from optuna.storages import InMemoryStorage
from optuna.storages import RDBStorage
from optuna.trial import TrialState
import pytest

from optuna_ext import storage as storage_module
from optuna_ext.storage import dashboard_command
from optuna_ext.storage import open_storage
from optuna_ext.storage import sqlite


if TYPE_CHECKING:
    from tests.conftest import Disposed
    from tests.conftest import Objective


T = TypeVar("T")

NOBODY = 65534


class TestOpenStorage:
    def test_memory(self) -> None:
        assert isinstance(open_storage(":memory:"), InMemoryStorage)
        assert isinstance(open_storage("sqlite:///:memory:"), InMemoryStorage)
        assert isinstance(open_storage("sqlite+pysqlite:///:memory:"), InMemoryStorage)

    def test_an_open_storage_passes_through(self) -> None:
        storage = InMemoryStorage()
        assert open_storage(storage) is storage

    @pytest.mark.parametrize("form", ["{}", "sqlite:///{}", "sqlite+pysqlite:///{}"])
    def test_sqlite(self, form: str, tmp_path: Path, disposed: Disposed) -> None:
        path = tmp_path / "study.db"
        with disposed(open_storage(form.format(path), heartbeat=7, retries=2)) as storage:
            assert path.exists()
            assert storage.get_heartbeat_interval() == 7
            assert storage.get_heartbeat_stale_trial_callback() is not None

    @pytest.mark.parametrize("form", ["journal:{}", "journal://{}"])
    def test_journal(self, form: str, tmp_path: Path, objective: Objective) -> None:
        url = form.format(tmp_path / "study.log")
        study = optuna.create_study(study_name="s", storage=open_storage(url))
        study.optimize(objective, n_trials=3, n_jobs=2)
        again = optuna.load_study(study_name="s", storage=open_storage(url))
        assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]
        assert [path.name for path in tmp_path.iterdir()] == ["study.log"]

    def test_relative_paths(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disposed: Disposed
    ) -> None:
        monkeypatch.chdir(tmp_path)
        open_storage("journal:study.log")
        with (
            disposed(open_storage("sqlite:///url.db")),
            disposed(open_storage("plain.db")),
            disposed(open_storage(Path("path:like.db"))),
        ):
            names = {path.name for path in tmp_path.iterdir()}
        assert {"study.log", "url.db", "plain.db", "path:like.db"} <= names

    @pytest.fixture
    def grpc_url(self, tmp_path: Path) -> Iterator[str]:
        port = free_port()
        script = (
            "import sys, warnings, optuna\n"
            "from optuna_ext import sqlite\n"
            "storage = optuna.storages.get_storage(sqlite(sys.argv[1]))\n"
            "optuna.storages.run_grpc_proxy_server(storage, port=int(sys.argv[2]))\n"
        )
        command = [sys.executable, "-c", script, str(tmp_path / "study.db"), str(port)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
            try:
                retry(lambda: socket.create_connection(("localhost", port)).close())
                yield f"grpc://localhost:{port}"
            finally:
                server.terminate()

    def test_grpc(self, grpc_url: str, objective: Objective) -> None:
        storage = open_storage(grpc_url)
        assert isinstance(storage, GrpcStorageProxy)
        study = optuna.create_study(study_name="s", storage=storage)
        study.optimize(objective, n_trials=3)
        copy = pickle.loads(pickle.dumps(storage))
        assert len(optuna.load_study(study_name="s", storage=copy).trials) == 3
        storage.close()
        copy.close()


class TestDashboardCommand:
    def test_forms(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "sub").mkdir()
        expected = {
            "study.db": "optuna-dashboard sqlite:///study.db",
            "sqlite:///sub/study.db": "optuna-dashboard sqlite:///sub/study.db",
            "sqlite:////data/study.db": "optuna-dashboard sqlite:////data/study.db",
            "a b.db": "optuna-dashboard 'sqlite:///a b.db'",
            "journal:a b.log": "optuna-dashboard 'a b.log'",
            "mysql://u:secret@h/d": "optuna-dashboard 'mysql+pymysql://u:***@h/d'",
            "postgresql://h/d": "optuna-dashboard postgresql+psycopg2://h/d",
        }
        assert {url: dashboard_command(url) for url in expected} == expected
        assert dashboard_command(tmp_path / "study.db") == expected["study.db"]

    @pytest.mark.parametrize("url", [":memory:", "grpc://localhost:13000"])
    def test_what_the_dashboard_cannot_read(self, url: str) -> None:
        with pytest.raises(ValueError, match=f"cannot read {url.partition('localhost')[0]}"):
            dashboard_command(url)

    @pytest.mark.parametrize("url", ["{}/odd {{name}}%20#.db", "journal:{}/study.log"])
    def test_the_command_shows_a_study_that_is_open(
        self, url: str, tmp_path: Path, objective: Objective
    ) -> None:
        url = url.format(tmp_path)
        storage = open_storage(url)
        optuna.create_study(study_name="s", storage=storage).optimize(objective, n_trials=2)
        program, target = shlex.split(dashboard_command(url))
        port = free_port()
        command = [str(Path(sys.executable).with_name(program)), target, "--port", str(port)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server:
            try:
                answer = retry(lambda: read_json(f"http://localhost:{port}/api/studies"))
            finally:
                server.terminate()
        assert [summary["study_name"] for summary in answer["study_summaries"]] == ["s"]
        if isinstance(storage, RDBStorage):
            storage.engine.dispose()


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"timeout": 0.0}, "timeout must be greater than 0 seconds, but is 0.0"),
            ({"timeout": float("nan")}, "timeout must be greater than 0 seconds, but is nan"),
            ({"heartbeat": 0}, "heartbeat must be None or an integer >= 1, but is 0"),
            ({"heartbeat": 1.5}, "heartbeat must be None or an integer >= 1, but is 1.5"),
            ({"heartbeat": 1, "retries": -1}, "retries must be an integer >= 0, but is -1"),
            ({"retries": 2}, "retries needs heartbeat, but is 2"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            sqlite(tmp_path / "study.db", **options)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("storage", ["journal:study.log", ":memory:", "grpc://localhost"])
    def test_heartbeat_of_other_storages(self, storage: str) -> None:
        with pytest.raises(ValueError, match="heartbeat needs an SQLite, PostgreSQL or MySQL"):
            open_storage(storage, heartbeat=1)
        with pytest.raises(ValueError, match="this one is open"):
            open_storage(InMemoryStorage(), heartbeat=1)

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("redis://u:secret@h", r"must be a plain path, .*, but its scheme is 'redis'"),
            ("sqllite:///x.db", r"sqlite:///PATH, .*, but its scheme is 'sqllite'"),
            ("", "but is ''"),
            ("journal:", "but is 'journal:'"),
            ("sqlite:x.db", "must be sqlite:///PATH without options"),
            ("sqlite:///x.db?mode=ro", "must be sqlite:///PATH without options"),
            ("grpc://localhost:many", "must be grpc://HOST:PORT"),
            ("grpc://u:secret@localhost", "must be grpc://HOST:PORT"),
            ("grpc://[::1", "must be grpc://HOST:PORT"),
            ("postgresql:secret", "must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE"),
            ("postgresql://u:secret@h", "must be postgresql://USER:PASSWORD@HOST"),
            ("postgresql://u:secret@h:many/d", "must be postgresql://USER:PASSWORD@HOST"),
            ("mysql://u:sec@secret@h/d", "percent-encoded"),
            ("mysql+none://u:secret@h/d", "'none' is not a driver of mysql://"),
        ],
    )
    def test_urls(self, url: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            open_storage(url)
        assert "secret" not in said(caught.value)

    def test_types(self) -> None:
        with pytest.raises(TypeError, match="must be a plain path, .* but is of type int"):
            open_storage(3)  # type: ignore[arg-type]

    def test_memory_is_no_file(self) -> None:
        with pytest.raises(ValueError, match="which open_storage accepts"):
            sqlite(":memory:")

    @pytest.mark.parametrize("form", ["{}", "journal:{}"])
    def test_places(self, form: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="the directory .*/none of x does not exist"):
            open_storage(form.format(tmp_path / "none" / "x"))
        with pytest.raises(IsADirectoryError, match="is a directory: name a file in it"):
            open_storage(form.format(tmp_path))

    @pytest.mark.parametrize("form", ["{}", "journal:{}"])
    @pytest.mark.parametrize("read_only", ["file", "directory", "new file"])
    def test_read_only(
        self, form: str, read_only: str, tmp_path: Path, disposed: Disposed
    ) -> None:
        # Imports what a storage needs while Python's own directory, maybe root's, can be read.
        with disposed(sqlite(tmp_path / "first.db")):
            pass
        with unprivileged_directory() as directory:
            path = directory / "study"
            url = form.format(path)
            if read_only != "new file":
                storage = open_storage(url)
                if isinstance(storage, RDBStorage):
                    storage.engine.dispose()
            locked = path if read_only == "file" else directory
            locked.chmod(0o555)
            with pytest.raises(PermissionError, match=f"{path} cannot be written: "):
                open_storage(url)
            directory.chmod(0o755)
            assert len(list(directory.iterdir())) == (read_only != "new file")

    @pytest.mark.parametrize("form", ["{}", "journal:{}"])
    @pytest.mark.parametrize(
        "content", ["text", "some text\n", "some text\n" * 100, '{"json": 1}\n' * 100]
    )
    def test_other_files(self, form: str, content: str, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text(content)
        with pytest.raises(ValueError, match="is not an (SQLite database|Optuna journal), or it"):
            open_storage(form.format(path))
        assert path.read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize("left", [1, 5, 50, -1])
    def test_a_write_that_was_cut_short(
        self, left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "study.log"
        study = optuna.create_study(study_name="s", storage=open_storage(f"journal:{path}"))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        whole, line = path.read_bytes().removesuffix(b"\n").rsplit(b"\n", 1)
        path.write_bytes(whole + b"\n" + line[:left])  # the end of the second trial
        for n in (3, 4):  # with what was written since
            study = optuna.load_study(study_name="s", storage=open_storage(f"journal:{path}"))
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
            states = [trial.state for trial in study.trials]
            assert states.count(TrialState.COMPLETE) == n - 1
            assert states[1] == TrialState.RUNNING
        assert caplog.text.count("was cut short") == 1

    @pytest.mark.parametrize(
        ("version", "advice"),
        [("v2.6.0.a", "run `optuna storage upgrade --storage sqlite:///"), ("v99", "pip install")],
    )
    def test_incompatible_versions(
        self, version: str, advice: str, tmp_path: Path, disposed: Disposed
    ) -> None:
        path = tmp_path / "study.db"
        with disposed(sqlite(path)):
            pass
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        with pytest.raises(ValueError, match=f"incompatible version of Optuna: .*{advice}"):
            sqlite(path)

    def test_waits_for_a_writer_before_the_switch_to_wal(
        self, tmp_path: Path, disposed: Disposed
    ) -> None:
        path = tmp_path / "study.db"
        with closing(sqlite3.connect(path, check_same_thread=False)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            release = threading.Timer(0.5, writer.rollback)
            release.start()
            with disposed(sqlite(path)) as storage:
                assert not writer.in_transaction
                assert optuna.create_study(storage=storage).trials == []
            release.join()

    def test_locked_for_too_long(self, tmp_path: Path, disposed: Disposed) -> None:
        path = tmp_path / "study.db"
        with disposed(sqlite(path)), closing(sqlite3.connect(path)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                TimeoutError, match=r"locked by another process for more than 0\.2"
            ):
                sqlite(path, timeout=0.2)

    def test_missing_drivers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("psycopg2", "psycopg", "pymysql"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=r"needs psycopg2: pip install 'optuna-ext\[postgre"):
            open_storage("postgresql://u:secret@h/d")
        with pytest.raises(ImportError, match=r"needs pymysql: pip install 'optuna-ext\[mysql\]'"):
            open_storage("mysql://u:secret@h/d")

    def test_missing_grpc(self) -> None:
        script = (
            "import sys\n"
            "sys.modules['grpc'] = None\n"
            "from optuna_ext import open_storage\n"
            "open_storage('grpc://localhost:1')\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.stderr.splitlines()[-1] == (
            "ImportError: a grpc:// storage needs grpcio and protobuf: "
            "pip install 'optuna-ext[grpc]'"
        )

    @pytest.mark.parametrize("kind", ["postgresql", "mysql"])
    def test_unreachable_servers(self, kind: str) -> None:
        port = free_port()
        with pytest.raises(ConnectionError, match=rf"cannot use {kind}\S+u:\*\*\*@.*") as caught:
            open_storage(f"{kind}://u:secret@127.0.0.1:{port}/d?connect_timeout=1")
        assert "refused" in str(caught.value)
        assert "secret" not in said(caught.value)

    def test_a_server_that_never_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("optuna_ext._rdb.CONNECT_TIMEOUT", 2)  # libpq's least
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            with pytest.raises(ConnectionError, match="timeout expired"):
                open_storage(f"postgresql://u:secret@127.0.0.1:{port}/d")

    def test_unreachable_grpc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage_module, "CONNECT_TIMEOUT", 0.2)
        with pytest.raises(ConnectionError, match="no storage server answers at grpc://localhost"):
            open_storage(f"grpc://localhost:{free_port()}")


def said(error: BaseException) -> str:
    """Everything that a traceback shows except the source lines of the test itself."""
    frames = traceback.format_exception(error)
    return "".join(line for line in frames if not line.startswith("  File"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def retry(connect: Callable[[], T], seconds: float = 120) -> T:
    """The result of ``connect`` as soon as it has one: a busy machine starts servers slowly."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def read_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


@contextmanager
def unprivileged_directory() -> Iterator[Path]:
    """A new directory, seen by a user whom permissions bind; root is bound by none."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as directory:
        if root:
            os.chown(directory, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(directory)
        finally:
            if root:
                os.seteuid(0)
