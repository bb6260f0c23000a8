from __future__ import annotations

from collections.abc import Callable
import copy
import io
import itertools
import math
from typing import Any
import warnings

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.lr_scheduler import StepLR

from optuna_ext import HypergradientAdam
from optuna_ext import HypergradientAdamW
from optuna_ext import HypergradientSGD


Options = dict[str, Any]
OURS: dict[str, Callable[..., Optimizer]] = {
    "sgd": HypergradientSGD,
    "adam": HypergradientAdam,
    "adamw": HypergradientAdamW,
}
TORCHS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
SGD_OPTIONS: list[Options] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
]
CASES = [("sgd", options) for options in SGD_OPTIONS] + [
    (kind, {"amsgrad": amsgrad}) for kind in ("adam", "adamw") for amsgrad in (False, True)
]
RULES = ("exponential", "multiplicative", "additive")


def make_net(device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device, dtype)


def make_batches(n: int, device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(16, 6, generator=generator).to(device),
            torch.randint(3, (16,), generator=generator).to(device),
        )
        for _ in range(n)
    ]


def train(net: nn.Module, optimizer: Optimizer, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    dtype = next(net.parameters()).dtype
    for x, y in batches:
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(x.to(dtype)), y))
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("maximize", [False, True])
def test_without_hyper_step_it_is_torchs_bit_for_bit(
    kind: str, options: Options, weight_decay: float, maximize: bool, device: str
) -> None:
    options = {"lr": 0.05, "weight_decay": weight_decay, "maximize": maximize, **options}
    ours, theirs = make_net(device), make_net(device)
    batches = make_batches(20, device)
    a = train(ours, OURS[kind](ours.parameters(), hyper_lr=0.0, **options), batches)
    b = train(theirs, TORCHS[kind](theirs.parameters(), foreach=True, **options), batches)
    assert torch.equal(a, b)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_without_hyper_step(kind: str, dtype: torch.dtype) -> None:
    ours, theirs = make_net(dtype=dtype), make_net(dtype=dtype)
    batches = make_batches(10)
    a = train(ours, OURS[kind](ours.parameters(), lr=0.05, hyper_lr=0.0), batches)
    b = train(theirs, TORCHS[kind](theirs.parameters(), lr=0.05, foreach=True), batches)
    assert torch.equal(a, b)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_complex_parameters(kind: str, options: Options) -> None:
    start = torch.randn(5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    target = torch.ones(5, dtype=torch.complex64)
    results = []
    for optimizer_type, more in (
        (TORCHS[kind], {"foreach": True}),
        (OURS[kind], {"hyper_lr": 0.0}),
        (OURS[kind], {}),
    ):
        z = nn.Parameter(start.clone())
        optimizer = optimizer_type([z], lr=0.01, **options, **more)
        for _ in range(10):
            optimizer.zero_grad()
            torch.autograd.backward((z - target).abs().square().sum())
            optimizer.step()
        results.append(z.detach())
    assert torch.equal(results[0], results[1])
    assert (results[2] - target).norm() < (results[1] - target).norm()  # the rate has grown


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


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_the_rate_follows_the_gradient_of_the_next_loss(
    kind: str, options: Options, weight_decay: float
) -> None:
    """With hyper_lr = 1, minus the change of the rate is what central differences say."""
    options = {**options, "weight_decay": weight_decay}
    theta, optimizer = four_steps(OURS[kind], 0.1, rule="additive", hyper_lr=0.0, **options)
    before = optimizer.param_groups[0]["lr"]
    optimizer.zero_grad()
    torch.autograd.backward(next_loss(theta))
    optimizer.step()
    change = optimizer.param_groups[0]["lr"] - before

    def value(lr: float) -> float:
        theta = four_steps(TORCHS[kind], lr, **options)[0].detach()
        coupled = 0.0 if kind == "adamw" else weight_decay / 2  # a penalty is part of the loss
        return float(next_loss(theta) + coupled * theta.square().sum())

    h = 1e-5
    assert change != 0
    assert -change == pytest.approx((value(0.1 + h) - value(0.1 - h)) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("rule", ["exponential", "multiplicative"])
@pytest.mark.parametrize("kind", OURS)
def test_scale_free_rules_know_no_units(kind: str, rule: str) -> None:
    """The loss times 1000 changes no rate (of Adam: no step either)."""
    rates = []
    for scale in (1.0, 1000.0):
        theta = nn.Parameter(torch.ones(4, dtype=torch.float64))
        optimizer = OURS[kind]([theta], lr=1e-5, rule=rule, weight_decay=0.0)
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


@pytest.mark.parametrize("kind", OURS)
def test_the_rate_stays_positive_whatever_comes(kind: str) -> None:
    theta = nn.Parameter(torch.ones(3))
    optimizer = OURS[kind]([theta], lr=1e-300, hyper_lr=5.0)
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
    assert len(caught) == 1
    assert rates == pytest.approx([0.1, 0.0, 3.0, 0.0, 0.0])  # and from 0 it may rise again


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


@pytest.mark.parametrize("kind", OURS)
def test_a_parameter_that_did_not_move_has_no_say(kind: str) -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = OURS[kind]([a, b], lr=0.1, weight_decay=0.0)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    b.grad = None
    optimizer.step()
    a.grad, b.grad = None, torch.ones(2)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step()  # a has no gradient, b has not moved
    assert optimizer.param_groups[0]["lr"] == rate


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("rule", RULES)
def test_state_dict_round_trip_through_a_file(kind: str, options: Options, rule: str) -> None:
    batches = make_batches(12)
    straight = make_net()
    options = {"lr": 1e-3, "rule": rule, **options}
    whole = OURS[kind](straight.parameters(), **options)
    expected = train(straight, whole, batches)

    net = make_net()
    optimizer = OURS[kind](net.parameters(), **options)
    train(net, optimizer, batches[:6])
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    resumed = make_net()
    resumed.load_state_dict(kept["net"])
    again = OURS[kind](resumed.parameters(), **options)
    again.load_state_dict(kept["optimizer"])
    assert torch.equal(train(resumed, again, batches[6:]), expected)
    assert again.param_groups[0]["lr"] == whole.param_groups[0]["lr"]


@pytest.mark.parametrize("kind", OURS)
def test_it_goes_on_from_torchs_own_state(kind: str) -> None:
    batches = make_batches(10)
    options: Options = {"lr": 0.01, "momentum": 0.9} if kind == "sgd" else {"lr": 0.01}
    net = make_net()
    theirs = TORCHS[kind](net.parameters(), foreach=True, **options)
    train(net, theirs, batches[:5])
    copied = copy.deepcopy(net)
    ours = OURS[kind](copied.parameters(), hyper_lr=0.0, **options)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert torch.equal(train(copied, ours, batches[5:]), train(net, theirs, batches[5:]))


@pytest.mark.parametrize("kind", OURS)
def test_a_copy_goes_on_as_the_original(kind: str) -> None:
    net = make_net()
    optimizer = OURS[kind](net.parameters(), lr=1e-3)
    train(net, optimizer, make_batches(5))
    other_net, other = copy.deepcopy((net, optimizer))
    a, b = train(net, optimizer, make_batches(5)), train(other_net, other, make_batches(5))
    assert torch.equal(a, b)
    assert optimizer.param_groups[0]["lr"] == other.param_groups[0]["lr"] != 1e-3


@pytest.mark.parametrize("kind", OURS)
def test_closures_are_called_once_with_gradients(kind: str) -> None:
    net, twin = make_net(), make_net()
    optimizer, plain = OURS[kind](net.parameters()), OURS[kind](twin.parameters())
    batches = make_batches(5)
    calls = []
    for x, y in batches:

        def closure(x: Tensor = x, y: Tensor = y) -> float:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            torch.autograd.backward(loss)
            calls.append(loss.item())
            return calls[-1]

        assert optimizer.step(closure) == calls[-1]
    assert len(calls) == 5
    assert torch.equal(
        train(twin, plain, batches), nn.utils.parameters_to_vector(net.parameters())
    )


@pytest.mark.parametrize("kind", OURS)
def test_hooks_are_called_once_a_step(kind: str) -> None:
    TORCHS[kind]([nn.Parameter(torch.zeros(1))])  # which wraps the step of torch's class
    net = make_net()
    optimizer = OURS[kind](net.parameters())
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(net, optimizer, make_batches(2))
    assert calls == ["before", "after"] * 2


@pytest.mark.parametrize("kind", OURS)
def test_gradient_scaler_changes_nothing_and_skips_overflows(kind: str) -> None:
    net, twin = make_net(), make_net()
    scaled, plain = OURS[kind](net.parameters()), OURS[kind](twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i, (x, y) in enumerate(make_batches(6)):
        scaled.zero_grad()
        torch.autograd.backward(scaler.scale(F.cross_entropy(net(x), y)))
        if i == 3:
            next(net.parameters()).grad.mul_(math.inf)  # type: ignore[union-attr]
        scaler.step(scaled)
        scaler.update()
        if i != 3:
            train(twin, plain, [(x, y)])
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5)
    assert scaled.param_groups[0]["lr"] == pytest.approx(plain.param_groups[0]["lr"], rel=1e-5)


def test_a_gradient_that_is_not_finite_leaves_the_rate_alone() -> None:
    theta = nn.Parameter(torch.zeros(2))
    optimizer = HypergradientSGD([theta], lr=0.1)
    for gradient in (1.0, math.nan, 1.0):
        theta.grad = torch.full((2,), gradient)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("kind", OURS)
def test_zeroing_gradients_in_place_changes_nothing(kind: str) -> None:
    nets = make_net(), make_net()
    optimizers = [OURS[kind](net.parameters()) for net in nets]
    for (x, y), set_to_none in itertools.product(make_batches(4), (True, False)):
        net, optimizer = nets[set_to_none], optimizers[set_to_none]
        torch.autograd.backward(F.cross_entropy(net(x), y))
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
    assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"] != 1e-3


def test_memory_formats_may_differ() -> None:
    nets = [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[1].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rates = []
    for net in nets:
        optimizer = HypergradientAdamW(net.parameters())
        for i in range(5):
            x = torch.full((2, 3, 8, 8), float(i)).sin()
            optimizer.zero_grad()
            torch.autograd.backward(
                net(x.contiguous(memory_format=torch.channels_last)).square().mean()
            )
            optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(rates[1], rel=1e-4)


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


@pytest.mark.parametrize("kind", OURS)
def test_schedulers_are_refused_at_once(kind: str) -> None:
    optimizer = OURS[kind]([nn.Parameter(torch.zeros(1))])
    with pytest.raises(RuntimeError, match="sets its own learning rate: use no scheduler"):
        StepLR(optimizer, step_size=1)


@pytest.mark.parametrize("kind", OURS)
def test_reducing_the_rate_on_plateaus_is_refused_when_it_happens(kind: str) -> None:
    theta = nn.Parameter(torch.zeros(1))
    optimizer = OURS[kind]([theta], lr=0.1)
    scheduler = ReduceLROnPlateau(optimizer, patience=0)
    theta.grad = torch.ones(1)
    optimizer.step()
    scheduler.step(1.0)
    optimizer.step()
    scheduler.step(1.0)  # no better
    with pytest.raises(RuntimeError, match="sets its own learning rate: use no scheduler"):
        optimizer.step()


def test_rates_may_be_set_by_hand() -> None:
    theta = nn.Parameter(torch.zeros(1))
    optimizer = HypergradientSGD([theta], lr=0.1)
    for lr in (0.1, 0.5):
        optimizer.param_groups[0]["lr"] = lr
        theta.grad = torch.ones(1)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * math.exp(0.05))


@pytest.mark.parametrize("now", [{"nesterov": True}, {"momentum": 0.0}])
def test_the_momentum_may_be_changed_while_it_trains(now: Options) -> None:
    """A direction is never written where the momentum is kept."""
    theta = nn.Parameter(torch.zeros(1))
    optimizer = HypergradientSGD([theta], momentum=0.9)
    for change in ({}, now, {"momentum": 0.9}):
        optimizer.param_groups[0] |= change
        theta.grad = torch.ones(1)
        optimizer.step()
    steps = 3 if "nesterov" in now else 2
    momentum = sum(0.9**i for i in range(steps))
    assert optimizer.state[theta]["momentum_buffer"].item() == pytest.approx(momentum)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = HypergradientSGD(embedding.parameters())
    torch.autograd.backward(embedding(torch.tensor([1])).sum())
    with pytest.raises(RuntimeError, match="needs dense gradients, .* sparse=False"):
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sgd", {"lr": -1.0}, "`lr` must be at least 0 and finite, but got -1"),
        ("sgd", {"lr": 0.0}, "`lr` must be positive with rule='exponential'"),
        ("sgd", {"lr": math.inf}, "`lr` must be at least 0 and finite"),
        ("sgd", {"momentum": 1.0}, r"`momentum` must be in \[0, 1\), but got 1.0"),
        ("sgd", {"dampening": 2.0}, "`dampening` must be in"),
        ("sgd", {"nesterov": True}, "`nesterov` needs a positive `momentum`"),
        ("sgd", {"weight_decay": -1.0}, "`weight_decay` must be at least 0, but got -1"),
        ("adam", {"betas": (0.9, 1.0)}, r"`betas` must be in \[0, 1\)"),
        ("adam", {"eps": -1.0}, "`eps` must be at least 0"),
        ("adamw", {"hyper_lr": -0.1}, "`hyper_lr` must be at least 0"),
        ("adam", {"hyper_lr": 1.0, "rule": "multiplicative"}, "`hyper_lr` must be below 1"),
        ("adam", {"rule": "exp"}, "`rule` must be one of .*'exponential'.* but got 'exp'"),
    ],
)
def test_mistakes_in_one_sentence(kind: str, options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OURS[kind]([nn.Parameter(torch.zeros(1))], **options)


def test_the_rate_is_a_number() -> None:
    with pytest.raises(TypeError, match="`lr` must be a float, but got tensor"):
        HypergradientSGD([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))  # type: ignore[arg-type]


def test_the_additive_rule_may_start_from_zero() -> None:
    theta = nn.Parameter(torch.ones(2))
    optimizer = HypergradientAdam([theta], lr=0.0, rule="additive", hyper_lr=1e-3)
    for _ in range(3):
        theta.grad = torch.ones(2)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] > 0


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in OURS:
            net = make_net()
            train(net, OURS[kind](net.parameters()), make_batches(3))
