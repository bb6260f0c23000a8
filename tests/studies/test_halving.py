"""Halving from the command line, on real networks, and the figure of it."""

from __future__ import annotations

from collections import Counter
import json
from pathlib import Path

import optuna
from optuna.study import Study
from optuna.trial import FixedTrial
from optuna.trial import TrialState
import pytest

from objectives import digits
from optuna_ext import open_storage
from optuna_ext import SuccessiveHalving
from studies import halving
from studies._survival import survival_chart


pytestmark = pytest.mark.usefixtures("folder")

SMALL = ["digits", "--epochs", "4", "--eta", "2", "--min-epochs", "1", "--device", "cpu"]


def load(name: str = "digits-halving") -> Study:
    return optuna.load_study(study_name=name, storage=open_storage("runs/digits.db"))


def test_halving_of_digits(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--synchronous", "--sampler", "sobol", "--seed", "0"]
    assert halving.main([*arguments, "--trials", "5"]) == 0
    out = capsys.readouterr().out
    assert "Survival: runs/digits-halving-survival.html" in out
    assert halving.main([*arguments, "--trials", "7", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["study"] == "digits-halving"
    assert summary["charts"] == {"survival": "runs/digits-halving-survival.html"}

    study = load()
    trials = study.get_trials()
    assert Counter(t.user_attrs["rung"] for t in trials) == {0: 4, 1: 2, 2: 1}
    assert Counter(t.state for t in trials) == {TrialState.PRUNED: 6, TrialState.COMPLETE: 1}
    assert sum(len(t.intermediate_values) for t in trials) == 4 + 2 + 2
    # To pause and go on is the same as never to have paused.
    (winner,) = (t for t in trials if t.state == TrialState.COMPLETE)
    whole = FixedTrial(winner.params)
    assert digits.objective(whole, epochs=4, device="cpu", seed=0) == winner.value


def test_hyperband_and_its_chart() -> None:
    arguments = [*SMALL, "--hyperband", "--sampler", "random", "--seed", "0", "--no-figure"]
    assert halving.main([*arguments, "--trials", "12"]) == 0
    study = load("digits-hyperband")
    figure = survival_chart(study)
    assert figure is not None
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert sum(sum(bar.y) for bar in bars) == 12
    names = {name for bar in bars for name in bar.x}
    assert {"bracket 0, step 1", "bracket 1, step 2", "bracket 2, step 4"} <= names
    curves = [trace for trace in figure.data if trace.type == "scatter"]
    assert len(curves) == sum("parent" not in t.user_attrs for t in study.trials)
    assert not list(Path("runs").glob("*.html"))


def test_no_chart_without_a_rung() -> None:
    pair = SuccessiveHalving(max_resource=9, seed=0)
    study = optuna.create_study(sampler=pair.sampler, pruner=pair.pruner)
    study.ask()
    assert survival_chart(study) is None


def test_the_plan_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["digits", "--plan", "--eta", "2", "--min-epochs", "2", "--epochs", "10"]
    assert halving.main(arguments) == 0
    total = capsys.readouterr().out.splitlines()[-1]
    assert total.split() == ["total", "15", "34", "58"]
    assert halving.main([*arguments, "--sampler-arg", "n_cuts=1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0:2] == ["total", "3"]
    assert halving.main([*arguments, "--sampler-arg", "cuts=1"]) == 2
    assert "unexpected keyword argument 'cuts'" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own.py:objective"], "objective 'own' must take the argument 'checkpoints'"),
        (
            ["digits", "--epochs", "4", "--min-epochs", "5"],
            "--min-epochs 5 must not exceed --epochs 4",
        ),
        (["digit"], "unknown objective 'digit': did you mean 'digits'?"),
        (["digits", "--pruner", "median"], "'halving' brings its own pruner"),
        (["digits", "--storage", "none/s.db"], "the directory none of s.db does not exist"),
        ([*SMALL, "--slots", "4"], "--slots needs --fused"),
    ],
)
def test_what_cannot_be_done(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text("def objective(trial, *, epochs=1):\n    return 0.0\n")
    assert halving.main(arguments) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in Path().iterdir() if path.suffix != ".py"] == []


def test_a_broken_objective_fails_its_trials(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it breaks before its first parameter."""
    Path("own.py").write_text(
        "def objective(trial, *, epochs=1, checkpoints=None):\n    raise RuntimeError('no luck')\n"
    )
    flags = ["--sampler", "random", "--trials", "2", "--no-figure"]
    assert halving.main(["own.py:objective", *flags]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: every trial failed, the last one with RuntimeError: no luck"
