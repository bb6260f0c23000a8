from __future__ import annotations

import json
from pathlib import Path
import signal

import optuna
import pytest
from typer.testing import CliRunner

from studies import bench_storage
from studies.bench_storage import app


def test_json(tmp_path: Path) -> None:
    arguments = ["--trials", "2", "--rounds", "2", "--directory", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    theirs, ours = answer["seconds_per_trial"].values()
    assert answer["speedup"] == [a / b for a, b in zip(theirs, ours, strict=True)]
    assert len(ours) == 2
    assert min(theirs + ours) > 0
    assert list(tmp_path.iterdir()) == []


def test_table(tmp_path: Path) -> None:
    arguments = ["--trials", "1", "--rounds", "1", "--directory", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert 'storage=sqlite("study.db")' in result.stdout


def test_missing_directory(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--directory", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_ctrl_c_ends_it_in_one_line_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def objective(trial: optuna.Trial) -> float:
        if trial.number == 3:
            signal.raise_signal(signal.SIGINT)
        return trial.suggest_float("x", 0, 1)

    monkeypatch.setattr(bench_storage, "_objective", objective)
    result = CliRunner().invoke(app, ["--directory", str(tmp_path)])
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted\n"
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
