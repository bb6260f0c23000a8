"""What a step does on its device, and what is refused there."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import Adam
from torch.optim import AdamW
from torch.optim import Optimizer
from torch.optim import SGD
from torch.utils._pytree import tree_map_only

from optuna_ext.fused import binary_cross_entropy
from optuna_ext.fused import cross_entropy
from optuna_ext.fused import Dropout
from optuna_ext.fused import GaussianNoise
from optuna_ext.fused import Member
from optuna_ext.fused import Population
from optuna_ext.fused._choice import make
from optuna_ext.fused._engines import Engine
from optuna_ext.fused._feed import Batch
from optuna_ext.fused._feed import batches
from optuna_ext.fused._graphs import CudaGraphs
from optuna_ext.fused._graphs import RECORDERS
from optuna_ext.fused._recordable import Guard
from optuna_ext.fused._recordable import numbers_of


ENGINES = ["stack", "vmap", "grad"]
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1, weight_decay=0.01),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: AdamW([{"params": p[1::2], "lr": 0.1}, {"params": p[::2], "eps": 0.1}]),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("sizes", [(20, 20, 20), (17, 32, 90)])
def test_a_step_stays_on_its_device(
    engine: str,
    name: str,
    sizes: Sequence[int],
    mlp: Callable[..., nn.Sequential],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def member(i: int) -> Member:
        model = mlp(i)
        if engine != "stack":
            model.insert(1, Dropout(0.5)).insert(1, GaussianNoise(0.1).double())
        if engine != "stack" and len({*sizes}) == 1:
            model.insert(1, nn.BatchNorm1d(5).double())
        optimizer = OPTIMIZERS[name]([*model.parameters()])
        return Member(model=model, optimizer=optimizer, batch_size=sizes[i])

    population = Population(member(2), slots=3, loss=binary_cross_entropy)
    for slot in range(3):
        population.admit(slot, member(slot))
    program = population._program
    optimizers = program.optimizers
    generators = [torch.Generator() for _ in range(3)]
    x, y = torch.zeros(90, 2, dtype=torch.float64), torch.zeros(90)
    listed = [*batches(x, y, sizes=sizes, generators=generators, order=None)]
    optimizers.coefficients()
    # Tensors without numbers, whose device is not the CPU.
    for owner, attribute in (
        (program.weights, "flat"),
        (program.weights, "buffers"),
        (optimizers, "state"),
        (optimizers, "_steps"),
        (optimizers, "_coefficients"),
    ):
        setattr(owner, attribute, _on_meta(getattr(owner, attribute)))
    monkeypatch.setitem(RECORDERS, "meta", CudaGraphs)  # is not asked for any
    running: Engine = make(engine, program)
    for batch in (listed[0], listed[-1]):
        meta = Batch(**{name: _on_meta(value) for name, value in vars(batch).items()})
        with Guard(torch.device("meta")):
            running._step(meta)


def _on_meta(value: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), value)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0, 2.0]),
        lambda x: x.to("meta"),
        lambda x: torch.ones(2, device="meta").copy_(x[:2]),
    ],
)
def test_the_guard_refuses_what_no_graph_holds(operation: Callable[[Tensor], object]) -> None:
    x = torch.randn(4)
    operation(x)
    with Guard(x.device), pytest.raises(RuntimeError, match=r"wait|copies|Python numbers"):
        operation(x)


def test_the_guard_lets_the_rest_pass() -> None:
    x = torch.randn(4, 3)
    with Guard(x.device):
        x[torch.zeros(2, dtype=torch.long)] += 1
        torch.where(x > 0, x, 0.0).clone().sum().add_(1)
        x[:, 1:].copy_(x[:, :2])
        cross_entropy(x, torch.zeros(4, dtype=torch.long), label_smoothing=0.1)


class Scaled:
    def __init__(self) -> None:
        self.scale: float | Tensor = 1.0

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.scale * binary_cross_entropy(outputs, y)


def test_numbers_are_those_that_python_reads() -> None:
    scaled, model = Scaled(), nn.Sequential(nn.Dropout(0.1))
    before = numbers_of(model, scaled.loss)
    assert numbers_of(model.eval(), scaled.loss) == before
    scaled.scale = 2.0
    assert (changed := numbers_of(model, scaled.loss)) != before
    model[0].p = 0.2  # type: ignore[assignment]
    assert (changed_again := numbers_of(model, scaled.loss)) != changed
    scaled.scale = torch.tensor(3.0)
    assert numbers_of(model, scaled.loss) != changed_again


def test_tensors_of_a_loss_are_known_by_their_place() -> None:
    weights = torch.ones(3)

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return weights * outputs

    model = nn.Identity()
    before = numbers_of(model, loss)
    weights += 1  # is seen by a replay
    assert numbers_of(model, loss) == before
    kept, weights = weights, torch.ones(3)
    assert numbers_of(model, loss) != before
    assert torch.equal(kept, weights + 1)
