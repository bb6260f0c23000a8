"""Studies under fire: workers and their parent killed, connections cut, clocks that disagree.

``OPTUNA_EXT_FAULTS=500 pytest`` runs the whole size, 500 trials and 8 workers, and
``OPTUNA_EXT_MYSQL=mysql://...`` names an empty database of a MySQL or MariaDB server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
from dataclasses import dataclass
from dataclasses import field
import logging
import os
from pathlib import Path
import random
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import psutil
import pytest

from optuna_ext import open_storage
from optuna_ext.lineage import lineage
import studies


N_TRIALS = int(os.environ.get("OPTUNA_EXT_FAULTS", "24"))
IS_WHOLE = N_TRIALS >= 500
N_FAULTS = N_TRIALS // 8
N_WORKERS = 8 if IS_WHOLE else 3

OBJECTIVE = """
import datetime
import os
import random
import sys
import time

if "studies._runner" in sys.orig_argv:  # a worker, whose clock is up to a day off
    skew = datetime.timedelta(seconds=random.Random(os.getpid()).uniform(-1e5, 1e5))

    class Skewed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + skew

    for name, module in list(sys.modules.items()):
        if name.startswith("optuna.") and vars(module).get("datetime") is datetime.datetime:
            module.datetime = Skewed


def objective(trial):
    open(f"worker-{os.getpid()}", "w").close()
    x, y = (trial.suggest_float(name, 0.0, 1.0) for name in "xy")
    for step in range(3):
        trial.report(x + y, step)
        time.sleep(0.005)
    while trial.number > HALF and not os.path.exists("calm"):
        time.sleep(0.05)  # the study must not end before all faults are tried
    return x + y
"""

TRAINING = """
import contextlib
import errno
import os
import time

from optuna.artifacts import FileSystemArtifactStore
import torch

from optuna_ext import CheckpointStore


class Disk(FileSystemArtifactStore):
    def write(self, artifact_id, content_body):
        with contextlib.suppress(FileNotFoundError):
            os.remove("full")  # so that the test can see that it was
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(artifact_id, content_body)


os.makedirs("checkpoints", exist_ok=True)
store = CheckpointStore(Disk("checkpoints"))


def objective(trial, *, checkpoints=None):
    lr = trial.suggest_float("lr", 0.01, 0.1)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    run = store.resume(trial, model=model, optimizer=optimizer)
    loss = torch.tensor(trial.user_attrs.get("loss", 0.0))
    for step in range(run.step + 1, 11):
        x = torch.randn(8, 4)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.report(loss.item(), step)
        trial.set_user_attr("loss", loss.item())
        run.save(step)
        if checkpoints:
            open(f"worker-{os.getpid()}", "w").close()
            time.sleep(0.1)
    while checkpoints and trial.number >= HALF and not os.path.exists("calm"):
        time.sleep(0.05)
    return loss.item()
"""

SERVER = """
import sys
import optuna
from optuna_ext import sqlite
storage = optuna.storages.get_storage(sqlite(sys.argv[1]))
optuna.storages.run_grpc_proxy_server(storage, port=int(sys.argv[2]))
"""


@dataclass
class Ordeal:
    """A command that is started again and again until it ends well."""

    folder: Path
    storage: str
    n_workers: int
    n_faults: int = N_FAULTS  # beside one of each kind
    faults: list[Callable[[], None]] = field(default_factory=list)
    options: str = f"--trials {N_TRIALS} --retries 50"
    process: subprocess.Popen[str] | None = None
    n_starts: int = 0

    def start(self) -> None:
        command = f"objective.py:objective --storage {self.storage} --study s --seed 1 --no-figure"
        options = f"{self.options} --workers {self.n_workers} --json"
        self.n_starts += 1
        with (self.folder / f"errors-{self.n_starts}").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "studies.run", *command.split(), *options.split()],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(Path(str(studies.__file__)).parents[1])},
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def workers(self) -> list[psutil.Process]:
        """Return the workers that have got to work."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [c for c in children if (self.folder / f"worker-{c.pid}").exists()]
        return []

    def kill_a_worker(self) -> None:
        workers = self.workers()
        if workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                DICE.choice(workers).kill()

    def kill_the_parent(self) -> None:
        assert self.process is not None
        self.process.kill()

    def endure(self) -> list[FrozenTrial]:
        """Run to the end, under fire; return the trials."""
        # Each kind at least once, most of them a worker's death.
        faults = [*self.faults, self.kill_the_parent, self.kill_a_worker]
        faults += DICE.choices([*self.faults, *[self.kill_a_worker] * 4], k=self.n_faults)
        DICE.shuffle(faults)
        self.start()
        assert self.process is not None
        deadline = time.monotonic() + (3000 if IS_WHOLE else 800)
        while self.process.poll() != 0:
            assert time.monotonic() < deadline, self.errors()  # before that of the test
            if self.process.poll() is not None:
                assert self.n_starts < 30, self.errors()
                self.start()
            elif not faults:
                (self.folder / "calm").touch()
            elif self.workers():
                faults.pop()()
            time.sleep(DICE.uniform(0.1, 0.5))
        storage = open_storage(self.storage)
        trials = optuna.load_study(study_name="s", storage=storage).get_trials()
        if isinstance(storage, RDBStorage):
            storage.engine.dispose()
        return trials

    def errors(self) -> str:
        return "\n".join(f.read_text() for f in sorted(self.folder.glob("errors-*")))


DICE = random.Random(0)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if IS_WHOLE else 900)]


@pytest.fixture
def ordeal(tmp_path: Path) -> Iterator[Callable[..., Ordeal]]:
    (tmp_path / "objective.py").write_text(OBJECTIVE.replace("HALF", str(N_TRIALS // 2)))
    made = []

    def make(storage: str, n_workers: int, *faults: Callable[[], None]) -> Ordeal:
        made.append(Ordeal(tmp_path, storage, n_workers, faults=list(faults)))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def check(trials: list[FrozenTrial]) -> None:
    """No trial is lost, none done twice, no design point taken twice; lineages are consistent."""
    assert [trial.number for trial in trials] == list(range(len(trials)))
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    cut_short = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert len(done) + len(cut_short) == len(trials)
    assert len(done) == N_TRIALS
    assert cut_short
    assert len({tuple(trial.params.values()) for trial in done}) == N_TRIALS
    assert all(len(trial.intermediate_values) == 3 for trial in done)
    reasons = Counter(trial.user_attrs["reason"] for trial in cut_short)
    logging.getLogger(__name__).info("cut short: %s", dict(reasons))
    assert set(reasons) <= {
        "its process was killed",
        "interrupted",
        "its storage or a disk did not work",
    }
    # Every trial that was cut short has one successor, which begins with what it had.
    histories = [trial.system_attrs.get("retry_history", []) for trial in trials]
    repeats = [history[-1] for history in histories if history]
    assert sorted(repeats) == [trial.number for trial in cut_short]
    for trial, history in zip(trials, histories, strict=True):
        if history:
            before = trials[history[-1]]
            assert history[:-1] == before.system_attrs.get("retry_history", [])
            assert trial.system_attrs["failed_trial"] == history[0]
            assert before.params.items() <= trial.params.items()


@pytest.mark.parametrize("kind", ["", "journal:"], ids=["sqlite", "journal"])
def test_files(kind: str, tmp_path: Path, ordeal: Callable[..., Ordeal]) -> None:
    n_workers = min(4, N_WORKERS) if kind == "" else N_WORKERS
    check(ordeal(f"{kind}{tmp_path}/study", n_workers).endure())


def test_postgresql(new_database: str, ordeal: Callable[..., Ordeal]) -> None:
    check(_on_server(new_database, ordeal))


def test_mysql(ordeal: Callable[..., Ordeal]) -> None:
    url = os.environ.get("OPTUNA_EXT_MYSQL")
    if not url:
        pytest.skip("OPTUNA_EXT_MYSQL does not name a database of a MySQL server")
    check(_on_server(url, ordeal))


def _on_server(url: str, ordeal: Callable[..., Ordeal]) -> list[FrozenTrial]:
    storage = open_storage(url)
    assert isinstance(storage, RDBStorage)
    engine = storage.engine

    def cut_connections() -> None:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            else:
                rows = connection.exec_driver_sql(
                    "SELECT id FROM information_schema.processlist "
                    "WHERE db = DATABASE() AND id <> CONNECTION_ID()"
                )
                for (number,) in rows.fetchall():
                    with contextlib.suppress(Exception):
                        connection.exec_driver_sql(f"KILL {number}")

    try:
        return ordeal(url, N_WORKERS, cut_connections).endure()
    finally:
        engine.dispose()


def test_grpc(tmp_path: Path, ordeal: Callable[..., Ordeal]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    servers: list[subprocess.Popen[bytes]] = []

    def restart() -> None:
        for server in servers:
            server.kill()
            server.wait()
        command = [sys.executable, "-c", SERVER, str(tmp_path / "study.db"), str(port)]
        servers.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))

    restart()
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
            break
        time.sleep(0.1)
    try:
        check(ordeal(f"grpc://localhost:{port}", N_WORKERS, restart).endure())
    finally:
        for server in servers:
            server.kill()
            server.wait()


def test_trainings_go_on_from_their_checkpoints(
    tmp_path: Path, ordeal: Callable[..., Ordeal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was killed, and although the disk was full, each step is trained as if nothing."""
    training = TRAINING.replace("HALF", "3")
    (tmp_path / "objective.py").write_text(training)
    full = tmp_path / "full"
    under_fire = ordeal(f"{tmp_path}/study.db", 2, full.touch)
    under_fire.n_faults = N_FAULTS if IS_WHOLE else 1
    under_fire.options = "--trials 6 --checkpoints checkpoints"
    trials = under_fire.endure()
    study = optuna.create_study()
    study.add_trials(trials)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(done) == 6, [(t.number, t.state, t.user_attrs, t.system_attrs) for t in trials]
    assert any("checkpoint" in trial.user_attrs for trial in trials if trial not in done)
    assert not full.exists()
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(training, namespace)
    for trial in done:
        undisturbed = namespace["objective"](optuna.trial.FixedTrial(trial.params))
        assert trial.value == undisturbed
        assert list(trial.intermediate_values) == list(range(1, 11))
        (interval,) = lineage(study, trial.number)
        assert interval.steps == range(1, 11)
