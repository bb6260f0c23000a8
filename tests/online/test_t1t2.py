from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import copy
import io
import math
from typing import Any

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
from optuna_ext.online.t1t2 import Dropout
from optuna_ext.online.t1t2 import HiddenNoise
from optuna_ext.online.t1t2 import Hyperparameter
from optuna_ext.online.t1t2 import InputNoise
from optuna_ext.online.t1t2 import L2
from optuna_ext.online.t1t2 import LabelSmoothing
from optuna_ext.online.t1t2 import Mixup


Batch = tuple[Tensor, Tensor]
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda params: SGD(params, 0.1),
    "momentum": lambda params: SGD(params, 0.1, momentum=0.9),
    "nesterov": lambda params: SGD(params, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda params: Adam(params, 0.01),
    "adamw": lambda params: AdamW(params, 0.01, weight_decay=0.0),
}
HYPERPARAMETERS: dict[str, Callable[[], list[Hyperparameter]]] = {
    "l2": lambda: [L2(init=1e-2)],
    "l2-per-layer": lambda: [L2(per_layer=True, init=1e-2)],
    "input-noise": lambda: [InputNoise(init=0.3)],
    "hidden-noise": lambda: [HiddenNoise(init=0.3)],
    "dropout": lambda: [Dropout(init=0.3)],
    "label-smoothing": lambda: [LabelSmoothing(3, init=0.1)],
    "mixup": lambda: [Mixup(3, init=0.3)],
    "loss-weight": lambda: [Hyperparameter("weight", init=0.5, low=0.01, high=9.0)],
    "temperature": lambda: [
        Hyperparameter("temperature", init=1.5, low=0.1, high=9.0, scale="softplus")
    ],
    "all": lambda: [
        Mixup(3, init=0.3),
        LabelSmoothing(3, init=0.1),
        L2(per_layer=True, init=1e-2),
        InputNoise(init=0.3),
        Dropout(init=0.2),
    ],
}


def loss(model: nn.Module, batch: Batch, h: Mapping[str, Tensor]) -> Tensor:
    x, y = batch
    outputs = model(x)
    total = F.cross_entropy(outputs / h["temperature"] if "temperature" in h else outputs, y)
    if "weight" in h:
        total = total + h["weight"] * outputs.square().mean()
    return total


def make_net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, 3)
    return nn.Sequential(*layers).to(dtype)


def make_batches(n: int, rows: int = 12, dtype: torch.dtype = torch.float64) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(rows, 5, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(3, (rows,), generator=generator),
        )
        for _ in range(n)
    ]


*BATCHES, VALID = make_batches(9)
K = 4


def value_at(
    make_optimizer: Callable[..., Optimizer],
    hyperparameters: list[Hyperparameter],
    schedule: Schedule,
) -> float:
    """Train for K steps by the schedule; return the validation loss."""
    net = make_net()
    tuner = T1T2(
        net, make_optimizer(net.parameters()), hyperparameters, loss=loss, schedule=schedule
    )
    for batch in BATCHES[:K]:
        tuner.step(batch)
    net.eval()
    return F.cross_entropy(net(VALID[0]), VALID[1]).item()


def slope(values: Callable[[float], float], h: float = 1e-3) -> float:
    """Differentiate by central differences of fourth order."""
    near, far = values(h) - values(-h), values(2 * h) - values(-2 * h)
    return (8 * near - far) / (12 * h)


@pytest.mark.parametrize("kind", HYPERPARAMETERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("unroll", [1, 3])
def test_gradients_are_those_of_central_differences(
    kind: str, optimizer: str, unroll: int
) -> None:
    make_optimizer, make = OPTIMIZERS[optimizer], HYPERPARAMETERS[kind]
    net = make_net()
    tuner = T1T2(
        net,
        make_optimizer(net.parameters()),
        make(),
        loss=loss,
        n_steps=K,
        every=K,
        unroll=unroll,
    )
    for batch in BATCHES[:K]:
        tuner.step(batch, VALID)
    base = tuner.schedule.at(1)
    owners = {name: h for h in make() for name in h.names(net)}
    for name, found in tuner.hypergradients.items():
        owner = owners[name]

        def value(change: float, name: str = name, owner: Hyperparameter = owner) -> float:
            raw = torch.tensor(owner.to_raw(base[name]) + change, dtype=torch.float64)
            changed = base | {name: owner.to_value(raw).item()}
            points = {1: base, K - unroll + 1: changed}  # only the last steps feel it
            return value_at(make_optimizer, make(), Schedule(points, last=K))

        assert found == pytest.approx(slope(value), rel=1e-6, abs=1e-13)
    assert tuner.hypergradients.keys() == owners.keys()


def test_our_own_optimizers_are_known_too() -> None:
    found = []
    for kind in (Adam, HypergradientAdam):
        net = make_net()
        options: dict[str, Any] = {} if kind is Adam else {"hyper_lr": 0.0}
        tuner = T1T2(
            net,
            kind(net.parameters(), 0.01, **options),
            [L2(), InputNoise()],
            n_steps=8,
            every=K,
        )
        for batch in BATCHES:
            tuner.step(batch, VALID)
        found.append(tuner.hypergradients)
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_decay_beside_the_gradient_is_by_the_rate_it_was_made_with() -> None:
    """The optimizer sets another rate before its own part of the step."""
    net = make_net()
    optimizer = HypergradientAdamW(net.parameters(), 0.01, weight_decay=0.0)
    tuner = T1T2(net, optimizer, [L2(init=0.5, high=1.0)], n_steps=8, every=2)
    tuner.step(BATCHES[0])
    rate = optimizer.param_groups[0]["lr"]
    weights = [p for p in net.parameters() if p.dim() == 2]
    before = [p.detach().clone() for p in weights]
    tuner.backward(BATCHES[1])
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] != rate
    v = torch.autograd.grad(F.cross_entropy(net(VALID[0]), VALID[1]), weights)
    tuner.update(VALID)
    slope = -rate * 0.5 * sum((a * b).sum().item() for a, b in zip(v, before, strict=True))
    assert tuner.hypergradients["l2"] == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("options", [{}, {"trace": 0.9}, {"unroll": 2}])
def test_a_layer_that_a_batch_passes_by_stays(optimizer: str, options: dict[str, Any]) -> None:
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
        OPTIMIZERS[optimizer](net.parameters()),
        [L2(per_layer=True)],
        n_steps=8,
        every=2,
        valid_loss=validate,
        **options,
    )
    for batch in BATCHES[:2]:
        tuner.step(batch, VALID)
    assert tuner.hypergradients["l2/b"] != 0
    weight = net.b.weight.detach().clone()
    for batch in BATCHES[2:4]:
        net.skips = True
        tuner.step(batch, VALID)
    assert torch.equal(net.b.weight, weight)
    if "trace" not in options:
        assert tuner.hypergradients["l2/b"] == 0
    assert tuner.hypergradients["l2/a"] != 0
    assert tuner.n_skipped == 0


def test_a_look_at_the_loss_leaves_running_statistics_alone() -> None:
    net = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    tuner = T1T2(net, SGD(net.parameters(), 0.1), [InputNoise()], n_steps=2, every=2)
    for batch in BATCHES[:2]:
        tuner.step(batch, VALID)
    assert net[0].num_batches_tracked == 2


def test_weight_decay_of_the_optimizer_is_part_of_the_step() -> None:
    """Adam's coupled decay bends its step, and is none of the hyperparameters here."""

    def make_optimizer(params: Any) -> Optimizer:
        return Adam(params, 0.01, weight_decay=0.1)

    net = make_net()
    tuner = T1T2(net, make_optimizer(net.parameters()), [InputNoise(init=0.3)], n_steps=K, every=K)
    for batch in BATCHES[:K]:
        tuner.step(batch, VALID)

    def value(change: float) -> float:
        changed = {"input_noise": 0.3 * math.exp(change)}
        points = {1: {"input_noise": 0.3}, K: changed}
        return value_at(make_optimizer, [InputNoise()], Schedule(points))

    assert tuner.hypergradients["input_noise"] == pytest.approx(slope(value), rel=1e-6)


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


def test_a_held_length_is_that_of_a_rescaled_gradient() -> None:
    """Differences of a step along the gradient of another noise, as long as that of this one."""
    net = make_net()
    optimizer = SGD(net.parameters(), 0.1)
    noise = [InputNoise(init=0.3)]
    tuner = T1T2(net, optimizer, noise, n_steps=1, every=1, hold_length=True)
    tuner.step(BATCHES[0], VALID)

    def gradient(sigma: float) -> Tensor:
        twin = make_net()
        schedule = Schedule({1: {"input_noise": sigma}})
        T1T2(twin, SGD(twin.parameters(), 0.1), [InputNoise()], schedule=schedule).backward(
            BATCHES[0]
        )
        return torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])

    present = gradient(0.3)

    def value(change: float) -> float:
        g = gradient(0.3 * math.exp(change))
        twin = make_net()
        theta = nn.utils.parameters_to_vector(twin.parameters())
        step = 0.1 * g / g.norm() * present.norm()
        nn.utils.vector_to_parameters(theta - step, twin.parameters())
        return F.cross_entropy(twin(VALID[0]), VALID[1]).item()

    assert tuner.hypergradients["input_noise"] == pytest.approx(slope(value), rel=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_l2_trains_as_the_optimizers_own_weight_decay(optimizer: str) -> None:
    net, twin = make_net(), make_net()
    tuner = T1T2(
        net,
        OPTIMIZERS[optimizer](net.parameters()),
        [L2()],
        schedule=Schedule({1: {"l2": 0.05}}),
    )
    plain = OPTIMIZERS[optimizer](
        [
            {"params": [p for p in twin.parameters() if p.dim() > 1], "weight_decay": 0.05},
            {"params": [p for p in twin.parameters() if p.dim() == 1]},
        ]
    )
    for x, y in BATCHES:
        tuner.step((x, y))
        plain.zero_grad()
        torch.autograd.backward(F.cross_entropy(twin(x), y))
        plain.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12)


def test_the_three_parts_are_the_step() -> None:
    nets = make_net(), make_net()
    tuners = [T1T2(n, Adam(n.parameters()), [InputNoise()], n_steps=8, every=2) for n in nets]
    for batch in BATCHES:
        whole = tuners[0].step(batch, VALID)
        part = tuners[1].backward(batch)
        tuners[1].optimizer.step()
        tuners[1].update(VALID if tuners[1].is_due else None)
        assert torch.equal(whole, part)
    assert tuners[0].schedule == tuners[1].schedule


def test_a_schedule_is_followed_and_nothing_is_tuned() -> None:
    net = make_net()
    make = HYPERPARAMETERS["all"]
    tuner = T1T2(net, Adam(net.parameters()), make(), n_steps=8, every=2)
    for batch in BATCHES:
        tuner.step(batch, VALID)
    again = make_net()
    follower = T1T2(again, Adam(again.parameters()), make(), schedule=tuner.schedule)
    for batch in BATCHES:
        assert not follower.is_due
        follower.step(batch)
    for step in range(1, 9):
        assert follower.schedule.at(step) == pytest.approx(tuner.schedule.at(step))
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.allclose(p, q)


def test_validation_is_without_noise_and_in_evaluation_mode() -> None:
    seen: list[tuple[bool, Tensor]] = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, x.detach().clone()))
            return super().forward(x)

    net = nn.Sequential(nn.BatchNorm1d(5), Spy(5, 3)).double()
    net[0].eval()  # frozen statistics stay frozen
    optimizer = SGD(net.parameters(), 1e-9)
    tuner = T1T2(net, optimizer, [HiddenNoise(modules=["0"])], n_steps=1, every=1)
    tuner.step(BATCHES[0], VALID)
    (checked, _), (trained, noisy), (validated, clean) = seen
    assert (checked, trained, validated) == (True, True, False)
    assert torch.allclose(clean, VALID[0], rtol=1e-4)  # but for batch norm's epsilon
    assert not torch.allclose(noisy, BATCHES[0][0], rtol=1e-2)
    assert [module.training for module in net] == [False, True]


def test_values_stay_within_their_bounds_and_get_there() -> None:
    """The weight of the only term: validation wants longer steps."""

    def weighted(model: nn.Module, batch: Batch, h: Mapping[str, Tensor]) -> Tensor:
        return h["weight"] * loss(model, batch, {})

    net = make_net()
    weight = Hyperparameter("weight", init=0.02, low=0.01, high=2.0)
    tuner = T1T2(net, SGD(net.parameters(), 0.01), [weight], loss=weighted, n_steps=200, every=2)
    for _ in range(200):
        tuner.step(BATCHES[0], BATCHES[0])
        assert 0.01 <= tuner.values["weight"] <= 2.0 + 1e-9
    assert tuner.values["weight"] == pytest.approx(2.0)


def test_hypergradients_that_are_not_finite_are_skipped_and_counted() -> None:
    net = make_net()
    tuner = T1T2(net, Adam(net.parameters()), [InputNoise()], n_steps=8, every=1)
    for i, batch in enumerate(BATCHES):
        tuner.step(batch, (VALID[0] * (math.nan if i == 3 else 1.0), VALID[1]))
    assert tuner.n_skipped == 1
    assert math.isfinite(tuner.values["input_noise"])
    assert tuner.schedule.at(5) == tuner.schedule.at(4)


def test_an_outlier_is_clipped() -> None:
    values = []
    for factor in (1.0, 1e9):
        net = make_net()
        tuner = T1T2(
            net,
            SGD(net.parameters(), 1e-3),
            [Hyperparameter("weight", init=1.0, low=1e-6, high=1e6)],
            loss=loss,
            valid_loss=lambda model, batch: batch[2] * F.cross_entropy(model(batch[0]), batch[1]),
            n_steps=1000,
            every=1,
        )
        for i, batch in enumerate(BATCHES):
            tuner.step(batch, (*VALID, factor if i == 4 else 1.0))
        values.append(math.log(tuner.values["weight"]))
    assert abs(values[1] - values[0]) < 3 * abs(values[0])  # not a billion times


def test_state_dict_round_trip_through_a_file() -> None:
    def start() -> tuple[nn.Sequential, Optimizer, T1T2]:
        net = make_net()
        optimizer = Adam(net.parameters())
        make = HYPERPARAMETERS["all"]
        return net, optimizer, T1T2(net, optimizer, make(), n_steps=8, every=2)

    net, optimizer, tuner = start()
    for batch in BATCHES[:4]:
        tuner.step(batch, VALID)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (net, optimizer, tuner)], file)
    for batch in BATCHES[4:]:
        tuner.step(batch, VALID)
    file.seek(0)
    resumed = start()
    states = torch.load(file, weights_only=True)
    resumed[0].load_state_dict(states[0])
    resumed[1].load_state_dict(states[1])
    resumed[2].load_state_dict(states[2])
    for batch in BATCHES[4:]:
        resumed[2].step(batch, VALID)
    assert resumed[2].schedule == tuner.schedule
    for p, q in zip(net.parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(p, q)


def test_frozen_layers_and_shared_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(7, 4)
            self.hidden = nn.Linear(4, 4)
            self.frozen = nn.Linear(4, 4)
            self.frozen.requires_grad_(False)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            result: Tensor = self.out(self.frozen(torch.tanh(self.hidden(self.embedding(tokens)))))
            return result

    net = Tied().double()
    before = copy.deepcopy(net.frozen.state_dict())
    hyperparameters = [L2(per_layer=True, init=1e-3), HiddenNoise(modules=["hidden"])]
    tuner = T1T2(net, Adam(net.parameters(), 0.01), hyperparameters, n_steps=20, every=2)
    tokens = torch.arange(7)
    for _ in range(20):
        tuner.step((tokens, tokens.roll(1)), (tokens, tokens.roll(1)))
    assert list(tuner.values) == ["l2/embedding", "l2/hidden", "hidden_noise"]
    assert all(torch.equal(before[name], p) for name, p in net.frozen.state_dict().items())
    assert net.out.weight is net.embedding.weight
    assert tuner.n_skipped == 0


def test_tied_weights_have_the_derivative_of_both_places() -> None:
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
        x, y = BATCHES[0][0][:, :3], BATCHES[0][1]
        for _ in range(2):
            tuner.step((x, y), (x, y))
        return F.cross_entropy(net(x), y).item(), tuner.hypergradients

    base = {"l2": 0.01, "input_noise": 0.2}
    for name, found in run(None)[1].items():

        def value(change: float, name: str = name) -> float:
            changed = base | {name: base[name] * math.exp(change)}
            return run(Schedule({1: base, 2: changed}))[0]

        assert found == pytest.approx(slope(value), rel=1e-6)


def test_batches_of_t2_may_come_from_an_iterator() -> None:
    net = make_net()
    tuner = T1T2(net, Adam(net.parameters()), [L2()], n_steps=8, every=2)
    valid = iter([VALID, VALID])
    for batch in BATCHES[:5]:
        tuner.step(batch, valid)
    with pytest.raises(ValueError, match="Step 6 needs a batch of T2, but there is none"):
        tuner.step(BATCHES[5], valid)


def test_tuning_in_bfloat16_leaves_training_alone() -> None:
    results = []
    for amp in (False, True):
        net = make_net(torch.float32)
        tuner = T1T2(
            net,
            SGD(net.parameters(), 0.1),
            [InputNoise(init=0.3), L2(init=1e-2)],
            n_steps=K,
            every=K,
            amp=amp,
        )
        for x, y in BATCHES[:K]:
            tuner.step((x.float(), y), (VALID[0].float(), VALID[1]))
        results.append((nn.utils.parameters_to_vector(net.parameters()), tuner.hypergradients))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == pytest.approx(results[1][1], rel=0.1)
    assert results[0][1] != results[1][1]


def test_it_keeps_a_net_from_learning_by_heart(device: str) -> None:
    """Few rows with much noise: from almost no regularization it finds enough of it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2400, 20, generator=generator)
    y = (x[:, :3].sum(1) + torch.randn(2400, generator=generator) > 0).long()
    x, y = x.to(device), y.to(device)
    t2, test = (x[200:400], y[200:400]), (x[400:], y[400:])
    start = {"l2": 1e-6, "input_noise": 0.05}
    losses = []
    for schedule in (None, Schedule({1: start})):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 2)).to(device)
        tuner = T1T2(
            net,
            Adam(net.parameters(), 3e-3),
            [L2(init=1e-6), InputNoise(init=0.05)],
            n_steps=None if schedule else 600,
            every=5,
            schedule=schedule,
        )
        for i in range(600):
            rows = slice(i % 4 * 50, i % 4 * 50 + 50)
            tuner.step((x[rows], y[rows]), t2)
        with torch.no_grad():
            losses.append(F.cross_entropy(net(test[0]), test[1]).item())
    assert losses[0] < 0.7 * losses[1]


def tune(**options: Any) -> T1T2:
    net = options.pop("net", None) or make_net()
    optimizer = options.pop("optimizer", None) or Adam(net.parameters())
    hyperparameters = options.pop("hyperparameters", [L2()])
    return T1T2(net, optimizer, hyperparameters, **({"n_steps": 8} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "`every` must be at least 1"),
        ({"n_steps": 0}, "`n_steps` must be at least 1"),
        ({"n_steps": None}, "Give `n_steps` to tune or `schedule` to follow"),
        ({"trace": 1.0}, r"`trace` must be in \[0, 1\), but got 1.0"),
        ({"unroll": 11}, "`unroll` must be at most 10"),
        ({"unroll": 2, "trace": 0.5}, "two ways to look back"),
        ({"unroll": 2, "hold_length": True}, "`hold_length` works with `unroll=1`"),
        ({"hyperparameters": []}, "`hyperparameters` must not be empty"),
        ({"hyperparameters": [L2(), L2()]}, "`hyperparameters` has two of the name 'l2'"),
        ({"hyperparameters": [Dropout(modules=["9"])]}, "`modules` of Dropout must be names"),
        (
            {"net": nn.Sequential(nn.Linear(5, 3)), "hyperparameters": [HiddenNoise()]},
            "HiddenNoise found no activation modules",
        ),
        ({"net": nn.Sequential(nn.LayerNorm(5))}, "L2 has nothing to decay"),
    ],
)
def test_mistakes_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(**options)


def test_optimizers_without_a_known_derivative_are_refused() -> None:
    net = make_net()
    with pytest.raises(TypeError, match="must be a torch.optim.SGD, Adam or AdamW.* got RMSprop"):
        tune(net=net, optimizer=torch.optim.RMSprop(net.parameters()))
    with pytest.raises(ValueError, match="`optimizer` must not use amsgrad, but got True"):
        tune(net=net, optimizer=Adam(net.parameters(), amsgrad=True))
    with pytest.raises(ValueError, match="takes the place of .* AdamW with weight_decay=0"):
        tune(net=net, optimizer=AdamW(net.parameters()))
    with pytest.raises(ValueError, match="a weight that the optimizer does not have"):
        tune(net=net, optimizer=Adam(net[0].parameters()))


@pytest.mark.parametrize(
    ("hyperparameter", "message"),
    [
        (lambda: InputNoise(init=0.0), "`init` of 'input_noise' must be in"),
        (lambda: InputNoise(low=0.0), "`low` and `high` of 'input_noise' must be in increasing"),
        (lambda: Dropout(high=1.0), "between 0 and 1.0 with scale='logit'"),
        (
            lambda: Hyperparameter("x", init=1, low=0.1, high=2, scale="linear"),  # type: ignore[arg-type]
            "`scale` must be one of .*'softplus'.* but got 'linear'",
        ),
    ],
)
def test_hyperparameters_check_themselves(
    hyperparameter: Callable[[], Hyperparameter], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hyperparameter()


def test_an_unused_hyperparameter_is_named_before_the_first_step() -> None:
    net = make_net()
    before = copy.deepcopy(net.state_dict())
    unused = Hyperparameter("unused", init=0.5, low=0.1, high=1.0)
    tuner = tune(net=net, hyperparameters=[InputNoise(), unused])
    with pytest.raises(ValueError, match="training loss does not depend on 'unused'"):
        tuner.step(BATCHES[0], VALID)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_constant_summand_is_named_too() -> None:
    def with_constant(model: nn.Module, batch: Batch, h: Mapping[str, Tensor]) -> Tensor:
        return loss(model, batch, {}) + h["constant"]

    constant = Hyperparameter("constant", init=0.5, low=0.1, high=1.0)
    tuner = tune(hyperparameters=[constant], loss=with_constant, every=1)
    with pytest.raises(ValueError, match="gradient of the training loss .* on 'constant'"):
        tuner.step(BATCHES[0], VALID)
