"""Recorded steps: the same to the last bit as the steps themselves, or not taken at all.

Machines without a GPU have an emulation instead: like a CUDA graph, it takes the same operations
again on the same tensors, whatever Python would do by then.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import gc
import random
from typing import Any
import weakref

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import Adam
from torch.optim import AdamW
from torch.optim import Optimizer
from torch.optim import SGD

from optuna_ext.fused import binary_cross_entropy
from optuna_ext.fused import Dropout
from optuna_ext.fused import GaussianNoise
from optuna_ext.fused import Member
from optuna_ext.fused import Population
from optuna_ext.fused._graphs import RECORDERS


ENGINES = ["stack", "vmap", "grad"]
REPLAYED = "Its steps are replayed as CUDA graphs."
Points = tuple[Tensor, Tensor]
Rows = Sequence[Tensor]
Replay = Callable[[], None]

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], int], Optimizer]] = {
    "sgd": lambda p, i: SGD(p, lr=0.1 * (i + 1), weight_decay=0.01 * (i % 2)),
    "momentum": lambda p, i: SGD(p, lr=0.1, momentum=0.1 * i, dampening=0.1, weight_decay=0.01),
    "nesterov": lambda p, i: SGD(p, lr=0.1, momentum=0.1 * (i + 1), nesterov=True),
    "adam": lambda p, i: Adam(p, lr=0.01, betas=(0.1 * i, 0.9), weight_decay=0.1 * i),
    "adamw": lambda p, i: AdamW(p, lr=0.01, eps=10.0 ** (-8 + i), weight_decay=0.1 * i),
    "groups": lambda p, i: Adam(
        [{"params": p[1::2], "lr": 0.1}, {"params": p[::2], "weight_decay": 0.1}], lr=0.01
    ),
}


@pytest.fixture
def assert_same(
    recording: Callable[..., None], device: str
) -> Callable[[Callable[[], tuple[Population, Rows]]], Population]:
    """Train with steps as they are and with recorded ones, and compare all there is."""

    def check(train: Callable[[], tuple[Population, Rows]]) -> Population:
        with pytest.MonkeyPatch.context() as patch:
            patch.delitem(RECORDERS, device, raising=False)
            plain, expected = train()
        assert "CUDA graph" not in plain.reason
        recording()
        population, found = train()
        # Kernels of a GPU may add in another order each time.
        exact = 0.0 if device == "cpu" else 1e-10
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=exact, atol=exact, equal_nan=True)
        for slot in plain.taken:
            states = population.state_of(slot), plain.state_of(slot)
            torch.testing.assert_close(*states, rtol=exact, atol=exact)
        return population

    return check


def epochs(population: Population, n: int, points: Points, **options: Any) -> list[Tensor]:
    """Train for some epochs; return the losses of those who are there."""
    return [population.train_epoch(*points, **options)[population.taken] for _ in range(n)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_recorded_steps_are_the_same_for_a_whole_life(
    engine: str,
    name: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
    emulated: Any,
    assert_same: Callable[..., Population],
) -> None:
    def member(i: int) -> Member:
        model = mlp(i)
        optimizer = OPTIMIZERS[name]([*model.parameters()], i)
        return Member(
            model=model,
            optimizer=optimizer,
            batch_size=20,  # 5 steps, the last one with 10 rows
            seed=i,
            schedule=lambda epoch: 1 / (epoch + i + 1),
        )

    def train() -> tuple[Population, list[Tensor]]:
        population = together([member(i) for i in range(4)], slots=5, engine=engine)
        found = epochs(population, 2, points)
        made = emulated.made
        population.set_hyperparameters(1, lr=0.05)
        found += epochs(population, 1, points)
        population.release(2)
        found += epochs(population, 1, points)
        population.admit(2, member(7))
        population.copy([0, 1], [1, 3])
        found += epochs(population, 1, points)
        assert emulated.made == made  # all of it in place
        population.compact([3, 1, 2])
        return population, found + epochs(population, 2, points)

    population = assert_same(train)
    assert population.reason.endswith(REPLAYED)


BACKWARDS = torch.arange(90).flip(0)
FEEDS: dict[str, tuple[Sequence[int | None], Tensor | None, int]] = {  # sizes, order, passes
    "one order": ([20, 20, 20], BACKWARDS, 1),
    "one order, different sizes": ([20, 32, 90], BACKWARDS, 1),
    "different sizes": ([17, 32, None], None, 1),
    "all rows": ([None, None, 90], None, 6),
    "two passes": ([40, 40, 40], None, 2),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("feed", FEEDS)
def test_recorded_steps_are_the_same_for_all_feeds(
    engine: str,
    feed: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
    emulated: Any,
    assert_same: Callable[..., Population],
) -> None:
    sizes, order, passes = FEEDS[feed]
    order = None if order is None else order.to(points[0].device)

    def member(i: int) -> Member:
        model = mlp(i, widths=(2, 9 + i, 1))  # in slots of 16 units
        optimizer = Adam(model.parameters(), lr=0.01)
        return Member(model=model, optimizer=optimizer, batch_size=sizes[i], seed=i)

    def train() -> tuple[Population, list[Tensor]]:
        population = together([member(i) for i in range(3)], slots=4, engine=engine)
        return population, epochs(population, 4, points, order=order, passes=passes)

    assert assert_same(train).reason.endswith(REPLAYED)
    assert not points[0].is_cpu or emulated.replayed >= 20


@pytest.mark.parametrize("engine", ["vmap", "grad"])
@pytest.mark.parametrize("sizes", [(20, 20, 20), (18, 30, 90)])
def test_recorded_layers_with_buffers_are_the_same(
    engine: str,
    sizes: Sequence[int],
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
    assert_same: Callable[..., Population],
) -> None:
    def member(i: int) -> Member:
        model = mlp(i)
        model.insert(1, Dropout(0.2 * i, seed=i)).append(GaussianNoise(0.1, seed=i).double())
        if len({*sizes}) == 1:
            model.insert(1, nn.BatchNorm1d(5).double())
        model[0].bias.requires_grad_(False)
        return Member(
            model=model,
            optimizer=AdamW(model.parameters(), lr=0.01),
            batch_size=sizes[i],
            seed=i,
            hyper={"weight": 1.0 + i},
        )

    def loss(outputs: Tensor, y: Tensor, *, weight: Tensor) -> Tensor:
        return weight * binary_cross_entropy(outputs, y)

    def train() -> tuple[Population, list[Tensor]]:
        population = together([member(i) for i in range(3)], slots=4, engine=engine, loss=loss)
        found = epochs(population, 3, points)
        population.set_hyperparameters(1, weight=0.5)
        population.copy([0], [2])
        return population, found + epochs(population, 3, points)

    assert assert_same(train).reason.endswith(REPLAYED)


@pytest.mark.parametrize("engine", ENGINES)
def test_tensors_that_come_and_go_are_recorded_anew(
    engine: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
    assert_same: Callable[..., Population],
) -> None:
    def train() -> tuple[Population, list[Tensor]]:
        members = []
        for i in range(2):
            model = mlp(i)
            optimizer = SGD(model.parameters(), lr=0.1)
            members.append(Member(model=model, optimizer=optimizer, batch_size=30, seed=i))
        population = together(members, engine=engine)
        found = epochs(population, 2, points)
        population.set_hyperparameters(0, weight_decay=0.1)
        found += epochs(population, 2, points)
        population.set_hyperparameters(1, momentum=0.9)
        found += epochs(population, 2, points)
        population.set_hyperparameters(0, weight_decay=0)
        found += epochs(population, 2, points)
        x, y = (rows.flip(0) for rows in points)  # other rows
        found += epochs(population, 2, (x, y))
        return population, found

    assert assert_same(train).reason.endswith(REPLAYED)


@pytest.fixture
def pair(
    points: Points, together: Callable[..., Population]
) -> Callable[..., Callable[[], tuple[Population, list[Tensor]]]]:
    """Train two members for some epochs."""

    def make_train(
        model: Callable[[int], nn.Module], n: int = 3, **options: Any
    ) -> Callable[[], tuple[Population, list[Tensor]]]:
        def train() -> tuple[Population, list[Tensor]]:
            members = []
            for i in range(2):
                own = model(i).double()
                optimizer = SGD(own.parameters(), lr=0.1)
                members.append(Member(model=own, optimizer=optimizer, batch_size=30, seed=i))
            population = together(members, **{"engine": "vmap", **options})
            return population, epochs(population, n, points)

        return train

    return make_train


def test_numbers_that_change_between_epochs_are_seen(
    points: Points,
    mlp: Callable[..., nn.Sequential],
    pair: Callable[..., Any],
    assert_same: Callable[..., Population],
) -> None:
    scale = 1.0

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return scale * binary_cross_entropy(outputs, y)

    def train() -> tuple[Population, list[Tensor]]:
        nonlocal scale
        scale = 1.0
        population, found = pair(mlp, loss=loss)()
        scale = 2.0
        return population, found + epochs(population, 2, points)

    assert assert_same(train).reason.endswith(REPLAYED)


class Counting(nn.Module):
    """Does something else at each step, of which tensors know nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        output: Tensor = self.model(x)
        return output * (1 if self.count < 10_000 else 2)


class Drawing(Counting):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output * (1 if random.random() < 2 else 2)


class Listing(Counting):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output * torch.tensor([2.0], dtype=x.dtype, device=x.device)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Counting, "the network or the loss changes Python values at each step"),
        (Drawing, "the network or the loss changes Python values at each step"),
        (Listing, "torch.tensor makes a tensor of the device out of Python numbers"),
    ],
)
def test_what_cannot_be_recorded_is_trained_as_it_is(
    kind: type[Counting],
    why: str,
    mlp: Callable[..., nn.Sequential],
    pair: Callable[..., Any],
    emulated: Any,
    assert_same: Callable[..., Population],
) -> None:
    population = assert_same(pair(lambda i: kind(mlp(i)), 20))
    assert population.engine == "vmap"
    assert population.reason.endswith(f"Not recorded as a CUDA graph: {why}.")
    assert not emulated.made


def refuse(replay: Replay) -> Replay:
    raise RuntimeError("operation not permitted when stream is capturing\nin a kernel")


def do_nothing(replay: Replay) -> Replay:
    return lambda: None


def do_twice(replay: Replay) -> Replay:
    def twice() -> None:
        replay()
        replay()

    return twice


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (refuse, "operation not permitted when stream is capturing"),
        (do_nothing, "a replayed step is not the same as the step itself"),
        (do_twice, "a replayed step is not the same as the step itself"),
    ],
)
def test_a_recording_that_fails_leaves_nothing_behind(
    change: Callable[[Replay], Replay],
    why: str,
    mlp: Callable[..., nn.Sequential],
    pair: Callable[..., Any],
    emulated: Any,
    recording: Callable[..., None],
) -> None:
    class Failing(emulated):  # type: ignore[misc]
        def record(self, step: Callable[[], None]) -> Replay:
            return change(super().record(step))

    train = pair(lambda i: mlp(i).insert(1, nn.BatchNorm1d(5)))
    _, expected = train()
    recording(Failing)
    population, found = train()
    assert population.reason.endswith(f"Not recorded as a CUDA graph: {why}.")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_engines_are_timed_as_they_will_run(
    mlp: Callable[..., nn.Sequential],
    pair: Callable[..., Any],
    emulated: Any,
    recording: Callable[..., None],
    device: str,
) -> None:
    recording()
    population, _ = pair(mlp, engine="auto")()
    assert population.engine in {*ENGINES, "loop"}
    assert device == "cuda" or emulated.made >= 2  # stack and vmap
    assert (REPLAYED in population.reason) == (population.engine != "loop")


def test_recordings_go_with_their_population(
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
    emulated: Any,
    recording: Callable[..., None],
) -> None:
    tapes: list[weakref.ref[object]] = []

    class Watched(emulated):  # type: ignore[misc]
        def record(self, step: Callable[[], None]) -> Replay:
            replay: Replay = super().record(step)
            tapes.append(weakref.ref(replay))
            return replay

    def member(size: int) -> Member:
        model = mlp(0)
        optimizer = SGD(model.parameters(), lr=0.1)
        return Member(model=model, optimizer=optimizer, batch_size=size)

    def alive() -> int:
        return sum(tape() is not None for tape in tapes)

    recording(Watched)
    gc.collect()
    gc.disable()
    try:
        population = together([member(40), member(40)], engine="vmap")
        epochs(population, 1, points)
        assert alive() == 2
        for size in range(46, 56):  # two more shapes each
            population.admit(0, member(size))
            population.admit(1, member(size))
            epochs(population, 1, points)
            assert alive() <= 8
        epochs(population, 1, (points[0].clone(), points[1]))  # elsewhere
        assert alive() == 2
        population.compact([0])
        assert alive() == 0
        epochs(population, 1, points)
        assert alive() == 2
        del population
        assert alive() == 0
    finally:
        gc.enable()
