"""The comparisons of population-based training, in the smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from studies._pbt_quality import Budget
from studies._pbt_quality import CASES
from studies._pbt_quality import METHODS
from studies._pbt_quality import run_one
from studies._pbt_speed import Member
from studies._pbt_speed import Setting
from studies.compare_pbt import app


def _compare(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("method", METHODS)
def test_every_search_spends_its_steps(method: str) -> None:
    outcome = run_one(method, CASES[0], Budget(members=3, intervals=5), seed=1)
    whole = 3 * 350
    # Halving ends with the training under way, and not before it has finished one.
    assert whole <= outcome.steps < whole + (350 if method == "sobol + halving" else 1)
    assert 0.3 < outcome.test <= 1.0
    assert outcome.spread >= 1.0
    assert outcome == run_one(method, CASES[0], Budget(members=3, intervals=5), seed=1)


def test_quality_has_a_row_per_case() -> None:
    flags = ["--seeds", "1", "--members", "2", "--intervals", "2", "--method", "pbt"]
    output = _compare("quality", *flags)
    assert output.count("three-layer") == 3
    outcomes = json.loads(_compare("quality", *flags, "--json"))
    assert [outcome["case"]["dataset"] for outcome in outcomes] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["quality", "--method", "pbtt"], "did you mean 'pbt'?"),
        (["speed", "--without", "Ray"], "did you mean 'Ray Tune'?"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        app(arguments)
    assert error.value.code == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.data
def test_speed_has_a_row_per_contestant(real_data: Path) -> None:
    flags = ["--seeds", "1", "--members", "2", "--intervals", "2", "--steps", "1"]
    flags += ["--without", "Ray Tune", "--data-dir", str(real_data)]
    output = _compare("speed", *flags)
    for name in ("plain loop", "study in memory", "study on disk", "study in bulk"):
        assert name in output
    timings = json.loads(_compare("speed", *flags, "--json"))
    assert all(timing["intervals_per_second"] > 0 for timing in timings)
    assert all(timing["cpu_per_interval"] > 0 for timing in timings)


@pytest.mark.data
def test_a_restored_member_goes_on_alike(real_data: Path) -> None:
    """All contestants train alike, so what they copy must be everything."""
    setting = Setting(members=2, intervals=1, steps=2, images=500, workers=1, data_dir=real_data)
    one, other = Member(setting, 0), Member(setting, 1)
    one.train()
    other.restore(one.state())
    assert one.train() == other.train()
