"""Studies whose trials train together, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
import signal
import subprocess
import sys

from filelock import FileLock
import optuna
from optuna.trial import TrialState
import pytest

from studies import boundaries
from studies import cats
from studies import digits


QUICK = ["--fused", "--epochs", "2", "--device", "cpu", "--no-figure"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trials(name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=f"sqlite:///runs/{name}.db").trials


def test_the_same_values_as_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trials", "6", "--seed", "0"]
    assert digits.main([*QUICK, *flags, "--slots", "4"]) == 0
    said = capsys.readouterr()
    assert "model steps/s" in said.err
    assert "4 slots of " in said.err
    assert "6/6 trials" in said.err
    assert digits.main([*QUICK[1:], *flags, "--study", "digits-alone"]) == 0
    alone = optuna.load_study(study_name="digits-alone", storage="sqlite:///runs/digits.db")
    for one, two in zip(alone.trials, trials("digits"), strict=True):
        assert one.params == two.params
        assert two.value == pytest.approx(one.value, abs=0.03)  # float32: some of 300 rows
    assert not list(Path("runs").glob("*.pt"))


def test_a_total_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*QUICK, "--net", "logistic", "--study", "boundaries", "--json"]
    assert boundaries.main([*flags, "--trials", "3"]) == 0
    assert boundaries.main([*flags, "--trials", "5", "--sampler", "tpe"]) == 0
    summary = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert summary["trials"]["complete"] == 5
    assert boundaries.main([*flags, "--trials", "5"]) == 0
    assert len(trials("boundaries")) == 5


def test_one_process_per_study(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    flags = [*QUICK, "--net", "logistic", "--study", "boundaries", "--trials", "2"]
    with FileLock("runs/boundaries.fused.pt.lock"):
        assert boundaries.main(flags) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: study 'boundaries' is being trained by another process")
    assert not trials("boundaries")
    assert boundaries.main(flags) == 0
    assert len(trials("boundaries")) == 2


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert boundaries.main([*QUICK, "--dataset", "7"]) == 2
    assert cats.main([*QUICK, "--data-dir", "."]) == 2
    assert cats.main([*QUICK, "--amp"]) == 2
    assert digits.main([*QUICK, "--workers", "2"]) == 2
    assert digits.main(["--slots", "4"]) == 2
    assert digits.main([*QUICK, "--ray", "auto"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 6
    assert errors[3].endswith("--workers must not be given with --fused, whose flag is --slots")
    assert errors[4].endswith("--slots needs --fused")
    assert all(line.startswith("error: ") for line in errors)
    assert not Path("runs").exists()


STALLED = """
import sys, time
from optuna_ext.fused import Trainer
from studies import boundaries

step, epochs = Trainer.step, iter(range(1, 100))


def stall(trainer):
    results = step(trainer)
    if next(epochs) == 3:
        print("in training", flush=True)
        time.sleep(600)
    return results


Trainer.step = stall
sys.exit(boundaries.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ctrl_c_is_clean() -> None:
    flags = [*QUICK, "--study", "boundaries", "--trials", "6", "--slots", "4"]
    flags += ["--net", "logistic", "--epochs", "5"]
    stalled = [sys.executable, "-c", STALLED, *flags]
    for number in (signal.SIGINT, signal.SIGKILL):
        with subprocess.Popen(stalled, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert any(line == b"in training\n" for line in process.stdout)
            process.send_signal(number)
            process.communicate(timeout=120)
        assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
        assert [t.state for t in trials("boundaries")] == [TrialState.RUNNING] * 4
        assert {len(t.intermediate_values) for t in trials("boundaries")} == {2}
    assert boundaries.main(flags) == 0
    assert [t.state for t in trials("boundaries")] == [TrialState.COMPLETE] * 6
    assert {len(t.intermediate_values) for t in trials("boundaries")} == {5}
