"""A training that stops and goes on ends with the numbers of one that never stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
from optuna.trial import FixedTrial
from optuna.trial import TrialState
import pytest
import torch

import objectives
from objectives import cats
from objectives import digits
from objectives.checkpoints import open_checkpoints
from objectives.data import Data
from objectives.training import fit
from objectives.training import Recipe
from objectives.training import Task
from optuna_ext import CheckpointError
from optuna_ext import CheckpointStore
from optuna_ext import replay
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import PARENT
from optuna_ext.lineage import schedule


each = pytest.mark.parametrize(
    "module", [getattr(objectives, name) for name in objectives.__all__], ids=objectives.__all__
)

NOTES = ("train_loss", "valid_loss", "test_accuracy", "test_error", "n_parameters", "epochs")


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few passes do where the cats' epochs have a hundred."""
    made = cats._recipe

    def short(*args: Any, **kwargs: Any) -> Recipe:
        return dataclasses.replace(made(*args, **kwargs), passes_per_epoch=3)

    monkeypatch.setattr(cats, "_recipe", short)


class Stop(optuna.pruners.BasePruner):
    """Pauses every trial at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step == self.step


class Killed(BaseException):
    """Stands for the end of a worker: nothing catches it."""


class Dying(FixedTrial):
    """Its worker dies when it reports a step."""

    def __init__(self, params: dict[str, Any], *, at: int | None) -> None:
        super().__init__(params)
        self.at = at
        self.reports: dict[int, float] = {}

    def report(self, value: float, step: int) -> None:
        assert step not in self.reports
        if step == self.at:
            raise Killed
        self.reports[step] = value


def retry_of(trial: Dying) -> Dying:
    """Return a trial with the parameters and attributes of another one."""
    again = Dying(trial.params, at=None)
    for name, attribute in trial.user_attrs.items():
        again.set_user_attr(name, attribute)
    return again


def params_of(module: ModuleType) -> dict[str, Any]:
    params = dict(module.DEFAULTS)
    if "dropout" in params:
        params["dropout"] = 0.2
    return params


def notes(trial: Any) -> dict[str, Any]:
    return {name: trial.user_attrs[name] for name in NOTES if name in trial.user_attrs}


@each
def test_paused_and_promoted_is_as_good_as_never_paused(
    module: ModuleType, small_data: Path, device: str
) -> None:
    settings: dict[str, Any] = {"epochs": 4, "device": device, "data_dir": small_data}
    straight = Dying(params_of(module), at=None)
    value = module.objective(straight, **settings)

    study = optuna.create_study(direction=module.DIRECTION, pruner=Stop(2))
    store = CheckpointStore(":memory:")
    study.enqueue_trial(params_of(module))
    study.enqueue_trial(params_of(module), user_attrs={PARENT: 0})
    study.optimize(
        lambda trial: module.objective(trial, checkpoints=store, **settings), n_trials=2
    )
    paused, promoted = study.trials
    assert (paused.state, promoted.state) == (TrialState.PRUNED, TrialState.COMPLETE)
    assert paused.intermediate_values | promoted.intermediate_values == straight.reports
    assert list(promoted.intermediate_values) == [3, 4]
    assert promoted.value == value
    if device == "cpu":
        assert notes(promoted) == notes(straight)


@each
def test_after_a_crash_the_same_numbers_come_out(module: ModuleType, small_data: Path) -> None:
    settings: dict[str, Any] = {"epochs": 4, "device": "cpu", "data_dir": small_data}
    straight = Dying(params_of(module), at=None)
    value = module.objective(straight, **settings)
    store = CheckpointStore(":memory:", autosave=0)
    trial = Dying(params_of(module), at=3)
    with pytest.raises(Killed):
        module.objective(trial, checkpoints=store, **settings)
    checkpoint = Checkpoint.of(trial)
    assert checkpoint is not None
    assert checkpoint.step < 3
    again = retry_of(trial)
    assert module.objective(again, checkpoints=store, **settings) == value
    assert trial.reports | again.reports == straight.reports
    assert notes(again) == notes(straight)


def test_a_worker_that_died_after_its_last_save_trains_nothing_again() -> None:
    store = CheckpointStore(":memory:")
    trial = Dying(params_of(digits), at=None)
    settings: dict[str, Any] = {"epochs": 3, "device": "cpu", "checkpoints": store}
    value = digits.objective(trial, **settings)
    before = notes(trial)
    trial.reports.clear()
    assert digits.objective(trial, **settings) == value
    assert trial.reports == {}
    assert notes(trial) == before


def test_a_worker_that_died_before_it_paused_pauses() -> None:
    store = CheckpointStore(":memory:")
    study = optuna.create_study(direction="maximize", pruner=Stop(2))
    study.enqueue_trial(params_of(digits))
    study.optimize(
        lambda trial: digits.objective(trial, epochs=4, device="cpu", checkpoints=store),
        n_trials=1,
    )
    dead = study.trials[0]  # as if it had not been told that it is paused
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=dead.params,
            distributions=dead.distributions,
            user_attrs=dead.user_attrs,
            intermediate_values=dead.intermediate_values,
        )
    )
    study.optimize(
        lambda trial: digits.objective(trial, epochs=4, device="cpu", checkpoints=store),
        n_trials=1,
    )
    assert study.trials[1].state == TrialState.PRUNED
    assert study.trials[1].intermediate_values == dead.intermediate_values


def test_the_best_epoch_outlives_a_crash(small_data: Path) -> None:
    settings: dict[str, Any] = {"fidelity": True, "device": "cpu", "data_dir": small_data}
    params = {name: value for name, value in cats.DEFAULTS.items() if name != "iterations"}
    straight = Dying(params, at=None)
    value = cats.objective(straight, **settings)
    assert straight.user_attrs["best_epoch"] < 5
    trial = Dying(params, at=5)
    store = CheckpointStore(":memory:", autosave=0)
    with pytest.raises(Killed):
        cats.objective(trial, checkpoints=store, **settings)
    again = retry_of(trial)
    assert cats.objective(again, checkpoints=store, **settings) == value
    for name in ("best_epoch", "iterations", *notes(straight)):
        assert again.user_attrs[name] == straight.user_attrs[name]


def test_intervals_follow_each_other_with_their_own_learning_rates(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    params = params_of(digits)

    def objective(trial: Any) -> float:
        return digits.objective(trial, interval=2, device="cpu", checkpoints=tmp_path)

    for number, lr in enumerate((0.1, 0.01, 0.05)):
        study.enqueue_trial(
            {**params, "lr": lr}, user_attrs={PARENT: number - 1} if number else {}
        )
    study.optimize(objective, n_trials=3)
    assert [list(trial.intermediate_values) for trial in study.trials] == [[1, 2], [3, 4], [5, 6]]
    told = schedule(study, 2)
    assert [told.at(step)["lr"] for step in range(1, 7)] == [0.1, 0.1, 0.01, 0.01, 0.05, 0.05]
    replayed = replay(told, objective)
    assert replayed.value == study.trials[2].value
    assert notes(replayed) == notes(study.trials[2])


def test_an_interval_that_was_saved_but_not_told_is_not_trained_twice(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(params_of(digits))
    value = 0.0
    for number in range(2):
        trial = study.ask()
        value = digits.objective(trial, interval=2, device="cpu", checkpoints=tmp_path)
        if number == 0:
            study.tell(trial, value)
            study.enqueue_trial(params_of(digits), user_attrs={PARENT: 0})
    killed = study.trials[1]  # between its last save and the end
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            system_attrs={"fixed_params": killed.params},
            user_attrs=killed.user_attrs,
            intermediate_values=killed.intermediate_values,
        )
    )
    again = digits.objective(study.ask(), interval=2, device="cpu", checkpoints=tmp_path)
    assert again == value
    assert list(study.trials[2].intermediate_values) == [3, 4]
    assert notes(study.trials[2]) == notes(killed)
    assert Checkpoint.of(study.trials[2]) == Checkpoint.of(killed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0, "checkpoints": ":memory:"}, "interval must be at least 1, but it is 0"),
        ({"interval": 1}, "interval needs checkpoints, from which trials go on"),
    ],
)
def test_an_interval_needs_checkpoints(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits.objective(FixedTrial(digits.DEFAULTS), **settings)


def test_an_interval_has_no_best_of(small_data: Path) -> None:
    with pytest.raises(ValueError, match="interval must be None where the best of some epochs"):
        cats.objective(
            FixedTrial(cats.DEFAULTS),
            fidelity=True,
            data_dir=small_data,
            interval=1,
            checkpoints=":memory:",
        )


def test_a_full_disk_fails_the_trial_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fail)
    with pytest.raises(CheckpointError, match="No space left on device; the one before it is unc"):
        digits.objective(FixedTrial(digits.DEFAULTS), epochs=1, device="cpu", checkpoints=tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_place_that_cannot_be_is_noticed_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file must be a directory"):
        digits.objective(FixedTrial({}), checkpoints=tmp_path / "file")


def test_one_store_per_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows when it last deleted what is useless, and in memory it is the place itself."""
    stores = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        stores.append(open_checkpoints("here"))
    assert stores[0] is not stores[1]
    assert stores[1] is open_checkpoints(tmp_path / "other" / "here")
    assert open_checkpoints(tmp_path) is open_checkpoints(str(tmp_path))
    assert open_checkpoints(":memory:") is open_checkpoints(":memory:")
    store = CheckpointStore(tmp_path)
    assert open_checkpoints(store) is store


def test_every_fold_has_its_own_state(small_data: Path) -> None:
    """Cross-validation trains several networks side by side."""
    store = CheckpointStore(":memory:")
    made = cats.task(protocol="cv", data_dir=small_data)
    folds: list[list[Data]] = []

    def data(where: torch.device) -> list[Data]:
        folds.append([*made.data(where)])
        return folds[-1]

    task = Task(hyperparameters=made.hyperparameters, recipe=made.recipe, data=data)
    params = dict(cats.DEFAULTS)
    straight, trial = Dying(params, at=None), Dying(params, at=None)
    value = fit(straight, task, epochs=3, device="cpu")
    for epochs in (1, 2, 3):
        last = fit(trial, task, epochs=epochs, device="cpu", checkpoints=store)
    assert len(folds[0]) > 1
    assert last == value
    assert notes(trial) == notes(straight)
