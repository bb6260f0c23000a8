"""A continued optimizer has the new trial's hyperparameters and the old one's progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
import warnings

import optuna
from optuna.trial import FixedTrial
import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim import Optimizer

from optuna_ext.checkpoints import CheckpointStore


Build = Callable[[nn.Module], Optimizer]
Schedule = Callable[[Optimizer], lr_scheduler.LRScheduler]

X = torch.linspace(-1, 1, 12).reshape(6, 2)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def train(
    model: nn.Module, optimizer: Optimizer, scheduler: Any, steps: int, lrs: list[float]
) -> None:
    for _ in range(steps):
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        elif scheduler is not None:
            scheduler.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def continued(
    first: Build,
    second: Build,
    *,
    schedule: Schedule | None = None,
    steps: tuple[int, int],
) -> tuple[list[Tensor], list[float], Optimizer, Any]:
    """Train with one optimizer, keep that, go on with another one in a new trial."""
    store = CheckpointStore(":memory:")
    study = optuna.create_study()
    lrs: list[float] = []
    for number, build in enumerate((first, second)):
        trial = study.ask()
        if number:
            trial.set_user_attr("parent", 0)
        model = net()
        optimizer = build(model)
        scheduler = schedule(optimizer) if schedule else None
        things = {"scheduler": scheduler} if scheduler else {}
        run = store.resume(trial, model=model, optimizer=optimizer, **things)
        assert run.step == (steps[0] if number else 0)
        if scheduler is not None:
            assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        train(model, optimizer, scheduler, steps[number], lrs)
        run.save(run.step + steps[number])
        study.tell(trial, 0.0)
    return weights(model), lrs, optimizer, scheduler


def by_hand(
    first: Build, change: Callable[[dict[str, Any]], None], *, steps: tuple[int, int]
) -> list[Tensor]:
    """Train without a break, and change the options of the optimizer in between."""
    model = net()
    optimizer = first(model)
    train(model, optimizer, None, steps[0], [])
    for group in optimizer.param_groups:
        change(group)
    train(model, optimizer, None, steps[1], [])
    return weights(model)


@pytest.mark.parametrize(
    ("cls", "old", "new"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, {"lr": 0.001, "momentum": 0.5}),
        (
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.9, "nesterov": True},
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "dampening": 0.1},
        ),
        (
            torch.optim.Adam,
            {"lr": 0.1, "betas": (0.9, 0.99)},
            {"lr": 0.01, "betas": (0.5, 0.9), "eps": 0.1, "amsgrad": False},
        ),
        (torch.optim.AdamW, {"lr": 0.1}, {"lr": 0.3, "weight_decay": 0.5}),
        (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9}, {"lr": 0.02, "alpha": 0.5}),
        (torch.optim.Adagrad, {"lr": 0.1}, {"lr": 0.3, "lr_decay": 0.1}),
    ],
)
def test_the_next_step_is_that_of_the_new_hyperparameters(
    cls: type[Optimizer], old: dict[str, Any], new: dict[str, Any]
) -> None:
    def first(model: nn.Module) -> Optimizer:
        return cls(model.parameters(), **old)

    def second(model: nn.Module) -> Optimizer:
        return cls(model.parameters(), **new)

    options = {k: v for k, v in second(net()).param_groups[0].items() if k != "params"}
    for steps in ((4, 1), (4, 7)):
        trained, _, optimizer, _ = continued(first, second, steps=steps)
        expected = by_hand(first, lambda group: group.update(options), steps=steps)
        unchanged = by_hand(first, lambda group: None, steps=steps)
        for one, other in zip(trained, expected, strict=True):
            assert torch.equal(one, other)
        assert any(
            not torch.equal(one, other) for one, other in zip(trained, unchanged, strict=True)
        )
        assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == options


def test_every_group_has_its_own() -> None:
    def build(lrs: tuple[float, float]) -> Build:
        return lambda model: torch.optim.SGD(
            [
                {"params": [*model.parameters()][:2], "lr": lrs[0]},
                {"params": [*model.parameters()][2:], "lr": lrs[1], "momentum": 0.9},
            ],
            lr=1.0,
        )

    _, _, optimizer, _ = continued(build((0.1, 0.2)), build((0.3, 0.4)), steps=(2, 1))
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.4]
    assert [group["momentum"] for group in optimizer.param_groups] == [0, 0.9]


def test_a_learning_rate_in_a_tensor_stays_in_one() -> None:
    def build(lr: float) -> Build:
        return lambda model: torch.optim.Adam(
            model.parameters(), lr=torch.tensor(lr), capturable=False
        )

    _, lrs, optimizer, _ = continued(build(0.25), build(0.125), steps=(2, 2))
    assert lrs == [0.25, 0.25, 0.125, 0.125]
    assert isinstance(optimizer.param_groups[0]["lr"], Tensor)


def sequential(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5),
            lr_scheduler.CosineAnnealingLR(optimizer, T_max=20),
        ],
        milestones=[5],
    )


def warm_up(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)


SCHEDULES: dict[str, Schedule] = {
    "step": lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 6, 9], gamma=0.3),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20),
    "cosine-floor": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.01),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=20, power=2),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=10 * o.param_groups[0]["lr"], total_steps=20
    ),
    "warm-up-from-zero": warm_up,
    "sequential": sequential,
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, factor=0.5, total_iters=6), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=2),
}


def sgd(lr: float) -> Build:
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("after", [4, 7])
def test_a_scheduler_goes_on_from_the_new_learning_rate(name: str, after: int) -> None:
    """As if it had begun with it; checked for every step that follows."""
    with warnings.catch_warnings():  # torch's own, of SequentialLR
        warnings.filterwarnings("ignore", message=".*epoch parameter.*")
        schedule = SCHEDULES[name]
        _, lrs, _, scheduler = continued(
            sgd(0.1), sgd(0.04), schedule=schedule, steps=(after, 12 - after)
        )
        alone: dict[float, list[float]] = {0.1: [], 0.04: []}
        for lr, seen in alone.items():
            model = net()
            optimizer = sgd(lr)(model)
            oracle = schedule(optimizer)
            train(model, optimizer, oracle, 12, seen)
    assert lrs[:after] == alone[0.1][:after]
    assert lrs[after:] == pytest.approx(alone[0.04][after:], rel=1e-12)
    assert scheduler.get_last_lr() == pytest.approx(oracle.get_last_lr(), rel=1e-12)
    assert lrs[after:] != pytest.approx(alone[0.1][after:], rel=0.1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_with_the_same_hyperparameters_nothing_changes_by_a_bit(name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*epoch parameter.*")
        schedule = SCHEDULES[name]
        trained, lrs, _, scheduler = continued(sgd(0.1), sgd(0.1), schedule=schedule, steps=(5, 7))
        model = net()
        optimizer = sgd(0.1)(model)
        oracle = schedule(optimizer)
        expected: list[float] = []
        train(model, optimizer, oracle, 12, expected)
    assert lrs == expected
    for one, other in zip(trained, weights(model), strict=True):
        assert torch.equal(one, other)
    assert scheduler.get_last_lr() == oracle.get_last_lr()


def test_a_schedulers_own_hyperparameters_are_the_new_trials() -> None:
    store = CheckpointStore(":memory:")
    study = optuna.create_study()
    for number, gamma in enumerate((0.5, 0.1)):
        trial = study.ask()
        if number:
            trial.set_user_attr("parent", 0)
        model = net()
        optimizer = sgd(1.0)(model)
        scheduler = lr_scheduler.ExponentialLR(optimizer, gamma)
        run = store.resume(trial, model=model, optimizer=optimizer, scheduler=scheduler)
        train(model, optimizer, scheduler, 2, [])
        run.save(run.step + 2)
    assert scheduler.gamma == 0.1
    assert scheduler.last_epoch == 4
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5**2 * 0.1**2)


def test_what_the_training_itself_moved_goes_on_from_the_new_value() -> None:
    store = CheckpointStore(":memory:")
    study = optuna.create_study()
    for number, lr in enumerate((0.1, 0.4, 0.4)):
        trial = study.ask()
        if number:
            trial.set_user_attr("parent", number - 1)
        optimizer = sgd(lr)(net())
        run = store.resume(trial, optimizer=optimizer)
        if number == 0:
            optimizer.param_groups[0]["lr"] /= 2  # a schedule of the user's own
        run.save(run.step + 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx([0.05, 0.2, 0.2][number])


def test_a_scheduler_built_afterwards_does_not_find_the_old_base() -> None:
    store = CheckpointStore(":memory:")
    study = optuna.create_study()
    for number, lr in enumerate((0.1, 0.4)):
        trial = study.ask()
        if number:
            trial.set_user_attr("parent", 0)
        optimizer = sgd(lr)(net())
        if number == 0:
            lr_scheduler.ConstantLR(optimizer, factor=1.0)
        store.resume(trial, optimizer=optimizer).save(number + 1)
    assert lr_scheduler.LambdaLR(optimizer, lambda _: 1.0).base_lrs == [0.4]


def test_another_number_of_groups_is_refused() -> None:
    store = CheckpointStore(":memory:")
    trial = FixedTrial({})
    store.resume(trial, optimizer=sgd(0.1)(net())).save(1)
    other = torch.optim.SGD([{"params": [p]} for p in net().parameters()], lr=0.1)
    with pytest.raises(RuntimeError, match="trial 0 does not fit `optimizer`: loaded state dict"):
        store.resume(trial, optimizer=other)
