"""Workers on a real Ray cluster of this machine alone."""

from __future__ import annotations

from collections.abc import Iterator
import os
import signal
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import pytest

from studies import _ray
from studies import run


if TYPE_CHECKING:
    from tests.studies.conftest import Toy

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster with two processors and, as far as Ray is told, a GPU."""
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 80_000_000}
    started = Cluster(initialize_head=True, head_node_args=resources)
    yield started.address
    started.shutdown()


def _is_running(trials: list[FrozenTrial]) -> bool:
    done = any(t.state == TrialState.COMPLETE for t in trials)
    return done and any(
        t.state == TrialState.RUNNING and "process" in t.user_attrs for t in trials
    )


def test_workers_are_tasks_of_the_cluster(cluster: str, toy: Toy) -> None:
    process = toy.start("--trials", 12, "--arg", "pause=0.3", "--workers", 2, "--ray", cluster)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert toy.states() == {"COMPLETE": 12}
    workers = {t.user_attrs["process"] for t in toy.trials()}
    assert len(workers) == 2
    assert not any(int(worker.split()[1]) == process.pid for worker in workers)


def test_a_killed_worker_is_started_again_and_loses_nothing(cluster: str, toy: Toy) -> None:
    command = ("--trials", 8, "--arg", "hang_from=1", "--workers", 2, "--retries", 1)
    process = toy.start(*command, "--ray", cluster)
    trials = toy.wait_for(_is_running)
    victim = next(t for t in trials if t.state == TrialState.RUNNING).user_attrs["process"]
    os.kill(int(victim.split()[1]), signal.SIGKILL)
    toy.let_go()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "starting it again" in errors
    assert toy.states() == {"COMPLETE": 8, "FAIL": 1}


def test_an_interrupt_reaches_the_cluster(cluster: str, toy: Toy) -> None:
    process = toy.start("--trials", 8, "--arg", "hang_from=1", "--ray", cluster, "--retries", 1)
    toy.wait_for(_is_running)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Best trial" in out
    assert "RUNNING" not in toy.states()
    assert toy.states()["WAITING"] == 1  # it is the first of the next command


def test_a_gpu_is_given_to_each_worker(cluster: str, toy: Toy) -> None:
    arguments = ("--trials", 2, "--ray", cluster, "--gpus", 0.5)
    process = toy.start(*arguments, function="on_a_gpu")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert [t.user_attrs["seen"] for t in toy.trials()] == [["cuda", "0"]] * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpus", "1"], "--gpus is what Ray gives to each worker: name its cluster with --ray"),
        (["--ray", "auto"], "--ray needs ray: pip install 'optuna-ext[ray]'"),
    ],
)
def test_mistakes(
    toy: Toy,
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_ray, "find_spec", lambda name: None)  # as if it were not installed
    assert run.main(toy.arguments("--trials", 1, *arguments)) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert not (toy.folder / "toy.db").exists()
