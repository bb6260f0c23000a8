"""Signals, kills and several processes: the sum of the trials is exact all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import psutil
import pytest
import typer
from typer.testing import CliRunner

from studies._errors import SentenceCommand
from studies._interrupt import Interrupt


if TYPE_CHECKING:
    from tests.studies.conftest import Toy


def _is_at_work(trial: FrozenTrial) -> bool:
    """Whether it has begun, has its process's name, and has stored its parameter."""
    return (
        trial.state == TrialState.RUNNING and "process" in trial.user_attrs and "x" in trial.params
    )


def _is_running(trials: list[FrozenTrial]) -> bool:
    return any(_is_at_work(trial) for trial in trials)


def _has_one_done_and_one_running(trials: list[FrozenTrial]) -> bool:
    return any(t.state == TrialState.COMPLETE for t in trials) and _is_running(trials)


def _processes(trials: list[FrozenTrial]) -> set[str]:
    """Name the processes that have taken a trial."""
    return {t.user_attrs["process"] for t in trials if "process" in t.user_attrs}


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(process.pid).children()
    return children


def test_ctrl_c_among_the_imports_is_silent(toy: Toy) -> None:
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(600)\n"
    (toy.folder / "optuna.py").write_text(code)
    process = toy.start()
    out, err = process.communicate()
    assert (out, err) == ("", "")
    assert process.returncode == -signal.SIGINT


def test_ctrl_c_is_left_to_those_who_only_import_the_studies() -> None:
    code = "import signal, studies; print(signal.getsignal(signal.SIGINT).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, **_path()},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "default_int_handler\n"


def test_ctrl_c_in_a_command_that_does_not_listen_is_one_line() -> None:
    app = typer.Typer(add_completion=False)

    @app.command(cls=SentenceCommand)
    def wait() -> None:
        raise KeyboardInterrupt

    result = CliRunner().invoke(app, [])
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted\n"


def test_a_signal_that_python_drops_is_raised_again(capsys: pytest.CaptureFixture[str]) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def trial() -> None:
        with interrupt.raising():
            Finalized()
            time.sleep(600)

    interrupt = Interrupt()
    with interrupt.listening(), pytest.raises(KeyboardInterrupt):
        trial()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_study_in_order(toy: Toy, number: signal.Signals, code: int) -> None:
    command = ("--trials", 5, "--arg", "hang_from=1")
    process = toy.start(*command)
    toy.wait_for(_has_one_done_and_one_running)
    os.killpg(process.pid, number)
    out, err = process.communicate()
    assert process.returncode == code
    assert "Best trial" in out
    assert "failed: interrupted" in err
    assert "Traceback" not in err
    assert toy.states()["FAIL"] == 1
    assert "RUNNING" not in toy.states()
    toy.let_go()
    assert toy.start(*command).wait() == 0
    assert toy.states() == {"COMPLETE": 4, "FAIL": 1}


def test_a_closed_terminal_ends_the_study_in_order(toy: Toy) -> None:
    """Nothing can be written to it any more."""
    terminal, screen = os.openpty()
    process = toy.start("--trials", 5, "--arg", "hang_from=1", output=screen)
    os.close(screen)
    toy.wait_for(_has_one_done_and_one_running)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    process.wait()
    assert process.returncode == 128 + signal.SIGHUP
    assert toy.states()["FAIL"] == 1
    assert "RUNNING" not in toy.states()


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt().listening() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_killed_study_goes_on_to_its_total(toy: Toy) -> None:
    command = ("--trials", 5, "--arg", "hang_from=1")
    process = toy.start(*command)
    toy.wait_for(_has_one_done_and_one_running)
    process.kill()
    process.wait()
    assert toy.states()["RUNNING"] == 1
    toy.let_go()
    assert toy.start(*command).wait() == 0
    assert toy.states() == {"COMPLETE": 4, "FAIL": 1}
    (failed,) = (t for t in toy.trials() if t.state == TrialState.FAIL)
    assert failed.user_attrs["reason"] == "its process was killed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_with_retries_the_same_command_loses_no_trial(toy: Toy, number: signal.Signals) -> None:
    command = ("--trials", 5, "--arg", "hang_from=1", "--retries", 1)
    process = toy.start(*command)
    cut = toy.wait_for(_has_one_done_and_one_running)[-1]
    process.send_signal(number)
    process.wait()
    toy.let_go()
    assert toy.start(*command).wait() == 0
    assert toy.states() == {"COMPLETE": 5, "FAIL": 1}
    (repeated,) = (t for t in toy.trials() if t.system_attrs.get("failed_trial") == cut.number)
    assert repeated.params == toy.trials()[cut.number].params
    assert len({t.params["x"] for t in toy.trials()}) == 5
    assert toy.start(*command).wait() == 0  # it has its total
    assert len(toy.trials()) == 6


def test_a_process_killed_before_it_signs_its_trial_leaves_no_orphan(toy: Toy) -> None:
    code = """if True:
        import os

        import optuna

        from optuna_ext import open_storage
        from studies._tickets import Tickets

        storage = open_storage("toy.db")
        study = optuna.create_study(storage=storage, study_name="toy", direction="maximize")
        assert Tickets(study, storage, location="toy.db", total=3).take()
        study.ask()
        os._exit(1)
    """
    subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, **_path()})
    assert toy.states() == {"RUNNING": 1}
    assert toy.start("--trials", 3).wait() == 0
    assert toy.states() == {"COMPLETE": 2, "FAIL": 1}


def _path() -> dict[str, str]:
    import studies

    return {"PYTHONPATH": os.path.dirname(os.path.dirname(str(studies.__file__)))}


def test_two_terminals_share_one_total(toy: Toy) -> None:
    command = ("--trials", 101, "--arg", "hang_from=0")
    both = [toy.start(*command) for _ in range(2)]
    toy.wait_for(lambda trials: len(_processes(trials)) == 2)
    toy.let_go()
    assert [process.wait() for process in both] == [0, 0]
    assert toy.states() == {"COMPLETE": 101}
    assert len({t.params["x"] for t in toy.trials()}) == 101
    assert len(_processes(toy.trials())) == 2


def test_a_killed_worker_is_started_again(toy: Toy) -> None:
    process = toy.start("--trials", 16, "--workers", 2, "--arg", "hang_from=1", "--json")
    trials = toy.wait_for(_has_one_done_and_one_running)
    pid = int(next(t for t in trials if _is_at_work(t)).user_attrs["process"].split()[1])
    os.kill(pid, signal.SIGKILL)
    toy.wait_for(lambda trials: len(_processes(trials)) == 3)
    toy.let_go()
    out, err = process.communicate()
    assert process.returncode == 0
    assert "was killed by SIGKILL: starting it again" in err
    assert toy.states() == {"COMPLETE": 15, "FAIL": 1}
    assert json.loads(out)["trials"]["complete"] == 15
    assert len({t.params["x"] for t in toy.trials()}) == 16
    assert len(_processes(toy.trials())) == 3


def test_workers_that_keep_dying_are_given_up(toy: Toy) -> None:
    process = toy.start("--trials", 30, "--workers", 2, function="kills_its_process")
    _, err = process.communicate()
    assert process.returncode == 1
    assert toy.states() == {"FAIL": 8}
    assert err.count("starting it again") == 6
    assert err.count("too often, and is not started again") == 2
    assert "Traceback" not in err


def test_ctrl_c_ends_all_workers(toy: Toy) -> None:
    process = toy.start("--trials", 30, "--workers", 2, "--arg", "hang_from=1")
    toy.wait_for(_has_one_done_and_one_running)
    workers = _workers(process)
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "Best trial" in out
    assert "Traceback" not in err
    assert not any(worker.is_running() for worker in workers)
    assert "RUNNING" not in toy.states()


def test_a_comparison_does_not_wait_for_its_workers(toy: Toy) -> None:
    (toy.folder / "slow.py").write_text(
        "import pathlib, time\n"
        "def objective(trial):\n"
        "    pathlib.Path('begun').touch()\n"
        "    time.sleep(600)\n"
        "    return trial.suggest_float('x', 0, 1)\n"
    )
    command = "--on slow.py:objective --sampler random --seeds 2 --trials 1 --at 1 --workers 2"
    process = subprocess.Popen(
        [sys.executable, "-m", "studies.compare", *command.split()],
        cwd=toy.folder,
        env={**os.environ, **_path()},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (toy.folder / "begun").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == "error: interrupted\n"


def test_workers_end_with_their_parent(toy: Toy) -> None:
    process = toy.start("--trials", 30, "--workers", 2, "--arg", "hang_from=1")
    toy.wait_for(_has_one_done_and_one_running)
    workers = _workers(process)
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert not alive
    assert "RUNNING" not in toy.states()
    done = len(toy.trials())
    time.sleep(1)
    assert len(toy.trials()) == done
