"""The rate follows the gradient of the next loss, by each of the rules."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import Optimizer

from optuna_ext import HypergradientAdam
from optuna_ext import HypergradientSGD


if TYPE_CHECKING:
    from tests.online.hypergradient.conftest import Case
    from tests.online.hypergradient.conftest import Lab


def first_loss(theta: Tensor) -> Tensor:
    return theta.cos().sum() + theta.square().sum()


def next_loss(theta: Tensor) -> Tensor:
    return 1e-3 * ((theta**3).sum() + theta.sin().sum())


def four_steps(
    optimizer_type: Callable[..., Optimizer], lr: float, **options: Any
) -> tuple[Tensor, Any]:
    """Make three steps with rate 0.1 and one with ``lr``."""
    theta = nn.Parameter(torch.linspace(-1.0, 2.0, 7, dtype=torch.float64))
    optimizer = optimizer_type([theta], lr=0.1, **options)
    for step in range(4):
        optimizer.param_groups[0] |= {"lr": lr, "hyper_lr": 1.0} if step == 3 else {"lr": 0.1}
        optimizer.zero_grad()
        torch.autograd.backward(first_loss(theta))
        optimizer.step()
    return theta, optimizer


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_the_rate_follows_the_gradient_of_the_next_loss(
    lab: Lab, case: Case, weight_decay: float
) -> None:
    """With hyper_lr = 1, minus the change of the rate is what central differences say."""
    kind, options = case
    options = {**options, "weight_decay": weight_decay}
    theta, optimizer = four_steps(lab.ours[kind], 0.1, rule="additive", hyper_lr=0.0, **options)
    before = optimizer.param_groups[0]["lr"]
    optimizer.zero_grad()
    torch.autograd.backward(next_loss(theta))
    optimizer.step()
    change = optimizer.param_groups[0]["lr"] - before

    def value(lr: float) -> float:
        theta = four_steps(lab.torchs[kind], lr, **options)[0].detach()
        coupled = 0.0 if kind == "adamw" else weight_decay / 2  # a penalty is part of the loss
        return float(next_loss(theta) + coupled * theta.square().sum())

    h = 1e-5
    assert change != 0
    assert -change == pytest.approx((value(0.1 + h) - value(0.1 - h)) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("rule", ["exponential", "multiplicative"])
def test_scale_free_rules_know_no_units(lab: Lab, kind: str, rule: str) -> None:
    """The loss times 1000 changes no rate (of Adam: no step either)."""
    rates = []
    for scale in (1.0, 1000.0):
        theta = nn.Parameter(torch.ones(4, dtype=torch.float64))
        optimizer = lab.ours[kind]([theta], lr=1e-5, rule=rule, weight_decay=0.0)
        for i in range(10):
            optimizer.zero_grad()
            torch.autograd.backward(scale * (theta * (i % 3 - 0.5)).sum())
            optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(rates[1], rel=1e-4)
    assert rates[0] != 1e-5


def rates_after(gradients: list[list[float]], **options: Any) -> list[float]:
    theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = HypergradientSGD([theta], lr=0.5, **options)
    rates = []
    for gradient in gradients:
        theta.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_the_multiplicative_rule() -> None:
    gradients = [[1.0, 0.0], [3.0, 4.0], [-1.0, 0.0]]  # cosines 3 / 5 and -3 / 5
    rates = rates_after(gradients, rule="multiplicative", hyper_lr=0.1)
    assert rates == pytest.approx([0.5, 0.5 * 1.06, 0.5 * 1.06 * 0.94])


def test_the_exponential_rule() -> None:
    gradients = [[1.0, 0.0], [-3.0, 4.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    slopes = [-3.0, -3.0, 0.0, 0.8]  # products of neighbors
    logs, square, count = [0.0], 0.0, 0
    for slope in slopes:
        square = 0.9 * square + 0.1 * slope**2
        count += slope != 0
        change = 1.4 / count**0.75 * slope / math.sqrt(square / (1 - 0.9**count))
        logs.append(logs[-1] + min(change, 0.05))
    assert rates_after(gradients) == pytest.approx([0.5 * math.exp(x) for x in logs])
    assert logs[1] == pytest.approx(-1.4)  # brakes at once
    assert logs[4] == logs[3] + 0.05  # and rises with care


def test_the_rate_stays_positive_whatever_comes(lab: Lab, kind: str) -> None:
    theta = nn.Parameter(torch.ones(3))
    optimizer = lab.ours[kind]([theta], lr=1e-300, hyper_lr=5.0)
    for i in range(60):  # every gradient against the last step
        theta.grad = torch.full((3,), (-10.0) ** (i % 30))
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] > 0


def test_additive_rates_are_held_at_zero_with_one_warning() -> None:
    theta = nn.Parameter(torch.zeros(3))
    optimizer = HypergradientSGD([theta], lr=0.1, rule="additive", hyper_lr=1.0)
    gradients = [1.0, -1.0, -1.0, 1.0, -1.0]
    rates = []

    def train_on_them() -> None:
        for gradient in gradients:
            theta.grad = torch.full((3,), gradient)
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])

    with pytest.warns(UserWarning, match="held at 0; a smaller `hyper_lr`") as caught:
        train_on_them()
    assert [each.filename for each in caught] == [__file__]  # where the step was asked for
    assert rates == pytest.approx([0.1, 0.0, 3.0, 0.0, 0.0])  # and from 0 it may rise again


def test_the_additive_rule_may_start_from_zero() -> None:
    theta = nn.Parameter(torch.ones(2))
    optimizer = HypergradientAdam([theta], lr=0.0, rule="additive", hyper_lr=1e-3)
    for _ in range(3):
        theta.grad = torch.ones(2)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] > 0


def test_each_group_has_its_own_rate_or_shares_the_factor() -> None:
    def rates(**options: Any) -> list[float]:
        a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        groups: list[dict[str, Any]] = [{"params": [a]}, {"params": [b], "lr": 0.4}]
        optimizer = HypergradientSGD(groups, lr=0.1, **options)
        for first, second in ((1.0, 1.0), (1.0, -0.5)):
            a.grad, b.grad = torch.full((2,), first), torch.full((2,), second)
            optimizer.step()
        return [group["lr"] for group in optimizer.param_groups]

    own = rates(per_group=True)
    assert own == pytest.approx([0.1 * math.exp(0.05), 0.4 * math.exp(-1.4)])
    # The step was (0.1, 0.4) times the gradient, so the cosine is of (1, -0.5) with (0.1, 0.4).
    cosine = (0.1 - 0.2) / math.hypot(1, 0.5) / math.hypot(0.1, 0.4)
    shared = rates(per_group=False, rule="multiplicative")
    assert shared == pytest.approx([lr * (1 + 0.02 * cosine) for lr in (0.1, 0.4)])


def test_groups_may_have_a_hyper_step_of_their_own() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    groups: list[dict[str, Any]] = [{"params": [a], "hyper_lr": 0.0}, {"params": [b]}]
    optimizer = HypergradientSGD(groups, lr=0.1)
    for _ in range(2):
        a.grad, b.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [
        0.1,
        pytest.approx(0.1 * math.exp(0.05)),
    ]


def test_a_gradient_that_is_not_finite_leaves_the_rate_alone() -> None:
    theta = nn.Parameter(torch.zeros(2))
    optimizer = HypergradientSGD([theta], lr=0.1)
    for gradient in (1.0, math.nan, 1.0):
        theta.grad = torch.full((2,), gradient)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_rates_may_be_set_by_hand() -> None:
    theta = nn.Parameter(torch.zeros(1))
    optimizer = HypergradientSGD([theta], lr=0.1)
    for lr in (0.1, 0.5):
        optimizer.param_groups[0]["lr"] = lr
        theta.grad = torch.ones(1)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * math.exp(0.05))


@pytest.mark.parametrize("start", [1e-6, 1e-3, 1.0])
def test_the_exponential_rule_finds_a_rate_from_any_start(start: float) -> None:
    """Adam on a quadratic: far below the loss at the start, wherever the rate starts."""
    scale = torch.logspace(0, 1, 10)
    theta = nn.Parameter(torch.ones(10))
    optimizer = HypergradientAdam([theta], lr=start)
    for _ in range(600):
        optimizer.zero_grad()
        loss = (scale * theta.square()).sum()
        torch.autograd.backward(loss)
        optimizer.step()
    assert loss.item() < 1e-6
