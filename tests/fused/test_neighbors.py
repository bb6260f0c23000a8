"""Members that come and go, diverge, and take each other's places."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import Adam
from torch.optim import SGD

from optuna_ext.fused import binary_cross_entropy
from optuna_ext.fused import Member
from optuna_ext.fused import Population


ENGINES = ["stack", "vmap", "grad", "loop"]
Points = tuple[Tensor, Tensor]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_neighbor_changes_nothing(
    engine: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
) -> None:
    x, y = points

    def member(i: int, lr: float) -> Member:
        model = mlp(i)
        return Member(model=model, optimizer=SGD(model.parameters(), lr=lr), batch_size=32, seed=i)

    def train(rates: list[float]) -> tuple[Population, Tensor]:
        members = [member(slot, rate) for slot, rate in enumerate(rates)]
        population = together(members, engine=engine)
        population.train_epoch(x, y)
        population.release(1)  # diverged, or pruned
        population.train_epoch(x, y)
        population.admit(1, member(5, 0.1))
        losses = population.train_epoch(x, y)
        return population, losses

    calm, expected = train([0.1, 0.1, 0.2, 0.3])
    wild, losses = train([0.1, 1e300, 0.2, 0.3])
    assert torch.equal(losses, expected)
    for slot in range(4):
        for a, b in zip(
            wild.state_of(slot)["model"].values(),
            calm.state_of(slot)["model"].values(),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_member_that_diverges_says_so_alone(
    engine: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
) -> None:
    x, y = points

    def member(lr: float) -> Member:
        model = mlp(0)
        return Member(model=model, optimizer=SGD(model.parameters(), lr=lr))

    population = together([member(0.1), member(1e300)], engine=engine)
    for _ in range(3):
        losses = population.train_epoch(x, y)
    assert losses.isfinite().tolist() == [True, False]
    assert not population.evaluate(x, y, {"loss": binary_cross_entropy})["loss"].isfinite()[1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_copy_goes_on_like_its_source(
    engine: str,
    kind: type[SGD | Adam],
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
) -> None:
    x, y = points

    def member(i: int) -> Member:
        model = mlp(i)
        options = {"momentum": 0.9} if kind is SGD else {}
        return Member(model=model, optimizer=kind(model.parameters(), lr=0.05, **options))  # type: ignore[arg-type]

    population = together([member(slot) for slot in range(3)], engine=engine)
    for _ in range(5):
        population.train_epoch(x, y)
    population.copy([2], [0])
    twins = population.train_epoch(x, y)
    assert twins[0] == twins[2] != twins[1]
    population.set_hyperparameters(0, lr=0.5)  # explores from there
    population.train_epoch(x, y)
    apart = population.train_epoch(x, y)
    assert apart[0] != apart[2]
    assert population.state_of(0)["optimizer"]["param_groups"][0]["lr"] == 0.5


def test_a_copy_keeps_its_dropout_and_takes_running_statistics(
    points: Points, together: Callable[..., Population]
) -> None:
    x, y = points

    def member(p: float, seed: int) -> Member:
        model = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(p), nn.Linear(8, 1)
        ).double()
        return Member(model=model, optimizer=SGD(model.parameters(), lr=0.1), seed=seed)

    population = together([member(0.0, 1), member(0.5, 2)], engine="vmap")
    population.train_epoch(x, y)
    before = population.state_of(1)["buffers"]
    population.copy([0], [1])
    torch.testing.assert_close(population.state_of(1)["buffers"], before, rtol=0, atol=0)
    torch.testing.assert_close(
        population.state_of(1)["model"], population.state_of(0)["model"], rtol=0, atol=0
    )
    losses = population.train_epoch(x, y)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_members_go_on_after_the_others_have_left(
    engine: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
) -> None:
    x, y = points

    def member(i: int) -> Member:
        model = mlp(i)
        optimizer = Adam(model.parameters(), lr=0.01 * (i + 1))
        return Member(model=model, optimizer=optimizer, batch_size=30, seed=i)

    def train(*, compact: bool) -> Tensor:
        population = together([member(slot) for slot in range(5)], engine=engine)
        population.train_epoch(x, y)
        if compact:
            population.compact([4, 1])
            assert population.slots == 2
            population.evaluate(x, y, {"loss": binary_cross_entropy})
        losses = population.train_epoch(x, y)
        return losses if compact else losses[[4, 1]]

    torch.testing.assert_close(train(compact=True), train(compact=False), rtol=1e-12, atol=1e-12)


def test_a_population_of_nobody_does_nothing(
    points: Points, mlp: Callable[..., nn.Sequential]
) -> None:
    model = mlp(0)
    member = Member(model=model, optimizer=SGD(model.parameters(), lr=0.1))
    population = Population(member, slots=2, loss=binary_cross_entropy, device=points[0].device)
    assert population.train_epoch(*points).isnan().all()
    assert population.engine == "auto"
