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

from objectives.nets import boundary_net
from optuna_ext import CheckpointStore
from optuna_ext.fused import Result
from optuna_ext.fused import Trainer
from optuna_ext.lineage import lineage
from studies import boundaries
from studies import cats
from studies import digits
from studies import halving
from studies import pbt


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


@pytest.mark.parametrize("first", ["together", "one by one"])
def test_a_population_may_switch(first: str) -> None:
    flags = ["boundaries", "--population", "4", "--interval", "1", "--seed", "0", *QUICK[3:]]
    for generations in (2, 4, 6):
        together = (first == "together") == (generations != 4)
        more = ["--fused"] if together else []
        assert pbt.main([*flags, "--generations", str(generations), *more]) == 0
    study = optuna.load_study(study_name="boundaries-pbt", storage="sqlite:///runs/boundaries.db")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 24
    for trial in study.trials:
        steps = [step for part in lineage(study, trial) for step in part.steps]
        assert steps == [*range(1, trial.number // 4 + 2)]
    assert len({trial.user_attrs["member"] for trial in study.trials}) == 4


@pytest.mark.parametrize("first", ["together", "one by one"])
def test_halving_may_switch(first: str) -> None:
    flags = ["boundaries", "--epochs", "4", "--min-epochs", "1", "--seed", "0", *QUICK[3:]]
    for trials in (6, 12, 18):
        together = (first == "together") == (trials != 12)
        more = ["--fused", "--slots", "2"] if together else []
        assert halving.main([*flags, "--trials", str(trials), *more]) == 0
    study = optuna.load_study(
        study_name="boundaries-halving", storage="sqlite:///runs/boundaries.db"
    )
    assert not study.get_trials(states=[TrialState.FAIL, TrialState.RUNNING])
    promoted = [trial for trial in study.trials if "parent" in trial.user_attrs]
    crossed = [t for t in promoted if t.number // 6 > t.user_attrs["parent"] // 6]
    assert crossed
    for trial in promoted:
        parent = study.trials[trial.user_attrs["parent"]]
        assert trial.user_attrs["resumed"] == {"trial": parent.number, "step": parent.last_step}
        assert min(trial.intermediate_values) == (parent.last_step or 0) + 1


def test_the_best_networks_are_kept() -> None:
    flags = [*QUICK, "--net", "logistic", "--study", "boundaries", "--trials", "3"]
    assert boundaries.main([*flags, "--checkpoints", "kept"]) == 0
    best = max(trials("boundaries"), key=lambda trial: trial.value or 0.0)
    states = CheckpointStore("kept").states(best)
    assert states["progress"]["value"] == best.value
    assert {*states["model"]} == {*boundary_net("logistic").state_dict()}


def test_trials_of_an_interrupted_run_are_repeated_one_by_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, epochs = Trainer.step, iter(range(1, 100))

    def stop(trainer: Trainer) -> list[Result]:
        if next(epochs) == 2:
            raise KeyboardInterrupt
        return step(trainer)

    flags = ["--net", "logistic", "--study", "boundaries", "--trials", "4", *QUICK[1:]]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        assert boundaries.main([*flags, "--fused", "--slots", "3"]) == 130
    assert [trial.state for trial in trials("boundaries")] == [TrialState.RUNNING] * 3
    assert boundaries.main(flags) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: study 'boundaries' has 3 trials in training with --fused: go")
    assert boundaries.main([*flags, "--retries", "1"]) == 0
    states = [trial.state for trial in trials("boundaries")]
    assert states == [TrialState.FAIL] * 3 + [TrialState.COMPLETE] * 4
    params = [trial.params for trial in trials("boundaries")]
    assert params[:3] == params[3:6]
    assert boundaries.main([*flags, "--fused", "--trials", "5"]) == 0  # its file is of no use now
    assert [trial.state for trial in trials("boundaries")][7:] == [TrialState.COMPLETE]


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
