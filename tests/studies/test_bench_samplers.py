from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from typer.testing import CliRunner

from optuna_ext.storage import sqlite
from studies.bench_samplers import app
from studies.bench_samplers import fill_files
from studies.bench_samplers import SPACES


def test_costs_are_ratios_to_the_first_sampler() -> None:
    arguments = ["--sampler", "random", "--sampler", "sobol", "--trials", "3,9", "--rounds", "1"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    costs = json.loads(result.stdout)
    assert [(c["storage"], c["space"], c["sampler"]) for c in costs] == [
        (storage, space, sampler)
        for space in SPACES
        for storage in ("memory", "SQLite")
        for sampler in ("random", "sobol")
    ]
    for cost in costs:
        assert list(cost["trial_us"]) == list(cost["ratio"]) == ["3", "9"]
        assert min(cost["trial_us"].values()) > 0
        if cost["sampler"] == "random":
            assert cost["ratio"] == {"3": 1, "9": 1}


def test_designs_cost_no_more_than_random_and_stay_flat() -> None:
    arguments = ["--sampler", "random", "--sampler", "sobol", "--sampler", "qmc"]
    result = CliRunner().invoke(
        app, [*arguments, "--trials", "50,1000", "--rounds", "2", "--no-sqlite", "--json"]
    )
    ratio = {(c["space"], c["sampler"]): c["ratio"] for c in json.loads(result.stdout)}
    for space in SPACES:
        assert ratio[space, "sobol"]["50"] < 1.3
        assert ratio[space, "sobol"]["1000"] < 1.3
        assert ratio[space, "sobol"]["1000"] < ratio[space, "qmc"]["1000"]


def test_table_has_a_row_per_sampler() -> None:
    result = CliRunner().invoke(
        app, ["--sampler", "random", "--trials", "2", "--rounds", "1", "--no-sqlite"]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.count("1.00x") == len(SPACES)


def test_files_hold_the_same_trials_up_to_their_size(tmp_path: Path) -> None:
    trials = []
    for n, file in fill_files(tmp_path, SPACES["mixed"], [2, 5]).items():
        storage = sqlite(file)
        trials.append(optuna.load_study(study_name="bench", storage=storage).trials)
        storage.engine.dispose()
        assert len(trials[-1]) == n
    small, large = trials
    assert [t.params for t in small] == [t.params for t in large[:2]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--trials", "0,3"], "--trials must be at least 1, not 0"),
        (["--trials", "many"], "--trials must be whole numbers"),
        (["--sampler", "sobo"], "did you mean 'sobol'?"),
    ],
)
def test_a_mistake_costs_one_sentence(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_a_sampler_imports_is_not_charged(slow_to_import: str) -> None:
    arguments = ["--sampler", slow_to_import, "--trials", "1", "--rounds", "1"]
    result = CliRunner().invoke(app, [*arguments, "--no-sqlite", "--json"])
    assert max(cost["first_ms"] for cost in json.loads(result.stdout)) < 200  # CPU time, of 400
