from __future__ import annotations

from collections.abc import Mapping
from functools import partial
import math
from typing import Any
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim import AdamW
from torch.optim import Optimizer
from torch.optim import SGD

from optuna_ext import HypergradientAdam
from optuna_ext import HypergradientAdamW
from optuna_ext import Schedule
from optuna_ext import T1T2
from optuna_ext.online.t1t2 import Hyperparameter
from optuna_ext.online.t1t2 import InputNoise
from optuna_ext.online.t1t2 import L2


if TYPE_CHECKING:
    from tests.online.t1t2.conftest import Batch
    from tests.online.t1t2.conftest import Lab
    from tests.online.t1t2.conftest import MakeHyperparameters
    from tests.online.t1t2.conftest import MakeOptimizer

K = 4


@pytest.mark.parametrize("unroll", [1, 3])
def test_gradients_are_those_of_central_differences(
    lab: Lab,
    make_optimizer: MakeOptimizer,
    make_hyperparameters: MakeHyperparameters,
    unroll: int,
) -> None:
    net = lab.net()
    tuner = T1T2(
        net,
        make_optimizer(net.parameters()),
        make_hyperparameters(),
        loss=lab.loss,
        n_steps=K,
        every=K,
        unroll=unroll,
    )
    for batch in lab.batches[:K]:
        tuner.step(batch, lab.valid)
    base = tuner.schedule.at(1)
    owners = {name: h for h in make_hyperparameters() for name in h.names(net)}
    for name, found in tuner.hypergradients.items():
        owner = owners[name]

        def value(change: float, name: str = name, owner: Hyperparameter = owner) -> float:
            raw = torch.tensor(owner.to_raw(base[name]) + change, dtype=torch.float64)
            changed = base | {name: owner.to_value(raw).item()}
            points = {1: base, K - unroll + 1: changed}  # only the last steps feel it
            return lab.value_at(
                make_optimizer, make_hyperparameters(), Schedule(points, last=K), n=K
            )

        assert found == pytest.approx(lab.slope(value), rel=1e-6, abs=1e-13)
    assert tuner.hypergradients.keys() == owners.keys()


def test_our_own_optimizers_are_known_too(lab: Lab) -> None:
    found = []
    for kind in (Adam, HypergradientAdam):
        net = lab.net()
        options: dict[str, Any] = {} if kind is Adam else {"hyper_lr": 0.0}
        tuner = T1T2(
            net,
            kind(net.parameters(), 0.01, **options),
            [L2(), InputNoise()],
            n_steps=8,
            every=K,
        )
        for batch in lab.batches:
            tuner.step(batch, lab.valid)
        found.append(tuner.hypergradients)
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_decay_beside_the_gradient_is_by_the_rate_it_was_made_with(lab: Lab) -> None:
    """The optimizer sets another rate before its own part of the step."""
    net = lab.net()
    optimizer = HypergradientAdamW(net.parameters(), 0.01, weight_decay=0.0)
    tuner = T1T2(net, optimizer, [L2(init=0.5, high=1.0)], n_steps=8, every=2)
    tuner.step(lab.batches[0])
    rate = optimizer.param_groups[0]["lr"]
    weights = [p for p in net.parameters() if p.dim() == 2]
    before = [p.detach().clone() for p in weights]
    tuner.backward(lab.batches[1])
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] != rate
    v = torch.autograd.grad(F.cross_entropy(net(lab.valid[0]), lab.valid[1]), weights)
    tuner.update(lab.valid)
    slope = -rate * 0.5 * sum((a * b).sum().item() for a, b in zip(v, before, strict=True))
    assert tuner.hypergradients["l2"] == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("options", [{}, {"trace": 0.9}, {"unroll": 2}])
def test_a_layer_that_a_batch_passes_by_stays(
    lab: Lab, optimizer: str, options: dict[str, Any]
) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)
            self.skips = False

        def forward(self, x: Tensor) -> Tensor:
            a: Tensor = self.a(x)
            return a if self.skips else a + self.b(x)

    def validate(model: nn.Module, batch: Batch) -> Tensor:
        model.skips = False  # type: ignore[assignment]
        return F.cross_entropy(model(batch[0]), batch[1])

    net = Branches().double()
    tuner = T1T2(
        net,
        (Adam if optimizer == "adam" else partial(AdamW, weight_decay=0.0))(net.parameters()),
        [L2(per_layer=True)],
        n_steps=8,
        every=2,
        valid_loss=validate,
        **options,
    )
    for batch in lab.batches[:2]:
        tuner.step(batch, lab.valid)
    assert tuner.hypergradients["l2/b"] != 0
    weight = net.b.weight.detach().clone()
    for batch in lab.batches[2:4]:
        net.skips = True
        tuner.step(batch, lab.valid)
    assert torch.equal(net.b.weight, weight)
    if "trace" not in options:
        assert tuner.hypergradients["l2/b"] == 0
    assert tuner.hypergradients["l2/a"] != 0
    assert tuner.n_skipped == 0


def test_weight_decay_of_the_optimizer_is_part_of_the_step(lab: Lab) -> None:
    """Adam's coupled decay bends its step, and is none of the hyperparameters here."""

    def make_optimizer(params: Any) -> Optimizer:
        return Adam(params, 0.01, weight_decay=0.1)

    net = lab.net()
    tuner = T1T2(net, make_optimizer(net.parameters()), [InputNoise(init=0.3)], n_steps=K, every=K)
    for batch in lab.batches[:K]:
        tuner.step(batch, lab.valid)

    def value(change: float) -> float:
        changed = {"input_noise": 0.3 * math.exp(change)}
        points = {1: {"input_noise": 0.3}, K: changed}
        return lab.value_at(make_optimizer, [InputNoise()], Schedule(points), n=K)

    assert tuner.hypergradients["input_noise"] == pytest.approx(lab.slope(value), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_trace_is_exact_where_the_loss_is_linear(optimizer: str) -> None:
    """Then a step changes a weight by the factor 1 - lr * l2, with which the trace discounts."""
    lr, l2 = 0.1, 0.05

    def linear(model: nn.Module, batch: Tensor, h: Mapping[str, Tensor]) -> Tensor:
        total: Tensor = model(batch).sum()
        return total

    def valid(model: nn.Module, batch: Tensor) -> Tensor:
        value: Tensor = model(batch).square().sum()
        return value

    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    cases: list[dict[str, Any]] = [{"trace": 1 - lr * l2}, {"unroll": K}]
    for options in cases:
        torch.manual_seed(0)
        net = nn.Linear(4, 1).double()
        params = net.parameters()
        inner = SGD(params, lr) if optimizer == "sgd" else AdamW(params, lr, weight_decay=0.0)
        tuner = T1T2(
            net,
            inner,
            [L2(init=l2)],
            loss=linear,
            valid_loss=valid,
            n_steps=K,
            every=K,
            **options,
        )
        for _ in range(K):
            tuner.step(x, x)
        found.append(tuner.hypergradients["l2"])
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_a_held_length_is_that_of_a_rescaled_gradient(lab: Lab) -> None:
    """Differences of a step along the gradient of another noise, as long as that of this one."""
    net = lab.net()
    optimizer = SGD(net.parameters(), 0.1)
    noise = [InputNoise(init=0.3)]
    tuner = T1T2(net, optimizer, noise, n_steps=1, every=1, hold_length=True)
    tuner.step(lab.batches[0], lab.valid)

    def gradient(sigma: float) -> Tensor:
        twin = lab.net()
        schedule = Schedule({1: {"input_noise": sigma}})
        T1T2(twin, SGD(twin.parameters(), 0.1), [InputNoise()], schedule=schedule).backward(
            lab.batches[0]
        )
        return torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])

    present = gradient(0.3)

    def value(change: float) -> float:
        g = gradient(0.3 * math.exp(change))
        twin = lab.net()
        theta = nn.utils.parameters_to_vector(twin.parameters())
        step = 0.1 * g / g.norm() * present.norm()
        nn.utils.vector_to_parameters(theta - step, twin.parameters())
        return F.cross_entropy(twin(lab.valid[0]), lab.valid[1]).item()

    assert tuner.hypergradients["input_noise"] == pytest.approx(lab.slope(value), rel=1e-6)


def test_tied_weights_have_the_derivative_of_both_places(lab: Lab) -> None:
    def run(schedule: Schedule | None) -> tuple[float, dict[str, float]]:
        torch.manual_seed(0)
        first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        second.weight = first.weight
        net = nn.Sequential(first, nn.Tanh(), second).double()
        tuner = T1T2(
            net,
            Adam(net.parameters(), 0.01),
            [L2(init=0.01), InputNoise(init=0.2)],
            n_steps=2 if schedule is None else None,
            every=2,
            schedule=schedule,
        )
        x, y = lab.batches[0][0][:, :3], lab.batches[0][1]
        for _ in range(2):
            tuner.step((x, y), (x, y))
        return F.cross_entropy(net(x), y).item(), tuner.hypergradients

    base = {"l2": 0.01, "input_noise": 0.2}
    for name, found in run(None)[1].items():

        def value(change: float, name: str = name) -> float:
            changed = base | {name: base[name] * math.exp(change)}
            return run(Schedule({1: base, 2: changed}))[0]

        assert found == pytest.approx(lab.slope(value), rel=1e-6)
