"""Workers are killed while they save, and read while another one collects."""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time

import optuna
from optuna.trial import TrialState
import pytest
import torch
from torch import nn

import optuna_ext
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.lineage import Checkpoint


# One process that has imported everything forks a worker for every line it reads.
NURSERY = """
import logging, os, sys, time
import optuna, torch
from torch import nn
import optuna_ext
from optuna.trial import TrialState
from optuna_ext.checkpoints import CheckpointError, CheckpointStore

def save(study, store):
    model = nn.Linear(1000, 1000)  # 4 megabytes
    run = store.resume(study.ask(), model=model)
    while True:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(run.step + 1)
        run.save(run.step + 1)

def read(study, store):
    model = nn.Linear(10, 10)
    for _ in range(12):
        while True:
            begun = time.monotonic()
            ended = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
            trial = study.ask()
            trial.set_user_attr("parent", ended[-1].number)
            try:
                run = store.resume(trial, model=model)
                if run.origin == ended[-1].number:
                    break
            except CheckpointError:
                pass
            # Only who was held up for longer than is promised may miss it.
            assert time.monotonic() - begun > float(grace)
            study.tell(trial, state=TrialState.FAIL)
        with torch.no_grad():
            model.weight += 1
        run.save(run.step + 1)
        study.tell(trial, -run.step)

def collect(study, store):
    while True:
        store.collect(study)
        time.sleep(0.05)

logging.disable(logging.CRITICAL)
database, place, grace = sys.argv[1:]
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        study = optuna.load_study(study_name="s", storage=optuna_ext.sqlite(database))
        globals()[line.strip()](study, CheckpointStore(place, grace=float(grace), keep=1))
        os._exit(0)
    print(child, flush=True)
"""


class Nursery:
    def __init__(self, directory: Path, *, grace: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, directory / "s.db", directory / "kept", str(grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(self, worker: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{worker}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # the workers, too
        self.process.communicate()


def is_alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=optuna_ext.sqlite(tmp_path / "s.db"))


@pytest.fixture
def nursery(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path, grace=request.param)
    yield made
    made.close()


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="tells live processes apart by /proc"
)


@pytest.mark.slow
@pytest.mark.parametrize("nursery", [0.0], indirect=True)
def test_kill_nine_in_the_middle_of_saving(
    nursery: Nursery, study: optuna.Study, tmp_path: Path
) -> None:
    """Whenever it comes, what the trial names is whole, of one step, and not lost later."""
    rng = random.Random(0)
    store = CheckpointStore(tmp_path / "kept", grace=0)
    last = 0
    halves = 0
    for number in range(6):
        worker = nursery.start("save")
        deadline = time.monotonic() + 60
        while len(study.trials) <= number or _step(study, number) <= last:
            assert is_alive(worker)
            assert time.monotonic() < deadline
        if number % 3 == 2:
            time.sleep(rng.uniform(0, 0.05))
        else:  # as soon as a file is begun
            while not [*(tmp_path / "kept").glob("*.tmp")]:
                assert time.monotonic() < deadline
        os.kill(worker, signal.SIGKILL)
        while is_alive(worker):
            pass
        halves += len([*(tmp_path / "kept").glob("*.tmp")])
        trial = study.trials[number]
        model = nn.Linear(1000, 1000)
        step = store.load(trial, model=model)  # the newest one, none before it
        for parameter in model.parameters():
            assert torch.equal(parameter, torch.full_like(parameter, step))
        assert step > last
        last = step
        study.tell(number, state=TrialState.FAIL)
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                user_attrs=trial.user_attrs,
                system_attrs={"retry_history": [*range(number + 1)]},
            )
        )
    assert halves > 0  # the moment was right at least once
    store.collect(study)
    assert len([*(tmp_path / "kept").iterdir()]) <= 2


def _step(study: optuna.Study, number: int) -> int:
    checkpoint = Checkpoint.of(study.trials[number])
    return 0 if checkpoint is None else checkpoint.step


@pytest.mark.slow
@pytest.mark.parametrize("nursery", [1.0], indirect=True)
def test_two_workers_read_while_a_third_collects(
    nursery: Nursery, study: optuna.Study, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path / "kept", grace=1)
    trial = study.ask()
    store.resume(trial, model=nn.Linear(10, 10)).save(1)
    study.tell(trial, 0.0)
    collector = nursery.start("collect")
    readers = [nursery.start("read") for _ in range(2)]
    deadline = time.monotonic() + 200
    while any(is_alive(reader) for reader in readers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [t.state for t in study.trials].count(TrialState.COMPLETE) == 25
    assert is_alive(collector)
    late = [t.state for t in study.trials].count(TrialState.FAIL)  # kept for their retries
    while len([*(tmp_path / "kept").iterdir()]) > 1 + 2 * late:  # the best one's is left
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert store.load(study.best_trial, model=nn.Linear(10, 10)) == -study.best_value
