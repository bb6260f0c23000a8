from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import Adam

from optuna_ext.fused import binary_cross_entropy
from optuna_ext.fused import Member
from optuna_ext.fused import Population


@pytest.fixture
def train(
    mlp: Callable[..., nn.Sequential], points: tuple[Tensor, Tensor]
) -> Callable[..., tuple[Population, Tensor]]:
    """Train three members for two epochs."""
    x, y = points

    def run(
        engine: str, change: Callable[[nn.Sequential], nn.Module] = lambda model: model
    ) -> tuple[Population, Tensor]:
        def member(i: int) -> Member:
            model = change(mlp(i)).double()
            optimizer = Adam(model.parameters(), lr=0.01)
            return Member(model=model, optimizer=optimizer, batch_size=20, seed=i)

        population = Population(
            member(0), slots=3, loss=binary_cross_entropy, device=x.device, engine=engine
        )
        for slot in range(3):
            population.admit(slot, member(slot))
        return population, torch.stack([population.train_epoch(x, y) for _ in range(2)])

    return run


def test_choosing_changes_nothing(train: Callable[..., tuple[Population, Tensor]]) -> None:
    population, losses = train("auto", lambda model: model.insert(1, nn.BatchNorm1d(5)))
    assert population.engine in {"vmap", "loop"}
    assert population.reason.startswith("It is the fastest (per member and step: ")
    assert "vmap" in population.reason
    assert "loop" in population.reason
    _, expected = train(population.engine, lambda model: model.insert(1, nn.BatchNorm1d(5)))
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)


def test_stacks_are_offered_their_own_engine(
    train: Callable[..., tuple[Population, Tensor]],
) -> None:
    assert "stack" in train("auto")[0].reason
    assert "stack" not in train("auto", lambda model: model.append(nn.Sigmoid()))[0].reason
    with pytest.raises(ValueError, match="engine must not be 'stack'.* no Sequential of Linear"):
        train("stack", lambda model: model.append(nn.Sigmoid()))


def test_the_engine_wanted_is_taken(
    train: Callable[..., tuple[Population, Tensor]],
) -> None:
    for engine in ("stack", "vmap", "grad", "loop"):
        population, _ = train(engine)
        assert population.engine == engine
        assert "asked for" in population.reason


@pytest.fixture
def compiler(device: str) -> Iterable[None]:
    """Let torch compile in this process, or skip the test where it cannot."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if device == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            pytest.skip("this machine has no C++ compiler, which torch.compile needs on a CPU")
    torch.compiler.reset()
    # Its pool of processes would cost more than the little that there is to compile.
    with config.patch(compile_threads=1):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of itself, while it compiles
# A stack is compiled for any number of rows, of which the last of 40 are 10.
@pytest.mark.parametrize(("engine", "batch_size"), [("stack", 40), ("vmap", 45)])
def test_a_compiled_step_is_the_same(
    engine: str,
    batch_size: int,
    points: tuple[Tensor, Tensor],
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i, widths=(2, 3, 1))
        optimizer = Adam(model.parameters(), lr=0.01)
        return Member(model=model, optimizer=optimizer, batch_size=batch_size, seed=i)

    assert_same(build, 3, *points, engine=engine, compile=True)


@pytest.mark.parametrize("sizes", [[40, 40, 40], [20, 30, 40], [None, None, None]])
@pytest.mark.parametrize("shared", [False, True])
def test_what_is_compiled_gets_the_same_rows(
    sizes: list[int | None],
    shared: bool,
    points: tuple[Tensor, Tensor],
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return binary_cross_entropy(outputs, y)

    def member(i: int) -> Member:
        model = mlp(i)
        optimizer = Adam(model.parameters(), lr=0.01)
        return Member(model=model, optimizer=optimizer, batch_size=sizes[i], seed=i)

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    order = torch.arange(len(points[0])).flip(0).to(points[0].device) if shared else None
    states = []
    for compile in (True, False):
        members = [member(i) for i in range(3)]
        population = together(members, engine="stack", loss=loss, compile=compile)
        losses = [population.train_epoch(*points, order=order) for _ in range(2)]
        assert "Not compiled" not in population.reason
        states.append((losses, [population.state_of(slot)["model"] for slot in range(3)]))
    torch.testing.assert_close(*states, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["auto", "stack"])
def test_what_cannot_be_compiled_is_trained_as_it_is(
    engine: str,
    points: tuple[Tensor, Tensor],
    mlp: Callable[..., nn.Sequential],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compile(function: Callable[..., object], **options: object) -> Callable[..., object]:
        def fail(*arguments: object) -> object:
            raise RuntimeError("no compiler")

        return fail

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return binary_cross_entropy(outputs, y)

    monkeypatch.setattr(torch, "compile", compile)
    model = mlp(0)
    member = Member(model=model, optimizer=Adam(model.parameters()), batch_size=20)
    population = Population(
        member, slots=2, loss=loss, device=points[0].device, engine=engine, compile=True
    )
    population.admit(0, member)
    population.train_epoch(*points)
    assert "stack " in population.reason
    assert population.reason.endswith(" Not compiled: no compiler")
