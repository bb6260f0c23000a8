"""Studies in this process: what they write and say."""

from __future__ import annotations

from itertools import chain
from itertools import repeat
import json
import math
from pathlib import Path
import re
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import optuna
import pytest

from studies import _runner
from studies import run


if TYPE_CHECKING:
    from tests.studies.conftest import Toy


def _main(toy: Toy, *arguments: object, function: str = "objective") -> int:
    return run.main(toy.arguments(*arguments, function=function))


def test_the_same_command_goes_on_to_the_same_total(toy: Toy) -> None:
    assert _main(toy, "--trials", 3) == 0
    assert _main(toy, "--trials", 7) == 0
    assert toy.states() == {"COMPLETE": 7}
    assert _main(toy, "--trials", 7) == 0
    assert toy.states() == {"COMPLETE": 7}


def test_resuming_continues_the_design(toy: Toy) -> None:
    _main(toy, "--trials", 3)
    _main(toy, "--trials", 8)
    resumed = [t.params for t in toy.trials()]
    toy.database.unlink()
    _main(toy, "--trials", 8)
    assert resumed == [t.params for t in toy.trials()]


def test_a_finite_design_keeps_its_size_when_the_study_grows(toy: Toy) -> None:
    _main(toy, "--sampler", "lhs", "--trials", 4)
    _main(toy, "--sampler", "lhs", "--trials", 8)
    x = [t.params["x"] for t in toy.trials()]
    assert sorted(int(4 * value) for value in x[:4]) == [0, 1, 2, 3]
    assert sorted(int(4 * value) for value in x[4:]) == [0, 1, 2, 3]


def test_a_resumed_random_search_does_not_repeat_its_points(toy: Toy) -> None:
    for total in (4, 8):
        _main(toy, "--sampler", "random", "--seed", 5, "--trials", total)
    assert len({t.params["x"] for t in toy.trials()}) == 8


def test_the_users_points_come_first_and_once(toy: Toy) -> None:
    arguments = ["--param", "x=0.125", "--param", "kind=flat", "--defaults"]
    assert _main(toy, *arguments, "--trials", 3) == 0
    assert _main(toy, *arguments, "--trials", 5) == 0
    params = [t.params for t in toy.trials()]
    assert params[:2] == [{"x": 0.125, "kind": "flat"}, {"x": 0.5, "kind": "flat"}]
    assert params.count(params[0]) == params.count(params[1]) == 1
    assert toy.states() == {"COMPLETE": 5}


def test_a_complete_study_takes_no_more_points(toy: Toy) -> None:
    _main(toy, "--trials", 2)
    assert _main(toy, "--param", "x=0.125", "--trials", 2) == 0
    assert toy.states() == {"COMPLETE": 2}


def test_json_is_all_there_is_on_stdout(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    assert _main(toy, "--json", "--trials", 12, function="talks") == 0
    captured = capfd.readouterr()
    summary = json.loads(captured.out)
    assert captured.err.count("talk of the objective") == 12
    best = max(toy.trials(), key=lambda t: t.value or 0.0)
    assert summary["best"]["values"] == [best.value]
    assert summary["best"]["params"] == best.params
    assert summary["trials"]["complete"] == 12
    assert len(summary["top"]) == 5
    assert summary["dashboard"].endswith("optuna-dashboard sqlite:///toy.db")


def test_json_stays_strict_when_values_are_infinite(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(toy, "--json", "--trials", 2, function="explodes") == 0
    out = capsys.readouterr().out
    summary = json.loads(out, parse_constant=pytest.fail)
    assert summary["best"]["values"] == [None]
    assert summary["best"]["user_attrs"] == {"loss": None}


def test_the_summary_says_what_was_found(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(toy, "--trials", 16) == 0
    out = capsys.readouterr().out
    best = max(toy.trials(), key=lambda t: t.value or 0.0)
    assert f"Best trial {best.number}: {best.value:.6g}" in out
    assert "Importance of the parameters" in out
    assert "optuna-dashboard sqlite:///toy.db" in out


def test_the_command_of_the_dashboard_works_without_activation(
    toy: Toy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    programs = toy.folder / "my env" / "bin"
    programs.mkdir(parents=True)
    for program in ("python", "optuna-dashboard"):
        (programs / program).touch()
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    assert _main(toy, "--trials", 1) == 0
    assert "'my env/bin/optuna-dashboard' sqlite:///toy.db" in capsys.readouterr().out


def test_the_figure_shows_history_and_slices_without_internet(toy: Toy) -> None:
    arguments = [a for a in toy.arguments("--trials", 3) if a != "--no-figure"]
    assert run.main([*arguments, "--figure", "out/figure.html"]) == 0
    html = Path("out/figure.html").read_text(encoding="utf-8")
    assert "Optimization History Plot" in html
    assert "Slice Plot" in html
    assert not re.search(r"<(script|link)[^>]*(src|href)=", html)


def test_a_figure_that_fails_at_last_does_not_hide_the_summary(
    toy: Toy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    shown = [argument for argument in toy.arguments("--trials", 2) if argument != "--no-figure"]
    assert run.main(shown) == 0
    captured = capsys.readouterr()
    assert "Best trial" in captured.out
    assert "Figure:" not in captured.out
    assert "warning: no figure: [Errno 28] No space left on device\n" in captured.err


@pytest.mark.parametrize(
    ("storage", "study", "name"),
    [
        ("toy.db", "toy", "toy.html"),
        ("toy.db", "toy-steep", "toy-steep.html"),
        ("other.db", "toy", "other-toy.html"),
        ("toy.db", "toy" + 300 * "x", f"toy-toy{53 * 'x'}.html"),
    ],
)
def test_figures_of_two_storages_have_two_names(
    toy: Toy, storage: str, study: str, name: str
) -> None:
    arguments = ["toy.py:objective", "--storage", storage, "--study", study, "--trials", "1"]
    assert run.main(arguments) == 0
    assert [path.name for path in Path().glob("*.html")] == [name]


def test_the_title_of_a_figure_is_text(toy: Toy) -> None:
    arguments = ["toy.py:objective", "--storage", "toy.db", "--study", "<b>&", "--trials", "1"]
    assert run.main([*arguments, "--figure", "figure.html"]) == 0
    html = Path("figure.html").read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;&amp;</title>" in html


def test_several_values_give_a_pareto_front(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--direction", "minimize", "--direction", "maximize", "--trials", "4"]
    shown = [a for a in toy.arguments(*arguments, function="two_values") if a != "--no-figure"]
    assert run.main([*shown, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["directions"] == ["minimize", "maximize"]
    # minimize x and maximize 1 - x: one trial is best in both
    assert [entry["params"]["x"] for entry in summary["pareto"]] == [
        min(t.params["x"] for t in toy.trials())
    ]
    assert Path(summary["figure"]).exists()


def test_a_failing_trial_is_one_line_and_the_study_goes_on(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(toy, "--trials", 4, function="sometimes_fails") == 0
    assert toy.states() == {"COMPLETE": 2, "FAIL": 2}
    err = capsys.readouterr().err
    assert "trial 1 failed: RuntimeError: odd\n" in err
    assert "Traceback" not in err


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_and_said_once(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(toy, "--trials", 3, function="warns") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "careful" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: ")
    assert lines[0].endswith("careful in trial 0")


def test_when_every_trial_fails_the_exit_code_is_1(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(toy, "--trials", 3, function="fails") == 1
    assert toy.states() == {"FAIL": 3}
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: every trial failed, the last one with RuntimeError: no luck at all"


def test_the_timeout_starts_no_more_trials(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = chain(repeat(0.0, 3), repeat(math.inf))  # three looks in time, and then too late
    monkeypatch.setattr(_runner, "time", SimpleNamespace(time=lambda: next(clock)))
    assert _main(toy, "--trials", 1000, "--timeout", 2) == 0
    assert toy.states() == {"COMPLETE": 3}


def test_a_grid_ends_when_it_is_exhausted(toy: Toy) -> None:
    space = "search_space={'x': [0.0, 0.5], 'kind': ['flat'], 'n': [1]}"
    for _ in range(2):
        assert _main(toy, "--sampler", "grid", "--sampler-arg", space, "--trials", 9) == 0
    assert sorted(t.params["x"] for t in toy.trials()) == [0.0, 0.5]


def test_the_objective_gets_its_arguments(toy: Toy) -> None:
    assert _main(toy, "--trials", 1, "--epochs", 3, "--arg", "pause=0.0") == 0
    (trial,) = toy.trials()
    assert len(trial.intermediate_values) == 3


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("abc", "returned 'abc', not a number"),
        ("None", "returned None, not a number"),
        ("nan", "returned nan"),
        (
            "pair",
            "returned 2 values, but the study has 1 direction: give --direction once per value",
        ),
    ],
)
def test_a_value_that_is_none_fails_its_trial_with_the_reason(
    toy: Toy, capsys: pytest.CaptureFixture[str], what: str, reason: str
) -> None:
    assert _main(toy, "--trials", 1, "--arg", f"what={what}", function="returns") == 1
    (trial,) = toy.trials()
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["reason"] == reason
    assert f"trial 0 failed: {reason}\n" in capsys.readouterr().err


def test_an_objective_that_exits_fails_its_trial_alone(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(toy, "--trials", 2, function="exits") == 1
    assert toy.states() == {"FAIL": 2}
    captured = capsys.readouterr()
    assert "trial 1 failed: SystemExit: enough\n" in captured.err
    assert "No trial is complete yet." in captured.out


def test_running_trials_of_other_programs_are_left_alone(toy: Toy) -> None:
    study = optuna.create_study(
        study_name="toy", storage=f"sqlite:///{toy.database}", direction="maximize"
    )
    trial = study.ask()
    assert _main(toy, "--trials", 3) == 0
    assert toy.states() == {"COMPLETE": 2, "RUNNING": 1}
    study.tell(trial, 0.0)
    assert toy.states() == {"COMPLETE": 3}


def test_the_default_storage_and_name(toy: Toy) -> None:
    assert run.main(["toy.py:objective", "--trials", "1", "--arg", "shape=hill"]) == 0
    names = {path.name for path in Path("runs").iterdir()}
    assert {"toy.db", "toy-hill.html"} <= names


def test_help_names_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--sampler", "--trials", "--workers", "--direction", "--json"):
        assert flag in out
    assert "<bool>" not in out
