"""Everything a training consists of comes back bit for bit."""

from __future__ import annotations

import copy
import datetime
import enum
from pathlib import Path
import random
from typing import Any

import numpy as np
from optuna.trial import FixedTrial
import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from optuna_ext.checkpoints import _places
from optuna_ext.checkpoints import CheckpointError
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.checkpoints._recent import Recent


@pytest.fixture(autouse=True)
def from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read what was saved as another process would."""
    monkeypatch.setattr(_places, "Recent", lambda _: Recent(0))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, device: str = "cpu") -> Tensor:
    """Train once on random rows, with random numbers of every kind."""
    x = torch.randn(16, 4, device=device)
    x = x * random.random() + float(np.random.random())  # noqa: NPY002
    optimizer.zero_grad()
    loss: Tensor = model(x).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


class Loader:
    """A data loader that knows its position."""

    def __init__(self) -> None:
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
        assert one.device == other.device
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for entries in zip(one, other, strict=True):
            assert_same(*entries)
    else:
        assert one == other


def test_a_continued_training_is_the_uninterrupted_one(device: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    trial = FixedTrial({})
    model = net().to(device)
    optimizer = adam(model)
    ema = AveragedModel(model, use_buffers=True)
    loader = Loader()
    generators: dict[str, Any] = {
        "shuffle": torch.Generator(device).manual_seed(1),
        "noise": np.random.default_rng(2),
        "legacy": np.random.Generator(np.random.MT19937(3)),
        "dice": random.Random(4),
    }
    things = {"model": model, "optimizer": optimizer, "ema": ema, "loader": loader, **generators}

    def draw() -> list[Any]:
        return [
            torch.randperm(9, generator=generators["shuffle"], device=device).tolist(),
            generators["noise"].random(),
            generators["legacy"].random(),
            generators["dice"].gauss(0, 1),
            random.gauss(0, 1),
            np.random.standard_normal(),  # noqa: NPY002
            torch.rand(1).item(),
        ]

    def go_on() -> list[Any]:
        losses = []
        for _ in range(3):
            losses.append(step(model, optimizer, device=device))
            ema.update_parameters(model)
            loader.position += 1
        return [losses, draw()]

    go_on()
    store.resume(trial, **things).save(3)
    state = copy.deepcopy([model.state_dict(), optimizer.state_dict(), ema.state_dict()])
    expected = go_on()
    go_on()  # away from it
    assert store.resume(trial, **things).step == 3
    assert_same([model.state_dict(), optimizer.state_dict(), ema.state_dict()], state)
    assert loader.position == 3
    assert_same(go_on(), expected)


def test_the_states_of_random_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    dice = random.Random(7)
    dice.gauss(0, 1)  # which keeps a second number for later

    def states() -> list[Any]:
        numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002
        others = [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]]  # type: ignore[index]
        return [random.getstate(), dice.getstate(), others, torch.get_rng_state().tolist()]

    for seed in range(3):
        random.seed(seed)
        before = states()
        trial = FixedTrial({})
        store.resume(trial, dice=dice).save(seed)
        for draw in (random.random, dice.random, np.random.normal, lambda: torch.rand(1)):
            draw()
        assert states() != before
        store.resume(trial, dice=dice)
        assert states() == before


def test_a_fresh_object_takes_the_state_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    trial = FixedTrial({})
    model = net()
    optimizer = adam(model)
    for _ in range(3):
        step(model, optimizer)
    store.resume(trial, model=model, optimizer=optimizer).save(3)
    other = net(seed=5)
    following = adam(other)
    store.resume(trial, model=other, optimizer=following)
    assert_same(other.state_dict(), model.state_dict())
    assert_same(following.state_dict(), optimizer.state_dict())


def test_from_an_accelerator_to_the_cpu_and_back(device: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    trial = FixedTrial({})
    model = net().to(device)
    optimizer = adam(model)
    step(model, optimizer, device=device)
    generator = torch.Generator(device)
    store.resume(trial, model=model, optimizer=optimizer, generator=generator).save(1)
    for place in ("cpu", device):
        other = net(seed=3).to(place)
        following = adam(other)
        store.resume(trial, model=other, optimizer=following, generator=torch.Generator(place))
        assert {p.device.type for p in other.parameters()} == {torch.device(place).type}
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(one.cpu(), two.cpu())
        step(other, following, device=place)


def test_a_grad_scaler(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    trial = FixedTrial({})
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scaler.scale(parameter.sum()).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()
    store.resume(trial, scaler=scaler).save(1)
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    store.resume(trial, scaler=other)
    assert other.state_dict() == scaler.state_dict()
    assert other.get_scale() == 16.0


def wrap(kind: str, model: nn.Module) -> nn.Module:
    match kind:
        case "compiled":
            return torch.compile(model, backend="eager")  # type: ignore[return-value]
        case "parallel":
            return nn.DataParallel(model)
        case "compiled inside":
            model[0] = torch.compile(model[0], backend="eager")  # type: ignore[index, operator]
            return model
        case "both":
            parallel = nn.DataParallel(wrap("compiled inside", model))
            return torch.compile(parallel, backend="eager")  # type: ignore[return-value]
    return model


WRAPPERS = ["plain", "compiled", "parallel", "compiled inside", "both"]


@pytest.mark.parametrize("saved", WRAPPERS)
@pytest.mark.parametrize("loaded", WRAPPERS)
def test_compilation_and_parallelism_leave_no_trace(saved: str, loaded: str) -> None:
    store = CheckpointStore(":memory:")
    trial = FixedTrial({})
    inner = net()
    ema = AveragedModel(wrap(saved, copy.deepcopy(inner)))
    store.resume(trial, model=wrap(saved, inner), ema=ema).save(1)
    other = net(seed=1)
    following = AveragedModel(wrap(loaded, copy.deepcopy(other)))
    store.resume(trial, model=wrap(loaded, other), ema=following)
    for one, two in zip(inner.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(ema.parameters(), following.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_distributed_module(tmp_path: Path) -> None:
    store = CheckpointStore(":memory:")
    trial = FixedTrial({})
    inner = net()
    distributed: Any = torch.distributed
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "meet"), 1), rank=0, world_size=1
    )
    try:
        store.resume(trial, model=nn.parallel.DistributedDataParallel(inner)).save(1)
    finally:
        distributed.destroy_process_group()
    other = net(seed=1)
    store.resume(trial, model=other)
    assert_same(other.state_dict(), inner.state_dict())


def test_a_part_called_module_keeps_its_name() -> None:
    store = CheckpointStore(":memory:")
    trial = FixedTrial({})

    def build() -> nn.Module:
        model = nn.Module()
        model.module = nn.Linear(1, 1)
        model.weight = nn.Parameter(torch.rand(1))  # which module.weight must not become
        return nn.DataParallel(model)

    model, other = build(), build()
    store.resume(trial, model=model).save(1)
    store.resume(trial, model=other)
    assert_same(other.state_dict(), model.state_dict())


def test_tied_weights_are_stored_once_and_a_view_without_the_rest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    tied = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    tied[1].weight = tied[0].weight
    size = store.resume(FixedTrial({}), model=tied).save(1).size
    assert 40_000 < size < 60_000
    rows = nn.Parameter(torch.zeros(1000, 100)[:100])
    part = nn.ParameterList([rows])
    assert store.resume(FixedTrial({}), model=part).save(1).size < 60_000


def test_numbers_of_numpy_become_plain(tmp_path: Path) -> None:
    class Best:
        def __init__(self) -> None:
            self.state: dict[str, Any] = {}

        def state_dict(self) -> dict[str, Any]:
            return self.state

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state = state

    store = CheckpointStore(tmp_path)
    trial = FixedTrial({})
    best, other = Best(), Best()
    best.state = {
        "loss": np.float64(0.25),
        "counts": np.arange(6, dtype=np.uint16).reshape(2, 3).T,
        "empty": np.array(7.0),
        "nested": [(1, "a", None, b"x"), {2: {3}}],
        "huge": 1 << 200,
    }
    store.resume(trial, best=best).save(1)
    store.resume(trial, best=other)
    assert other.state["loss"] == 0.25
    for name in ("counts", "empty"):
        np.testing.assert_array_equal(other.state[name], best.state[name])
        assert other.state[name].dtype == best.state[name].dtype
    assert other.state["nested"] == best.state["nested"]
    assert other.state["huge"] == 1 << 200


class Color(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value", [datetime.date(2026, 1, 1), Color.RED, np.array(["a"]), len, object()]
)
def test_what_would_not_be_safe_to_load_is_not_saved(value: Any, tmp_path: Path) -> None:
    class Strange(Loader):
        def state_dict(self) -> Any:
            return {"when": [value]}

    run = CheckpointStore(tmp_path).resume(FixedTrial({}), loader=Strange())
    with pytest.raises(TypeError, match=r"`loader\['when'\]\[0\]` is of type .*, but a"):
        run.save(1)
    assert [*tmp_path.iterdir()] == []


def test_a_thing_without_a_state_is_refused() -> None:
    with pytest.raises(TypeError, match="`rate` must have state_dict and load_state_dict, or"):
        CheckpointStore(":memory:").resume(FixedTrial({}), rate=0.1)


def test_what_does_not_fit_is_said_in_one_sentence() -> None:
    store = CheckpointStore(":memory:")
    trial = FixedTrial({})
    store.resume(trial, model=net()).save(1)
    with pytest.raises(CheckpointError, match=r"^the checkpoint of trial 0 holds \['model'\]"):
        store.resume(trial, model=net(), optimizer=adam(net()))
    with pytest.raises(CheckpointError, match="trial 0 does not fit `model`: Error") as caught:
        store.resume(trial, model=nn.Linear(1, 1))
    assert "\n" not in str(caught.value)


def test_less_may_be_loaded_than_was_saved() -> None:
    store = CheckpointStore(":memory:")
    trial = FixedTrial({})
    model = net()
    store.resume(trial, model=model, optimizer=adam(model)).save(4)
    other = net(seed=1)
    state = torch.get_rng_state()
    assert store.load(trial, model=other) == 4
    assert_same(other.state_dict(), model.state_dict())
    assert torch.equal(torch.get_rng_state(), state)  # loading is no training


class Prepared(torch.optim.Optimizer):
    """Passes calls on to an optimizer, as Accelerate's does."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def state_dict(self) -> Any:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.optimizer.load_state_dict(state)


class Stepped:
    """Passes calls on to a scheduler, as Accelerate's does."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def state_dict(self) -> Any:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.scheduler.load_state_dict(state)


def test_wrappers_of_accelerate() -> None:
    store = CheckpointStore(":memory:")
    trial = FixedTrial({})
    for lr in (0.1, 0.2):
        inner = torch.optim.SGD(net().parameters(), lr=lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(inner, 10, eta_min=0.01)
        run = store.resume(trial, optimizer=Prepared(inner), scheduler=Stepped(scheduler))
        for _ in range(3):
            inner.step()
            scheduler.step()
        run.save(run.step + 3)
    alone = torch.optim.SGD(net().parameters(), lr=0.2)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(alone, 10, eta_min=0.01)
    for _ in range(6):
        alone.step()
        oracle.step()
    assert scheduler.get_last_lr() == pytest.approx(oracle.get_last_lr())
