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
@pytest.mark.parametrize("engine", ["stack", "vmap"])
def test_a_compiled_step_is_the_same(
    engine: str,
    points: tuple[Tensor, Tensor],
    mlp: Callable[..., nn.Sequential],
    assert_same: Callable[..., Population],
) -> None:
    def build(i: int) -> Member:
        model = mlp(i, widths=(2, 3, 1))
        optimizer = Adam(model.parameters(), lr=0.01)
        return Member(model=model, optimizer=optimizer, batch_size=45, seed=i)

    assert_same(build, 3, *points, engine=engine, compile=True)
