from __future__ import annotations

from collections.abc import Callable
import copy
import math

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import Adam
from torch.optim import AdamW
from torch.optim import Optimizer
from torch.optim import RMSprop
from torch.optim import SGD

from optuna_ext.fused import binary_cross_entropy
from optuna_ext.fused import cross_entropy
from optuna_ext.fused import Dropout
from optuna_ext.fused import Member
from optuna_ext.fused import Population


ENGINES = ["stack", "vmap", "grad", "loop"]
Points = tuple[Tensor, Tensor]
Parameters = list[nn.Parameter]

OPTIMIZERS: dict[str, Callable[[Parameters, int], Optimizer]] = {
    "sgd": lambda p, i: SGD(p, lr=0.1 * (i + 1), weight_decay=0.01 * (i % 2)),
    "momentum": lambda p, i: SGD(p, lr=0.1, momentum=(0, 0.5, 0.9)[i % 3], weight_decay=0.01),
    "dampening": lambda p, i: SGD(p, lr=0.1, momentum=0.5, dampening=0.2 * i),
    "nesterov": lambda p, i: SGD(p, lr=0.1, momentum=0.2 * (i + 1), nesterov=True),
    "adam": lambda p, i: Adam(
        p, lr=0.01 * (i + 1), betas=(0.2 * i, 0.9 + 0.03 * i), eps=10.0 ** (-8 + i)
    ),
    "adam with decay": lambda p, i: Adam(p, lr=0.01, weight_decay=0.1 * i),
    "adamw": lambda p, i: AdamW(p, lr=0.01, weight_decay=0.1 * i),
    "groups": lambda p, i: Adam(
        [{"params": p[1::2], "lr": 0.1}, {"params": p[::2], "weight_decay": 0.1}], lr=0.01 * i
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_members_train_as_they_would_alone(
    engine: str,
    name: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i)
        optimizer = OPTIMIZERS[name]([*model.parameters()], i)
        return Member(model=model, optimizer=optimizer, batch_size=20, seed=i)

    # 20 epochs of 5 steps, of which the last is short
    assert_same(build, 3, *points, engine=engine, epochs=20)


@pytest.mark.parametrize("name", ["adam", "adamw", "groups"])
def test_wide_members_are_updated_row_by_row(
    name: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i, widths=(2, 60, 70 - i, 1))
        optimizer = OPTIMIZERS[name]([*model.parameters()], i)
        return Member(model=model, optimizer=optimizer, batch_size=45, seed=i)

    assert_same(lambda i: build(2 - i), 3, *points, engine="stack", epochs=5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("bias", [True, False])
def test_narrow_members_fit_into_wide_slots(
    engine: str,
    activation: type[nn.Module],
    bias: bool,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i, widths=(2, 5 + i, 9 + 2 * i, 1), activation=activation, bias=bias)
        optimizer = Adam(model.parameters(), lr=0.01, weight_decay=0.01)
        return Member(model=model, optimizer=optimizer, batch_size=30, seed=i)

    assert_same(build, 3, *points, engine=engine, tolerance=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_batch_sizes_may_differ(
    engine: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i)
        size = (17, 32, 25, 90)[i]
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        return Member(model=model, optimizer=optimizer, batch_size=size, seed=i)

    assert_same(build, 4, *points, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_layers_stay(
    engine: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i)
        model[0].requires_grad_(False)
        # torch's optimizers take everything, and leave out what has no gradient.
        groups = [{"params": layer.parameters()} for layer in (model[0], model[2], model[4])]
        optimizer = Adam(groups, lr=0.01, weight_decay=0.1)
        return Member(model=model, optimizer=optimizer, batch_size=30, seed=i)

    population = assert_same(build, 2, *points, engine=engine)
    state = population.state_of(1)["model"]
    assert torch.equal(state["0.weight"].cpu(), mlp(1).state_dict()["0.weight"])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch_size", [None, 90, 1000])
def test_all_rows_at_once_are_taken_in_the_order_given(
    engine: str,
    batch_size: int | None,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i)
        return Member(
            model=model, optimizer=SGD(model.parameters(), lr=0.3), batch_size=batch_size, seed=i
        )

    assert_same(build, 3, *points, engine=engine)


@pytest.mark.parametrize("engine", ["vmap", "grad", "loop"])
def test_dropout_rates_may_differ(
    engine: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i)
        model.insert(2, Dropout(0.2 * i, seed=i, layer=0))
        model.insert(5, Dropout(0.1, seed=i, layer=1))
        # Batches of 17 and 20 rows: the masks of a smaller batch are those it has alone.
        size = 17 + 3 * i
        optimizer = SGD(model.parameters(), lr=0.1)
        return Member(model=model, optimizer=optimizer, batch_size=size, seed=i)

    assert_same(build, 2, *points, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_schedules_may_differ(
    engine: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i)
        return Member(
            model=model,
            optimizer=SGD(model.parameters(), lr=0.3, momentum=0.5),
            batch_size=45,
            schedule=None if i == 0 else lambda epoch: math.cos(epoch / (10 * i)),
        )

    assert_same(build, 3, *points, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_arguments_of_the_loss_may_differ(
    engine: str, device: str, assert_same: Callable[..., Population]
) -> None:
    x = torch.randn(40, 3, dtype=torch.float64, device=device)
    y = torch.randint(4, (40,), device=device)

    def build(i: int) -> Member:
        torch.manual_seed(i)
        model = nn.Sequential(nn.Linear(3, 4)).double()
        optimizer = SGD(model.parameters(), lr=1)
        return Member(
            model=model, optimizer=optimizer, hyper={"label_smoothing": 0.1 * i}, batch_size=8
        )

    assert_same(build, 3, x, y, engine=engine, loss=cross_entropy)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_may_be_a_mean(
    engine: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i)
        return Member(
            model=model, optimizer=SGD(model.parameters(), lr=0.3), batch_size=20 + i, seed=i
        )

    def mean(outputs: Tensor, y: Tensor) -> Tensor:
        return binary_cross_entropy(outputs, y).mean()

    assert_same(lambda i: build(0), 2, *points, engine=engine, loss=mean)
    if engine != "loop":
        with pytest.raises(ValueError, match="one number per row"):
            assert_same(build, 2, *points, engine=engine, loss=mean)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["momentum", "adam", "groups"])
def test_a_member_goes_on_from_its_state(
    engine: str,
    name: str,
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    x, y = points

    def member(i: int) -> Member:
        model = mlp(i, widths=(2, 7, 8, 1))
        if engine != "stack":
            model.insert(1, Dropout(0.3, seed=i))
        optimizer = OPTIMIZERS[name]([*model.parameters()], i)
        return Member(
            model=model,
            optimizer=optimizer,
            batch_size=30,
            seed=i,
            schedule=lambda epoch: 1 / (epoch + 1),
        )

    def population() -> Population:
        return together([member(slot) for slot in range(3)], engine=engine)

    first = population()
    for _ in range(3):
        first.train_epoch(x, y)
    path = tmp_path_factory.mktemp("state") / "member.pt"
    torch.save(first.state_of(2), path)
    expected = [first.train_epoch(x, y)[2].item() for _ in range(3)]

    second = population()
    second.train_epoch(x, y)
    second.admit(0, member(2))  # another slot
    second.load(0, torch.load(path, weights_only=True))
    found = [second.train_epoch(x, y)[0].item() for _ in range(3)]
    assert found == pytest.approx(expected, rel=1e-10)

    # Ordinary state dicts, which share nothing: the network and its optimizer take them.
    own = member(2)
    state = first.state_of(2)
    own.model.load_state_dict(state["model"])
    own.optimizer.load_state_dict(state["optimizer"])
    steps = [
        kept["step"].item() for kept in state["optimizer"]["state"].values() if "step" in kept
    ]
    own.model(x.to(next(own.model.parameters()).device)).sum().backward()
    own.optimizer.step()
    taken = own.optimizer.state_dict()["state"]
    assert taken.keys() == state["optimizer"]["state"].keys()
    assert [kept["step"].item() for kept in taken.values() if "step" in kept] == [
        step + 1 for step in steps
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluation_is_that_of_the_network(
    engine: str, points: Points, mlp: Callable[..., nn.Sequential]
) -> None:
    x, y = points
    population = Population(
        Member(model=(model := mlp(0)), optimizer=SGD(model.parameters(), lr=1)),
        slots=3,
        loss=binary_cross_entropy,
        device=x.device,
        engine=engine,
    )
    for slot in (0, 2):
        model = mlp(slot)
        population.admit(slot, Member(model=model, optimizer=SGD(model.parameters(), lr=0.1)))
    population.train_epoch(x, y)
    found = population.evaluate(
        x,
        y,
        {
            "loss": binary_cross_entropy,
            "accuracy": lambda outputs, y: (outputs[:, 0] > 0) == (y > 0),
        },
    )
    model.load_state_dict(population.state_of(2)["model"])
    outputs = model.to(x.device)(x)
    assert found["loss"][2].item() == pytest.approx(binary_cross_entropy(outputs, y).mean().item())
    assert found["accuracy"][2].item() == ((outputs[:, 0] > 0).long() == y).sum().item() / 90
    assert found["loss"].isnan().tolist() == [False, True, False]


def test_passes_and_orders(
    points: Points, mlp: Callable[..., nn.Sequential], together: Callable[..., Population]
) -> None:
    x, y = points

    def member(i: int) -> Member:
        model = mlp(i)
        return Member(model=model, optimizer=SGD(model.parameters(), lr=0.1), batch_size=30)

    def population() -> Population:
        return together([member(0), member(1)], engine="vmap")

    twice, once = population(), population()
    both = twice.train_epoch(x, y, passes=2)
    apart = once.train_epoch(x, y), once.train_epoch(x, y)
    torch.testing.assert_close(both, (apart[0] + apart[1]) / 2)

    order = torch.arange(90, device=x.device).flip(0)
    shared, given = population(), population()
    torch.testing.assert_close(
        shared.train_epoch(x, y, order=order),
        given.train_epoch(x.flip(0), y.flip(0), order=order.flip(0)),
    )


def test_wrong_arguments_get_a_sentence(mlp: Callable[..., nn.Sequential]) -> None:
    model = mlp(0)
    member = Member(model=model, optimizer=SGD(model.parameters(), lr=0.1))

    def population(**options: object) -> Population:
        return Population(
            **{"template": member, "slots": 1, "loss": cross_entropy} | options  # type: ignore[arg-type]
        )

    with pytest.raises(ValueError, match="slots must be at least 1"):
        population(slots=0)
    with pytest.raises(ValueError, match=r"engine must be one of \['auto'"):
        population(engine="fast")
    with pytest.raises(ValueError, match="SGD, Adam or AdamW, but it is RMSprop"):
        population(template=Member(model=model, optimizer=RMSprop(model.parameters())))
    with pytest.raises(ValueError, match="amsgrad of the optimizer must be False"):
        population(template=Member(model=model, optimizer=Adam(model.parameters(), amsgrad=True)))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Member(model=model, optimizer=member.optimizer, batch_size=0)
    made = population()
    with pytest.raises(ValueError, match="template's kind"):
        made.admit(0, Member(model=model, optimizer=Adam(model.parameters())))
    with pytest.raises(ValueError, match="hyper must name"):
        made.admit(0, Member(model=model, optimizer=member.optimizer, hyper={"a": 1}))
    made.admit(0, copy.deepcopy(member))
    with pytest.raises(ValueError, match="hyperparameters must be of"):
        made.set_hyperparameters(0, beta1=0.9)
    made.release(0)
    with pytest.raises(ValueError, match="slot must be taken, but 0 is free"):
        made.state_of(0)
