from __future__ import annotations

from collections.abc import Callable
import gc
import itertools

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import Adam
from torch.optim import SGD

from optuna_ext.fused import cross_entropy
from optuna_ext.fused import Member
from optuna_ext.fused import memory_per_member
from optuna_ext.fused import Population


def test_weights_count_with_gradient_and_state() -> None:
    x, y = torch.randn(4, 1000), torch.randint(10, (4,))
    model = nn.Sequential(nn.Linear(1000, 10), nn.Sigmoid(), nn.Linear(10, 10))
    size = 4 * sum(p.numel() for p in model.parameters())

    def needed(optimizer: torch.optim.Optimizer, engine: str) -> float:
        member = Member(model=model, optimizer=optimizer)
        return memory_per_member(member, x, y, loss=cross_entropy, engine=engine) / size

    sgd = needed(SGD(model.parameters(), lr=0.1), "vmap")
    adam = needed(Adam(model.parameters()), "vmap")
    assert sgd > 2
    assert adam - sgd == pytest.approx(4, abs=0.2)  # two moments, twice while the engine is chosen


def test_activations_grow_with_the_batch() -> None:
    def needed(batch_size: int) -> int:
        model = nn.Sequential(nn.Linear(5, 200), nn.Sigmoid(), nn.Linear(200, 3))
        member = Member(
            model=model, optimizer=SGD(model.parameters(), lr=0.1), batch_size=batch_size
        )
        x, y = torch.randn(512, 5), torch.randint(3, (512,))
        return memory_per_member(member, x, y, loss=cross_entropy)

    # Forward keeps at least one float per unit and row, and backward at most a few more.
    grown = needed(512) - needed(256)
    assert 4 * 256 * 200 <= grown <= 4 * 4 * 256 * 200


def tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 10))


def convolution() -> nn.Module:
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *layers, nn.Linear(128, 10))


@pytest.mark.parametrize(
    ("make", "engine"),
    [(tiny, "vmap"), (wide, "vmap"), (convolution, "vmap"), (tiny, "stack"), (wide, "stack")],
)
def test_the_prediction_holds(
    make: Callable[[], nn.Module], engine: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr("optuna_ext.fused._memory._CHEAP", 0)  # or all slots would be tried
    x, y = torch.randn(130, 64, device=device), torch.randint(2, (130,), device=device)

    def member() -> Member:
        model = make()
        return Member(model=model, optimizer=Adam(model.parameters()), batch_size=64)

    def work() -> None:
        population = Population(member(), slots=40, loss=losses, device=device, engine=engine)
        for slot in range(40):
            population.admit(slot, member())
        population.train_epoch(x, y)
        population.evaluate(x, y, {"loss": losses})

    predicted = memory_per_member(
        member(), x, y, loss=losses, valid=(x, y), slots=40, engine=engine
    )
    assert 40 * predicted == pytest.approx(peak_of(work, device), rel=0.2)


def losses(outputs: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(outputs, y, reduction="none")


def peak_of(work: Callable[[], None], device: str) -> int:
    """Measure the most memory that torch had allocated."""
    if device != "cpu":
        work()  # cuBLAS keeps what it takes for its first product
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    gc.collect()  # what is freed inside counts, whenever it was made
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(int(event.nbytes()) for event in events))
