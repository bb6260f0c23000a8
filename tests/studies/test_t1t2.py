from __future__ import annotations

import dataclasses
from pathlib import Path

import optuna
import pytest
import torch

import objectives.t1t2
from objectives.t1t2 import hidden_units
from objectives.t1t2 import Splits
from optuna_ext import Schedule
from optuna_ext.online import recorded
from studies import t1t2
from studies._t1t2_experiment import _table
from studies._t1t2_experiment import figure
from studies._t1t2_experiment import Outcome
from studies._t1t2_time import overheads


def make_outcome(seed: int) -> Outcome:
    start = {"l2": 1e-4, "input_noise": 0.1}
    return Outcome(
        n_test=10_000,
        start=start,
        fixed=0.03,
        tuned=0.02 + 0.02 * seed,
        by_schedule=0.02,
        by_constants=0.025,
        schedule=Schedule({1: start, 11: {"l2": 1e-3, "input_noise": 0.2}}, last=20),
        seconds=(10.0, 11.0),
    )


def test_the_experiment_is_told_in_four_panels() -> None:
    outcomes = [make_outcome(0), make_outcome(1)]
    drawn = figure(outcomes, title="MNIST")
    assert [a.text.split(",")[0] for a in drawn.layout.annotations] == [
        "trajectories (dot: end)",
        "test error",
        "test error",
        "CPU seconds per epoch",
    ]
    assert list(drawn.data[0].y) == pytest.approx([-4, -3])
    assert _table(outcomes, title="MNIST").caption == (
        "tuned, worse than its own start: 50%, by two standard errors: 50%; above 5%: 0%; "
        "time of an epoch: +10.0%"
    )


def test_harm_is_told_from_chance() -> None:
    """Of 10,000 images, two counts near 300 differ by 24 in the standard deviation."""
    start = make_outcome(0)
    for tuned, is_worse, surely in [
        (0.02, False, False),
        (0.031, True, False),
        (0.036, True, True),
    ]:
        outcome = dataclasses.replace(start, tuned=tuned)
        assert outcome.is_worse() is is_worse
        assert outcome.is_worse(errors=2) is surely


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--width", "-1"], "width must be positive"),
        (["--overhead", "--width", "-1"], "width must be positive"),
        (["--artifacts", __file__], f"artifacts must be a directory, but {__file__!r} cannot be"),
        (
            ["--artifacts", f"{__file__}/below"],
            f"artifacts must be a directory, but {f'{__file__}/below'!r} cannot be",
        ),
    ],
)
def test_mistakes_in_one_sentence(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert t1t2.main(flags) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert "Errno" not in error


@pytest.mark.parametrize("with_noise", [False, True])
def test_the_overhead_is_measured_in_turns(with_noise: bool) -> None:
    found = overheads(
        "small",
        (8,),
        with_noise=with_noise,
        amp=False,
        device=torch.device("cpu"),
        seconds=1e-9,
        rounds=2,
    )
    cases = []
    for row in found:
        assert row.tuned == ("L2 + noise" if with_noise else "L2")
        assert row.low <= row.median <= row.high
        assert row.median > -1
        cases.append((row.every, row.t2_batch))
    assert cases == [(10, 100), (10, 50), (20, 100), (20, 50)]


@pytest.mark.parametrize("net", ["small", "medium", "large"])
def test_the_experiment_runs_with_every_net(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = torch.rand(200, 784), torch.arange(200) % 10
    splits = Splits(t1=rows, t2=rows, valid=rows, test=rows)
    monkeypatch.setattr(objectives.t1t2, "load_splits", lambda **_: splits)
    monkeypatch.chdir(tmp_path)
    flags = ["--experiment", "--net", net, "--width", "0.005", "--device", "cpu"]
    assert t1t2.main([*flags, "--trials", "2", "--epochs", "5"]) == 0
    out = capsys.readouterr().out
    assert out.count("by the last values") == 3  # a line for every start, and the table's
    assert "-".join(map(str, hidden_units(net, 0.005))) in out
    assert (tmp_path / "runs" / f"t1t2-{net}.html").exists()


@pytest.mark.data
@pytest.mark.slow
def test_the_study_on_the_real_images(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = ["--data-dir", str(real_data), "--trials", "1", "--epochs", "1", "--no-figure"]
    assert t1t2.main([*shared, "--width", "0.02", "--device", "cpu"]) == 0
    study = optuna.load_study(study_name=None, storage="sqlite:///runs/t1t2.db")
    schedule = recorded(study.trials[0])
    assert schedule is not None
    assert schedule.names == ["l2", "input_noise"]
    assert study.best_value > 0.5
