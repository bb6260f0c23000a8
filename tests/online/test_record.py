from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts import get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.study import Study
from optuna.trial import FixedTrial
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from optuna_ext import CheckpointStore
from optuna_ext import HypergradientSGD
from optuna_ext import open_storage
from optuna_ext import Schedule
from optuna_ext.online import record
from optuna_ext.online import recorded
from optuna_ext.online import Recorder


def wave(n: int, names: int = 1) -> Schedule:
    return Schedule(
        {step: {f"h{i}": math.sin(step / 50 + i) for i in range(names)} for step in range(1, n)}
    )


def new_study(folder: Path) -> Study:
    return optuna.create_study(storage=open_storage(str(folder / "study.db")))


def train(optimizer: torch.optim.Optimizer, n: int) -> list[float]:
    """Return the learning rate of every step."""
    rates = []
    weight = optimizer.param_groups[0]["params"][0]
    for _ in range(n):
        optimizer.zero_grad()
        torch.autograd.backward((weight - 3).square().sum())
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("as_store", [False, True])
def test_the_whole_is_an_artifact_and_the_thinned_an_attribute(
    tmp_path: Path, as_store: bool
) -> None:
    place: Any = tmp_path / "artifacts"
    if as_store:
        place = FileSystemArtifactStore(place)
        (tmp_path / "artifacts").mkdir()
    study = new_study(tmp_path)
    trial = study.ask()
    schedule = wave(3000)
    record(trial, schedule, place=place)
    study.tell(trial, 1.0)
    (frozen,) = study.trials
    assert recorded(frozen, place=place) == schedule
    thinned = recorded(frozen)
    assert thinned is not None
    assert 100 < len(list(thinned)) <= 200
    assert thinned.last == schedule.last
    for step in range(1, 3000):
        assert thinned.at(step)["h0"] == pytest.approx(schedule.at(step)["h0"], abs=0.4)
    (meta,) = get_all_artifact_meta(frozen, storage=study._storage)
    assert (meta.filename, meta.mimetype) == ("schedule.json", "application/json")
    assert frozen.user_attrs["schedule"]["artifact"] == meta.artifact_id


def test_recorded_again_it_takes_the_place_of_the_former(tmp_path: Path) -> None:
    trial = new_study(tmp_path).ask()
    for n in (5, 500):
        record(trial, wave(n), place=tmp_path / "artifacts")
        assert recorded(trial, place=tmp_path / "artifacts") == wave(n)
    assert len(list((tmp_path / "artifacts").iterdir())) == 1


def test_the_attribute_fits_into_every_database() -> None:
    trial = optuna.create_study().ask()
    record(trial, wave(3000, names=100))
    assert len(json.dumps(trial.user_attrs["schedule"])) < 65_535  # MySQL's TEXT
    thinned = recorded(trial)
    assert thinned is not None
    assert len(thinned.names) == 100


def test_without_a_place_a_fixed_trial_will_do() -> None:
    trial = FixedTrial({})
    assert recorded(trial) is None
    record(trial, Schedule({1: {"lr": 1 / 3, "kind": "a"}}, last=7))
    assert recorded(trial) == Schedule({1: {"lr": 0.333333, "kind": "a"}}, last=7)


def test_mistakes(tmp_path: Path) -> None:
    trial = optuna.create_study().ask()
    with pytest.raises(TypeError, match="`schedule` must be a Schedule or have one .* type dict"):
        record(trial, {"lr": 0.1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`place` must be a directory or an artifact store"):
        record(trial, Schedule(), place=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`place` must be None with .* such as a FixedTrial"):
        record(FixedTrial({}), Schedule(), place=tmp_path)
    record(trial, Schedule())
    with pytest.raises(ValueError, match="trial 0 has its schedule in no artifact"):
        recorded(trial, place=tmp_path)
    record(trial, wave(3), place=tmp_path / "a")
    with pytest.raises(ArtifactNotFound):
        recorded(trial, place=tmp_path / "b")


def test_a_recorder_notes_what_each_step_used() -> None:
    optimizer = HypergradientSGD([nn.Parameter(torch.zeros(2))], lr=1e-3)
    recorder = Recorder(optimizer)
    rates = train(optimizer, 30)
    assert len({*rates}) > 20
    assert [recorder.schedule.at(step)["lr"] for step in range(1, 31)] == rates
    trial = FixedTrial({})
    record(trial, recorder)
    thinned = recorded(trial)
    assert thinned is not None
    assert thinned.at(30)["lr"] == pytest.approx(rates[-1], rel=1e-5)


def test_a_recorder_with_torchs_own_optimizer_and_groups() -> None:
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups: list[dict[str, Any]] = [
        {"params": [w], "lr": lr} for w, lr in zip(weights, (1, 2), strict=True)
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.5)
    recorder = Recorder(optimizer, names=("lr", "momentum"), every=2)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [recorder.schedule.at(step)["lr"] for step in (1, 2, 3, 4, 5)] == [
        1,
        1,
        0.25,
        0.25,
        1 / 16,
    ]
    assert recorder.schedule.at(3) == {"lr": 0.25, "momentum": 0.5, "lr_1": 0.5, "momentum_1": 0.5}
    with pytest.raises(ValueError, match=r"`names` must be among \['dampening', .* got 'rate'"):
        Recorder(optimizer, names=("rate",))


def test_a_recorder_goes_on_from_a_checkpoint() -> None:
    store = CheckpointStore(":memory:")

    def run(trial: Any, n: int) -> Schedule:
        optimizer = HypergradientSGD([nn.Parameter(torch.zeros(2))], lr=1e-3)
        recorder = Recorder(optimizer)
        model = nn.ParameterList(optimizer.param_groups[0]["params"])
        kept = store.resume(trial, model=model, optimizer=optimizer, recorder=recorder)
        train(optimizer, n)
        kept.save(kept.step + n)
        return recorder.schedule

    trial = FixedTrial({})
    run(trial, 10)
    assert run(trial, 10) == run(FixedTrial({}), 20)


def test_schedules_of_a_study_make_one_that_drives_another_optimizer() -> None:
    study = optuna.create_study()
    for lr in (1e-3, 1e-2):
        trial = study.ask()
        optimizer = HypergradientSGD([nn.Parameter(torch.zeros(2))], lr=lr)
        recorder = Recorder(optimizer)
        train(optimizer, 20)
        record(trial, recorder)
        study.tell(trial, 1.0)
    schedules = [schedule for trial in study.trials if (schedule := recorded(trial))]
    mean = Schedule.mean(schedules, geometric=["lr"])
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    driver = mean.drive(plain)
    for step in range(1, 21):
        rates = [schedule.at(step)["lr"] for schedule in schedules]
        assert plain.param_groups[0]["lr"] == pytest.approx(math.sqrt(math.prod(rates)))
        driver.step()
