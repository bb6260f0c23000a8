from __future__ import annotations

import pytest
import torch
from torch import nn
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


def test_the_prediction_holds_on_a_gpu(device: str) -> None:
    if device == "cpu":
        pytest.skip("torch counts the memory of GPUs only")
    x, y = torch.randn(256, 784, device=device), torch.randint(10, (256,), device=device)

    def member() -> Member:
        model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10), nn.Sigmoid())
        return Member(model=model, optimizer=Adam(model.parameters()), batch_size=64)

    def peak(slots: int) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        population = Population(
            member(), slots=slots, loss=cross_entropy, device=device, engine="vmap"
        )
        for slot in range(slots):
            population.admit(slot, member())
        population.train_epoch(x, y)
        return torch.cuda.max_memory_allocated() - before

    predicted = memory_per_member(member(), x, y, loss=cross_entropy)
    assert (peak(64) - peak(16)) / 48 == pytest.approx(predicted, rel=0.2)
