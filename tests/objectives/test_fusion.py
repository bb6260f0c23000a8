"""Every objective trains the same alone and together with others."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import torch
from torch import nn

import objectives
from objectives.data import Data
from objectives.fusion import problem
from objectives.training import fit
from objectives.training import Recipe
from objectives.training import Task
from optuna_ext import CheckpointStore
from optuna_ext import fused
from optuna_ext import PopulationBasedTrainingSampler


CASES: list[tuple[ModuleType, dict[str, Any]]] = [
    (objectives.boundaries, {"dataset": 3, "net": "three-layer"}),
    (objectives.boundaries, {"net": "logistic"}),
    (objectives.cats, {}),
    (objectives.cats, {"protocol": "document", "hidden_layers": 2}),
    (objectives.cats, {"fidelity": True}),
    (objectives.digits, {}),
    (objectives.fashion, {"batch_size": 32}),
    (objectives.mnist, {}),
]
EPOCHS = {"cats": 3}
TRIALS = {"boundaries": 4, "digits": 6, "fashion": 6}  # the others are slow

each = pytest.mark.parametrize(
    ("module", "arguments"), CASES, ids=[f"{m.__name__}-{[*a.values()]}" for m, a in CASES]
)


def doubled(task: Task) -> Task:
    """The same task in float64."""

    def recipe(params: Any) -> Recipe:
        made = task.recipe(params)

        def model(generator: torch.Generator) -> nn.Module:
            return made.model(generator).double()

        return dataclasses.replace(made, model=model)

    def data(where: torch.device) -> Sequence[Data]:
        return [
            dataclasses.replace(
                part,
                train_x=part.train_x.double(),
                valid_x=part.valid_x.double(),
                test_x=part.test_x.double(),
            )
            for part in task.data(where)
        ]

    return dataclasses.replace(task, recipe=recipe, data=data)


def new_study(module: ModuleType) -> optuna.Study:
    study = optuna.create_study(
        direction=module.DIRECTION,
        sampler=optuna.samplers.RandomSampler(seed=1),
        pruner=optuna.pruners.NopPruner(),
    )
    study.enqueue_trial(module.DEFAULTS)
    return study


@each
def test_the_same_values_alone_and_together(
    module: ModuleType, arguments: dict[str, Any], small_data: Path
) -> None:
    task = doubled(module.task(data_dir=small_data, **arguments))
    name = module.__name__.rpartition(".")[2]
    epochs, n_trials = EPOCHS.get(name, 2), TRIALS.get(name, 3)
    alone, together = new_study(module), new_study(module)
    alone.optimize(
        lambda trial: fit(trial, task, epochs=epochs, device="cpu", seed=3), n_trials=n_trials
    )
    fused.optimize(
        together,
        problem(task, epochs=epochs, device="cpu", seed=3),
        n_trials,
        slots=4,
        device="cpu",
    )
    for one, two in zip(alone.trials, together.trials, strict=True):
        assert one.params == two.params
        assert one.state == two.state
        assert two.intermediate_values == pytest.approx(one.intermediate_values, abs=1e-12)
        assert two.value == pytest.approx(one.value, abs=1e-12)
        for name in one.user_attrs.keys() - {"train_seconds"}:
            assert two.user_attrs[name] == pytest.approx(one.user_attrs[name], abs=1e-9)


@pytest.mark.parametrize("net", ["logistic", "three-layer"])
def test_in_float32_to_rounding(net: str, device: str) -> None:
    settings: dict[str, Any] = {"epochs": 1, "device": device, "seed": 3}
    alone, together = new_study(objectives.boundaries), new_study(objectives.boundaries)
    alone.optimize(
        lambda trial: objectives.boundaries.objective(trial, net=net, **settings),  # type: ignore[arg-type]
        n_trials=3,
    )
    made = problem(objectives.boundaries.task(net=net), **settings)  # type: ignore[arg-type]
    fused.optimize(together, made, 3, slots=3, device=device)
    for one, two in zip(alone.trials, together.trials, strict=True):
        assert two.value == pytest.approx(one.value, abs=5e-3)  # some rows of 2,000
        loss = one.user_attrs["valid_loss"]
        assert two.user_attrs["valid_loss"] == pytest.approx(loss, rel=1e-3)


def test_a_population_alone_and_together() -> None:
    """Together no checkpoint is written and read, and yet all is the same."""
    task = doubled(objectives.boundaries.task(dataset=3, net="three-layer"))
    store = CheckpointStore(":memory:")
    alone, together = new_study(objectives.boundaries), new_study(objectives.boundaries)
    for study in (alone, together):
        study.sampler = PopulationBasedTrainingSampler(population_size=3, seed=1)
    settings: dict[str, Any] = {"epochs": 1, "interval": 1, "device": "cpu", "seed": 3}
    alone.optimize(lambda trial: fit(trial, task, checkpoints=store, **settings), n_trials=9)
    fused.optimize(together, problem(task, **settings), 9, slots=3, device="cpu")
    for one, two in zip(alone.trials, together.trials, strict=True):
        assert one.params == two.params
        assert two.intermediate_values == pytest.approx(one.intermediate_values, abs=1e-12)
        for name in one.user_attrs.keys() - {"train_seconds", "checkpoint"}:
            assert two.user_attrs[name] == pytest.approx(one.user_attrs[name], abs=1e-9)
    assert "parent" in together.trials[8].user_attrs


@pytest.mark.parametrize("first", ["alone", "together"])
def test_a_population_half_alone_and_half_together(first: str) -> None:
    task = doubled(objectives.boundaries.task(dataset=3, net="three-layer"))
    settings: dict[str, Any] = {"epochs": 1, "interval": 1, "device": "cpu", "seed": 3}
    about = problem(task, **settings)
    mixed, alone = new_study(objectives.boundaries), new_study(objectives.boundaries)
    stores = [CheckpointStore(":memory:") for _ in range(2)]
    for study in (mixed, alone):
        study.sampler = PopulationBasedTrainingSampler(population_size=3, seed=1)
    alone.optimize(lambda trial: fit(trial, task, checkpoints=stores[0], **settings), n_trials=12)
    for way in ("alone", "together") if first == "alone" else ("together", "alone"):
        if way == "alone":
            mixed.optimize(
                lambda trial: fit(trial, task, checkpoints=stores[1], **settings), n_trials=6
            )
        else:
            fused.optimize(mixed, about, 6, slots=3, device="cpu", store=stores[1])
    for one, two in zip(alone.trials, mixed.trials, strict=True):
        assert one.params == two.params
        assert two.intermediate_values == pytest.approx(one.intermediate_values, abs=1e-12)
        for name in one.user_attrs.keys() - {"train_seconds", "checkpoint"}:
            assert two.user_attrs[name] == pytest.approx(one.user_attrs[name], abs=1e-9)


def test_the_best_epoch_is_remembered() -> None:
    """Together, a trial ends with its last epoch; alone, a child goes on from there."""
    task = dataclasses.replace(doubled(objectives.digits.task()), best_of=(1, 2, 3))
    store = CheckpointStore(":memory:")
    study = new_study(objectives.digits)
    fused.optimize(study, problem(task, epochs=2, device="cpu"), 1, device="cpu", store=store)
    harmful = {**study.trials[0].params, "lr": 1.0, "momentum": 0.95}
    study.enqueue_trial(harmful, user_attrs={"parent": 0})
    study.optimize(
        lambda trial: fit(trial, task, epochs=3, device="cpu", checkpoints=store), n_trials=1
    )
    curve = study.trials[0].intermediate_values | study.trials[1].intermediate_values
    assert [*curve] == [1, 2, 3]
    assert study.trials[1].value == study.trials[0].value == curve[2] > max(curve[1], curve[3])
    assert study.trials[1].user_attrs["best_epoch"] == 2


def test_what_is_refused(small_data: Path) -> None:
    with pytest.raises(ValueError, match="epochs must be at least 1, but it is 0"):
        problem(objectives.digits.task(), epochs=0)
    cats = problem(objectives.cats.task(data_dir=small_data), epochs=1, interval=1, device="cpu")
    with pytest.raises(ValueError, match="interval must be None where the parameters"):
        fused.optimize(new_study(objectives.cats), cats, 1, device="cpu")
