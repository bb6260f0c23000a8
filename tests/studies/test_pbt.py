"""Populations from the command line, on real networks, and the figure of one."""

from __future__ import annotations

from collections import Counter
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import pytest

from optuna_ext import open_storage
from optuna_ext.lineage import lineage
from studies import pbt
from studies._family_tree import family_tree


SMALL = ["digits", "--population", "3", "--interval", "1", "--seed", "0", "--device", "cpu"]
OWN = """
from optuna.distributions import FloatDistribution

SPACE = {"x": FloatDistribution(0.0, 1.0)}


def objective(trial, *, interval=1, checkpoints=None):
    return trial.suggest_float("x", 0.0, 1.0)


def forgetful(trial, *, interval=1):
    return trial.suggest_float("x", 0.0, 1.0)
"""


@pytest.fixture(autouse=True)
def own(folder: Path) -> None:
    (folder / "own.py").write_text(OWN)


def load(name: str = "digits-pbt", storage: str = "runs/digits.db") -> Study:
    return optuna.load_study(study_name=name, storage=open_storage(storage))


def fates(study: Study) -> list[tuple[Any, ...]]:
    places = {  # whoever was killed before it had one left nothing behind
        t.number: (t.user_attrs["generation"], t.user_attrs["member"])
        for t in study.trials
        if {"generation", "member"} <= t.user_attrs.keys()
    }
    return sorted(
        (places[t.number], places.get(t.user_attrs.get("parent", -1)), t.params, t.value)
        for t in study.trials
        if t.state == TrialState.COMPLETE
    )


def test_a_population_of_digits_grows_from_run_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert pbt.main([*SMALL, "--generations", "2"]) == 0
    out = capsys.readouterr().out
    assert "Family tree: runs/digits-pbt-family-tree.html" in out
    assert "sha256" not in out  # nobody needs it among the results
    page = Path("runs/digits-pbt-family-tree.html").read_text(encoding="utf-8")
    assert "lineage of the best" in page
    assert len(list(Path("runs/digits-pbt-checkpoints").iterdir())) > 1

    assert pbt.main([*SMALL, "--generations", "2"]) == 0
    assert "give it more with --generations" in capsys.readouterr().err
    assert pbt.main([*SMALL, "--generations", "4", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["trials"]["complete"] == 12
    study = load()
    for trial in study.trials:
        assert list(trial.intermediate_values) == [trial.user_attrs["generation"] + 1]
        units = {t.params["units_0"] for t in study.trials if t.number in _ancestors(study, trial)}
        assert units == {trial.params["units_0"]}  # it stays with the weights
    values = [trial.value or 0.0 for trial in study.trials]
    assert sum(values[-3:]) > sum(values[:3])


def _ancestors(study: Study, trial: FrozenTrial) -> set[int]:
    return {part.trial for part in lineage(study, trial)}


def test_one_program_trains_the_whole_population(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SMALL, "--fused", "--no-figure"]
    assert pbt.main([*flags, "--generations", "2"]) == 0
    assert pbt.main([*flags, "--generations", "4"]) == 0
    assert "model steps/s" in capsys.readouterr().err
    study = load()
    assert len(study.trials) == 12
    for trial in study.trials:
        steps = trial.user_attrs["generation"] + 1
        assert list(trial.intermediate_values) == [steps]
        assert [part.steps for part in lineage(study, trial)] == [
            range(step, step + 1) for step in range(1, steps + 1)
        ]
    # What they have kept lets the others go on.
    assert pbt.main([*SMALL, "--no-figure", "--generations", "5"]) == 0
    for trial in load().trials[12:]:
        assert trial.user_attrs["resumed"] == {"trial": trial.user_attrs["parent"], "step": 4}


def test_one_program_goes_on_with_who_was_trained_one_by_one() -> None:
    flags = [*SMALL, "--no-figure"]
    assert pbt.main([*flags, "--generations", "1"]) == 0
    assert pbt.main([*flags, "--generations", "2", "--fused"]) == 0
    heirs = load().trials[3:]
    assert [list(trial.intermediate_values) for trial in heirs] == [[2]] * 3
    for trial in heirs:
        assert trial.user_attrs["resumed"] == {"trial": trial.user_attrs["parent"], "step": 1}


def test_workers_train_the_same_population() -> None:
    flags = [*SMALL, "--generations", "3", "--no-figure"]
    assert pbt.main([*flags, "--study", "one"]) == 0
    assert pbt.main([*flags, "--study", "two", "--workers", "2"]) == 0
    assert fates(load("one")) == fates(load("two"))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_a_killed_population_goes_on_as_if_nothing_had_happened() -> None:
    flags = [*SMALL, "--generations", "4", "--no-figure"]
    process = subprocess.Popen(
        [sys.executable, "-m", "studies.pbt", *flags, "--study", "killed"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if Path("runs/digits.db").exists():
            names = optuna.get_all_study_names(open_storage("runs/digits.db"))
            if "killed" in names and len(load("killed").trials) > 4:
                break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert pbt.main([*flags, "--study", "killed"]) == 0
    assert pbt.main([*flags, "--study", "whole"]) == 0
    killed, whole = load("killed"), load("whole")
    assert Counter(t.state for t in killed.trials)[TrialState.COMPLETE] == 12
    assert fates(killed) == fates(whole)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*SMALL, "--population", "4"], "has a population of 3, not 4: choose another name"),
        ([*SMALL, "--interval", "2"], "was made with interval=1, not 2"),
        ([*SMALL, "--sampler", "sobl"], "did you mean 'sobol'?"),
        ([*SMALL, "--sampler-arg", "resample_probability=2"], "must be in [0, 1], but got 2"),
        ([*SMALL, "--exploit", "best"], "--exploit"),
        (["own.py:objective", "--fused"], "--fused needs one of boundaries, digits, fashion"),
        (["own.py:forgetful"], "objective 'own-forgetful' must take the argument 'checkpoints'"),
        (["own.py:none"], "unknown function 'none'"),
        (["digts"], "unknown objective 'digts': did you mean 'digits'?"),
        ([*SMALL, "--architecture", "unit_0"], "did you mean 'units_0'? choose from"),
        (["boundaries", "--arg", "dataset=9"], "dataset must be 1, 2 or 3"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    study = optuna.create_study(
        study_name="digits-pbt", storage=open_storage("runs/digits.db"), direction="maximize"
    )
    study.set_user_attr("objective", "digits")
    study.set_user_attr("arguments", {"interval": 1, "seed": 0, "epochs": 20, "amp": False})
    for number in range(6):
        trial = study.ask()
        trial.set_user_attr("member", number % 3)
        trial.set_user_attr("generation", number // 3)
        study.tell(trial, 0.5)
    assert pbt.main([*arguments, "--no-figure"]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert len(study.trials) == 6


def population() -> Study:
    """Two generations of three: the third member takes over the first, the second fails."""
    study = optuna.create_study(study_name="tiny")
    space = {
        "lr": FloatDistribution(1e-3, 1.0, log=True),
        "wd": FloatDistribution(0.0, 1.0),
        "kind": CategoricalDistribution(["a", "b"]),
    }
    rows: list[tuple[int | None, dict[str, Any], float | None]] = [
        (None, {"lr": 0.1, "wd": 0.5, "kind": "a"}, 1.0),
        (None, {"lr": 0.2, "wd": 0.5, "kind": "a"}, 2.0),
        (None, {"lr": 0.3, "wd": 0.5, "kind": "a"}, 3.0),
        (0, {"lr": 0.1, "wd": 0.5, "kind": "a"}, 0.9),
        (1, {"lr": 0.2, "wd": 0.5, "kind": "a"}, None),
        (0, {"lr": 0.08, "wd": 0.5, "kind": "b"}, 0.8),
    ]
    for number, (parent, params, value) in enumerate(rows):
        attrs: dict[str, Any] = {"member": number % 3, "generation": number // 3}
        if parent is not None:
            attrs |= {"parent": parent, "resumed": {"trial": parent, "step": 10}}
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions=space,
                value=value,
                state=TrialState.FAIL if value is None else TrialState.COMPLETE,
                user_attrs=attrs,
                intermediate_values={10 + 10 * (number // 3): value or 0.0},
            )
        )
    return study


def test_a_family_tree_shows_who_took_over_whom() -> None:
    figure = family_tree(population())
    assert figure is not None
    traces = {trace.name: trace for trace in figure.data if trace.name}
    assert list(traces["goes on"].y) == [0, 0, None, 1, 1, None]
    assert traces["takes over another's weights"].x == ()
    best = traces["lineage of the best"]
    assert list(best.x) == [10, 20, None]
    assert list(best.y) == [0, 2, None]
    done = next(trace for trace in figure.data if trace.mode == "markers")
    assert list(done.x) == [10, 10, 10, 20, 20]
    assert list(done.marker.color) == [1.0, 2.0, 3.0, 0.9, 0.8]
    assert "member 2, generation 1: 0.8" in done.text[4]
    assert (list(traces["lost"].x), list(traces["lost"].y)) == ([20], [1])


def test_a_family_tree_shows_the_schedules_that_changed() -> None:
    figure = family_tree(population())
    assert figure is not None
    titles = [axis.title.text for axis in figure.select_yaxes()]
    assert titles == ["member", "lr", "kind"]  # wd never changed
    assert [axis.type for axis in figure.select_yaxes()][1] == "log"
    bold = [trace for trace in figure.data if trace.mode == "lines" and not trace.name][-2:]
    assert list(bold[0].x) == [0, 10, 20]
    assert list(bold[0].y) == [0.1, 0.08, 0.08]
    assert list(bold[1].y) == ["a", "b", "b"]


def test_without_a_population_there_is_no_family_tree() -> None:
    assert family_tree(optuna.create_study()) is None
