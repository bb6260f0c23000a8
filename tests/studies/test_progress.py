from __future__ import annotations

import io

import optuna
from optuna.trial import TrialState
from rich.console import Console

from studies._progress import best_so_far
from studies._progress import StudyProgress


def _tell(study: optuna.Study, value: float | None, *, reason: str | None = None) -> None:
    trial = study.ask()
    if reason is not None:
        trial.set_user_attr("reason", reason)
    study.tell(trial, value, state=TrialState.FAIL if value is None else None)


def test_where_there_is_no_terminal_plain_lines_tell_the_state() -> None:
    study = optuna.create_study(direction="maximize", study_name="s")
    _tell(study, 0.25)
    out = io.StringIO()
    with StudyProgress(study, total=4, console=Console(file=out, width=20)) as progress:
        _tell(study, 0.75)
        _tell(study, None, reason="out of memory")
        study.ask()
        progress.update()
        assert out.getvalue() == "trial 2 failed: out of memory\n"
    last = out.getvalue().splitlines()[-1]
    assert last.startswith("3/4 trials  best 0.75 (trial 1)  ")
    assert "s left" in last
    assert last.endswith("2 complete, 1 fail, 1 running")
    assert progress.n_new == 2
    assert [trial.number for trial in progress.failures] == [2]


def test_a_terminal_shows_a_bar() -> None:
    study = optuna.create_study(study_name="of-clothes")
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with StudyProgress(study, total=2, console=console):
        _tell(study, 0.5)
        _tell(study, 0.125)
    shown = out.getvalue()
    assert "of-clothes" in shown
    assert "━" in shown
    assert "2/2" in shown
    assert "best 0.125 (trial 1)" in shown
    assert "done" in shown


def test_the_best_value_follows_the_direction_and_ignores_pruned_trials() -> None:
    study = optuna.create_study(direction="minimize")
    assert best_so_far(study, study.trials) is None
    _tell(study, 2.0)
    _tell(study, 1.0)
    pruned = study.ask()
    pruned.report(0.0, 1)
    study.tell(pruned, state=TrialState.PRUNED)
    assert best_so_far(study, study.trials) == "best 1 (trial 1)"


def test_several_objectives_have_no_single_best() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    trial = study.ask()
    study.tell(trial, [0.0, 1.0])
    assert best_so_far(study, study.trials) is None
