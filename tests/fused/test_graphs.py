"""Recorded steps: the same to the last bit as the steps themselves, or not taken at all.

Machines without a GPU have ``Emulated`` instead: like a CUDA graph, it takes the same operations
again on the same tensors, whatever Python would do by then.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import nullcontext
import gc
import math
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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
from optuna_ext.fused._graphs import Recorder
from optuna_ext.fused._graphs import RECORDERS
from optuna_ext.fused._recordable import Guard


ENGINES = ["stack", "vmap", "grad"]
REPLAYED = "Its steps are replayed as CUDA graphs."
Points = tuple[Tensor, Tensor]
Rows = Sequence[Tensor]

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


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations of a step, with the very tensors that they were given and gave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._outside: dict[int, Tensor] = {}
        self._own: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        aten = torch.ops.aten
        if func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        for tensor in _tensors((args, kwargs)):
            if _memory(tensor) not in self._own:
                self._outside[_memory(tensor)] = tensor
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if _memory(tensor) not in self._outside:
                self._own.setdefault(_memory(tensor), tensor)
        self._calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self._calls:
            again = func(*args, **kwargs)
            for tensor, value in zip(_tensors(result), _tensors(again), strict=True):
                if _memory(tensor) != _memory(value):  # else it was written in its place
                    tensor.copy_(value)
        self.spoil()

    @torch.no_grad()
    def spoil(self) -> None:
        """Overwrite what lies in the pool, which is free for another recording now."""
        for tensor in self._own.values():
            tensor.fill_(math.nan if tensor.is_floating_point() else 77)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Emulated:
    """Records steps on the CPU as CUDA graphs do on theirs."""

    made = 0
    replayed = 0

    def __init__(self, device: torch.device) -> None:
        assert device.type != "cuda"

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        Emulated.made += 1
        tape = _Tape()
        with tape:
            step()
        tape.spoil()

        def replay() -> None:
            Emulated.replayed += 1
            tape.replay()

        return replay


@pytest.fixture
def recording(device: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let steps be recorded from now on, or not; by the real thing where there is one."""
    monkeypatch.delitem(RECORDERS, device, raising=False)
    monkeypatch.setattr(Emulated, "made", 0)
    monkeypatch.setattr(Emulated, "replayed", 0)

    def switch(recorder: Callable[[torch.device], Recorder] | None = None) -> None:
        real = CudaGraphs if device == "cuda" else Emulated
        monkeypatch.setitem(RECORDERS, device, recorder or real)

    return switch


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
            for a, b in zip(*map(_tensors, states), strict=True):
                torch.testing.assert_close(a, b, rtol=exact, atol=exact)
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
        made = Emulated.made
        population.set_hyperparameters(1, lr=0.05)
        found += epochs(population, 1, points)
        population.release(2)
        found += epochs(population, 1, points)
        population.admit(2, member(7))
        population.copy([0, 1], [1, 3])
        found += epochs(population, 1, points)
        assert Emulated.made == made  # all of it in place
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
    assert not points[0].is_cpu or Emulated.replayed >= 20


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
    assert_same: Callable[..., Population],
) -> None:
    population = assert_same(pair(lambda i: kind(mlp(i)), 20))
    assert population.engine == "vmap"
    assert population.reason.endswith(f"Not recorded as a CUDA graph: {why}.")
    assert not Emulated.made or "Python" in why


class Refusing(Emulated):
    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        step()
        raise RuntimeError("operation not permitted when stream is capturing\nin a kernel")


class Idle(Emulated):
    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class Double(Emulated):
    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        replay = super().record(step)

        def twice() -> None:
            replay()
            replay()

        return twice


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Refusing, "operation not permitted when stream is capturing"),
        (Idle, "a replayed step is not the same as the step itself"),
        (Double, "a replayed step is not the same as the step itself"),
    ],
)
def test_a_recording_that_fails_leaves_nothing_behind(
    kind: type[Emulated],
    why: str,
    mlp: Callable[..., nn.Sequential],
    pair: Callable[..., Any],
    recording: Callable[..., None],
) -> None:
    train = pair(lambda i: mlp(i).insert(1, nn.BatchNorm1d(5)))
    _, expected = train()
    recording(kind)
    population, found = train()
    assert population.reason.endswith(f"Not recorded as a CUDA graph: {why}.")
    assert all(map(torch.equal, found, expected))


def test_engines_are_timed_as_they_will_run(
    mlp: Callable[..., nn.Sequential],
    pair: Callable[..., Any],
    recording: Callable[..., None],
    device: str,
) -> None:
    recording()
    population, _ = pair(mlp, engine="auto")()
    assert population.engine in {*ENGINES, "loop"}
    assert device == "cuda" or Emulated.made >= 2  # stack and vmap
    assert (REPLAYED in population.reason) == (population.engine != "loop")


def test_recordings_go_with_their_population(
    points: Points,
    mlp: Callable[..., nn.Sequential],
    together: Callable[..., Population],
    recording: Callable[..., None],
) -> None:
    tapes: list[weakref.ref[object]] = []

    class Watched(Emulated):
        def record(self, step: Callable[[], None]) -> Callable[[], None]:
            replay = super().record(step)
            tapes.append(weakref.ref(replay))
            return replay

    def alive() -> int:
        return sum(tape() is not None for tape in tapes)

    recording(Watched)
    gc.collect()
    gc.disable()
    try:
        members = []
        for i in range(2):
            model = mlp(i)
            optimizer = SGD(model.parameters(), lr=0.1)
            members.append(Member(model=model, optimizer=optimizer, batch_size=40))
        population = together(members, engine="vmap")
        epochs(population, 1, points)
        assert alive() == 2
        for n in range(30, 45):  # many shapes
            epochs(population, 1, (points[0][:n], points[1][:n]))
        assert alive() <= 2
        population.compact([0])
        assert alive() == 0
        epochs(population, 1, points)
        assert alive() == 2
        del population
        assert alive() == 0
    finally:
        gc.enable()


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
        optimizer = OPTIMIZERS[name]([*model.parameters()], i)
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
    monkeypatch.setitem(RECORDERS, "meta", Emulated)
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
