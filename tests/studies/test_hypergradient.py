"""Learning rates that tune themselves: the study, its chart, and the tables."""

from __future__ import annotations

from functools import partial
import json
from pathlib import Path
import warnings

import optuna
from optuna.study import Study
from optuna.trial import TrialState
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from objectives.data import load
from objectives.nets import mlp
from objectives.nets import seeded
from optuna_ext import HypergradientSGD
from optuna_ext import open_storage
from optuna_ext import Schedule
from optuna_ext.online import record
from optuna_ext.online import recorded
from studies import hypergradient
from studies._auto_tune import train_one as train_case
from studies._baydin import published
from studies._baydin import Row
from studies._baydin import starts_figure
from studies._baydin import train_one
from studies._options import Options
from studies._pbt_quality import Case
from studies._step_time import _PAIRS
from studies._step_time import step_times
from studies._trajectories import trajectories


SMALL = ["--epochs", "2", "--seed", "0", "--device", "cpu"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load_study(name: str) -> Study:
    return optuna.load_study(study_name=name, storage=open_storage("runs/hypergradient.db"))


def test_a_study_draws_what_its_trials_did(capsys: pytest.CaptureFixture[str]) -> None:
    given = [*SMALL, "--trials", "4", "--artifacts", "artifacts", "--study", "one"]
    assert hypergradient.main([*given, "--sampler", "random", "--pruner", "median"]) == 0
    out = capsys.readouterr().out
    assert "Trajectories: runs/hypergradient-one-trajectories.html" in out
    assert "points" not in out  # of schedules: nobody wants to read them
    assert "what was tuned in 4 trials" in Path(
        "runs/hypergradient-one-trajectories.html"
    ).read_text("utf-8")
    study = load_study("one")
    for trial in study.trials:
        whole, thinned = recorded(trial, place="artifacts"), recorded(trial)
        assert whole is not None
        assert thinned is not None
        assert whole.last == thinned.last == 2 * 75  # of 16 digits each
        assert whole.at(1)["lr"] == pytest.approx(trial.params["lr"])
        rates = [values["lr"] for _, values in whole]
        assert len({*rates}) > 100
        assert min(rates) > 0
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert any("trajectories" in name for name in attributes)  # the dashboard's panel


def test_a_fixed_rate_has_no_step_of_its_own() -> None:
    given = [*SMALL, "--trials", "2", "--fixed", "--study", "fixed", "--no-figure"]
    assert hypergradient.main(given) == 0
    for trial in load_study("fixed").trials:
        assert set(trial.params) == {"optimizer", "lr"}
        schedule = recorded(trial)
        assert schedule is not None
        assert len(list(schedule)) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--net", "cnn"], "--net"),
        (["--data", "cifar"], "--data"),
        (["--artifacts", "here"], "artifacts must be a directory, but 'here'"),
        (["--table", "--device", "tpu"], "device must be one of"),
        (["--table", "--figure", "a.pdf"], "--figure must end in"),
        (["--cases", "--device", "tpu"], "device must be one of"),
        (["--cost", "--device", "tpu"], "device must be one of"),
        (["--cost", "--seeds", "2"], "--seeds needs --table"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("here").write_text("a file")
    assert hypergradient.main([*arguments, "--no-figure"]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()


def test_trajectories_show_the_best_in_black() -> None:
    study = optuna.create_study(study_name="tiny")
    assert trajectories(study) is None
    for lr, state in ((0.1, TrialState.COMPLETE), (0.2, TrialState.COMPLETE), (0.3, None)):
        trial = study.ask()
        record(trial, Schedule({1: {"lr": lr, "l2": 0.0}, 4: {"lr": 2 * lr, "l2": 1.0}}, last=6))
        study.tell(trial, lr if state else None, state=state or TrialState.FAIL)
    study.tell(study.ask(), 0.0)  # the best, but it has recorded nothing
    figure = trajectories(study)
    assert figure is not None
    drawn = [trace for trace in figure.data if trace.yaxis == "y"]
    assert [trace.name for trace in drawn] == ["trial 2", "trial 1: 0.2", "trial 0: 0.1"]
    assert [trace.line.width for trace in drawn] == [1, 1, 3]
    assert drawn[-1].line.color == "#000000"
    assert list(drawn[-1].x) == [1, 4, 7]
    assert list(drawn[-1].y) == [0.1, 0.2, 0.2]
    assert [axis.type for axis in figure.select_yaxes()] == ["log", "linear"]  # l2 is 0 at first


def test_the_papers_optimizers_are_trained_as_written() -> None:
    """SGD-HD by hand (Baydin et al. 2018, algorithm 4), on the same batches."""
    data = load("digits")
    row = train_one(
        data,
        partial(HypergradientSGD, lr=1e-3, rule="additive"),
        name="SGD-HD",
        device=CPU,
        epochs=2,
        seed=3,
    )
    with seeded(3):  # the authors draw all from one generator, an order for a first look, too
        model = mlp((64, 10))
        _, *orders = (torch.randperm(len(data.train_x)) for _ in range(3))
    weights = [*model.parameters()]
    lr, rates = 1e-3, []
    before = [torch.zeros_like(weight) for weight in weights]
    for order in orders:
        for rows in torch.split(order, 128):
            loss = torch.nn.functional.cross_entropy(model(data.train_x[rows]), data.train_y[rows])
            gradients = [
                g + 1e-4 * w.detach()
                for g, w in zip(torch.autograd.grad(loss, weights), weights, strict=True)
            ]
            lr += 1e-3 * sum(float((g * b).sum()) for g, b in zip(gradients, before, strict=True))
            rates.append(lr)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.data -= lr * gradient
            before = gradients
    loss = torch.nn.functional.cross_entropy(model(data.valid_x), data.valid_y)
    assert (row.start, row.name, row.seed) == (1e-3, "SGD-HD", 3)
    assert row.last == pytest.approx(rates[-1], rel=1e-4)
    assert row.highest == pytest.approx(max(rates), rel=1e-4)
    assert row.loss == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.data
@pytest.mark.slow
def test_published_losses_are_reproduced(real_data: Path) -> None:
    from studies._baydin import images

    data = images(Options(data_dir=real_data), CPU)
    assert len(data.train_x) == 60_000
    for name in ("SGD-HD", "SGDN-HD", "Adam-HD"):
        loss, build = published()[name]
        row = train_one(data, build, name=name, device=CPU, epochs=10, seed=1)
        assert row.loss == pytest.approx(loss, abs=0.0005)


def test_starts_are_drawn_beside_each_other() -> None:
    rows = [
        Row(name=name, seed=seed, start=start, loss=seed / 4, lowest=1e-3, highest=1.0, last=0.1)
        for seed in (1, 2)
        for name in ("tuned", "fixed", "Adam")
        for start in (1e-3, 1e-2)
    ]
    fixed, tuned = starts_figure(rows, epochs=10).data
    assert (fixed.name, tuned.name) == ("fixed", "tunes itself")
    assert list(fixed.x) == list(tuned.x) == [1e-3, 1e-2]
    assert list(fixed.y) == list(tuned.y) == [0.375, 0.375]  # the mean of the seeds


def test_step_times_are_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts the calls of an optimizer's step: equal for both."""
    monkeypatch.setattr("studies._step_time._NETS", {"softmax regression": ()})
    monkeypatch.setattr("studies._step_time._SECONDS", 1e-4)
    steps = 0

    def clock() -> float:
        return float(steps)

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    handle = register_optimizer_step_post_hook(count)
    monkeypatch.setattr("studies._step_time.time.process_time", clock)
    try:
        times = step_times(CPU, rounds=3)
    finally:
        handle.remove()
    assert [each.name for each in times] == [*_PAIRS]
    assert {each.step for each in times} == {each.update for each in times} == {1.0}


@pytest.mark.parametrize("optimizer", ["Adam", "exponential", "additive, as there"])
def test_a_case_of_auto_tune(optimizer: str) -> None:
    case = Case(1, "three-layer")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train_case(case, optimizer, 0, device=CPU)
    assert json.dumps(vars(result) | {"case": 1})
    if optimizer == "Adam":
        assert result.last_rate == 1e-3
    else:
        assert result.test > 0.99
        assert result.to_goal is not None
        assert result.to_goal <= 150
        assert result.last_rate > 0.01
