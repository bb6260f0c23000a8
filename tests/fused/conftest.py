from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import nullcontext
import copy
import math
from typing import Any

import optuna
from optuna.trial import BaseTrial
import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optuna_ext.fused import binary_cross_entropy
from optuna_ext.fused import Member
from optuna_ext.fused import optimize
from optuna_ext.fused import Population
from optuna_ext.fused import Problem
from optuna_ext.fused._graphs import CudaGraphs
from optuna_ext.fused._graphs import RECORDERS


Alone = tuple[list[float], nn.Module, Optimizer]


@pytest.fixture(autouse=True)
def one_thread() -> Iterable[None]:
    """Keep small networks from waiting for threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def points(device: str) -> tuple[Tensor, Tensor]:
    """Give 90 points of the plane in two classes, in float64."""
    x = torch.randn(90, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.to(device), (x.prod(1) > 0).long().to(device)


@pytest.fixture
def mlp() -> Callable[..., nn.Sequential]:
    """Build a small float64 network from a seed."""

    def build(
        seed: int,
        *,
        widths: Sequence[int] = (2, 5, 4, 1),
        activation: type[nn.Module] = nn.ReLU,
        bias: bool = True,
    ) -> nn.Sequential:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
        return nn.Sequential(*layers[:-1]).double()

    return build


@pytest.fixture
def alone() -> Callable[..., Alone]:
    """Train one member as anyone would, for comparison."""

    def train(
        member: Member,
        x: Tensor,
        y: Tensor,
        *,
        epochs: int,
        loss: Callable[..., Tensor] = binary_cross_entropy,
    ) -> Alone:
        generator = torch.Generator().manual_seed(member.seed)
        model = member.model.to(x.device).train()
        rates = [group["lr"] for group in member.optimizer.param_groups]
        size = member.batch_size or len(x)
        means = []
        for epoch in range(epochs):
            if member.schedule:
                for group, rate in zip(member.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * member.schedule(epoch)
            if size < len(x):
                order = torch.randperm(len(x), generator=generator).to(x.device)
            else:
                order = torch.arange(len(x), device=x.device)
            losses = []
            for rows in torch.split(order, size):
                member.optimizer.zero_grad()
                value = loss(model(x[rows]), y[rows], **member.hyper).mean()
                value.backward()  # type: ignore[no-untyped-call]
                member.optimizer.step()
                losses.append(value.item())
            means.append(sum(losses) / len(losses))
        return means, model, member.optimizer

    return train


@pytest.fixture
def together(device: str) -> Callable[..., Population]:
    """Give a population of these members, of which the first is the template."""

    def fill(members: Sequence[Member], **options: Any) -> Population:
        options = {"slots": len(members), "loss": binary_cross_entropy, **options}
        population = Population(members[0], device=device, **options)
        for slot, member in enumerate(members):
            population.admit(slot, member)
        return population

    return fill


@pytest.fixture
def assert_same(alone: Callable[..., Alone]) -> Callable[..., Population]:
    """Train members together and each one alone, and compare all there is."""

    def check(
        build: Callable[[int], Member],
        n: int,
        x: Tensor,
        y: Tensor,
        *,
        engine: str,
        epochs: int = 10,
        tolerance: float = 1e-10,
        **options: Any,
    ) -> Population:
        loss = options.get("loss", binary_cross_entropy)
        options["loss"] = loss
        # The template is the widest, and one slot stays free.
        population = Population(
            build(n - 1), slots=n + 1, device=x.device, engine=engine, **options
        )
        for slot in range(n):
            population.admit(slot, build(slot))
        together = torch.stack([population.train_epoch(x, y) for _ in range(epochs)])
        for slot in range(n):
            losses, model, optimizer = alone(build(slot), x, y, epochs=epochs, loss=loss)
            expected = torch.tensor(losses, dtype=torch.float64)
            torch.testing.assert_close(
                together[:, slot].double().cpu(), expected, rtol=tolerance, atol=tolerance
            )
            state = population.state_of(slot)
            for found, right in (
                (state["model"], model.state_dict()),
                (state["optimizer"]["state"], optimizer.state_dict()["state"]),
            ):
                torch.testing.assert_close(
                    _without_none(found), _without_none(right), rtol=tolerance, atol=tolerance
                )
        assert together[:, n].isnan().all()
        return population

    return check


def _without_none(state: dict[Any, Any]) -> dict[Any, Any]:
    """SGD notes that there is no momentum; we do not."""
    return {
        key: {k: v for k, v in value.items() if v is not None}
        if isinstance(value, dict)
        else value
        for key, value in state.items()
        if not (isinstance(value, dict) and all(v is None for v in value.values()))
    }


class Toy:
    """A small problem, its trials as everybody would train them one by one, and studies of it."""

    EPOCHS = 4

    def rows(self, n: int, seed: int = 0, device: str = "cpu") -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return x.to(device), (x[:, 0] * x[:, 1] > 0).long().to(device)

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        return {
            "units": trial.suggest_categorical("units", [0, 3, 5]),
            "lr": trial.suggest_float("lr", 1e-3, 1.0, log=True),
            "momentum": trial.suggest_float("momentum", 0.0, 0.9),
            "batch_size": trial.suggest_categorical("batch_size", [16, 50]),
        }

    def model(self, hyperparameters: dict[str, Any]) -> nn.Module:
        units = hyperparameters["units"]
        widths = (2, units, 2) if units else (2, 2)
        layers = [nn.Linear(widths[0], widths[1])]
        for i, o in zip(widths[1:-1], widths[2:], strict=True):
            layers += [nn.Tanh(), nn.Linear(i, o)]  # type: ignore[list-item]
        return nn.Sequential(*layers).double()

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(outputs, y, reduction="none")

    def problem(self, **changes: Any) -> Problem:
        given: dict[str, Any] = {
            "suggest": self.suggest,
            "model": self.model,
            "loss": self.losses,
            "train": self.rows(120),
            "valid": self.rows(70, seed=1),
            "batch_size": lambda hyperparameters: hyperparameters["batch_size"],
            "epochs": self.EPOCHS,
            "seed": lambda trial: trial.number,
        }
        return Problem(**{**given, **changes})

    def alone(
        self,
        trial: BaseTrial,
        about: Problem,
        *,
        seed: int | None = None,
        kept: dict[int, Any] | None = None,
        device: str = "cpu",
    ) -> float:
        """Train a trial, from where its parent was ``kept`` if it has one."""
        h = about.suggest(trial)  # type: ignore[arg-type]
        seed = trial.number if seed is None else seed
        torch.manual_seed(seed)
        net = about.model(h).to(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=h["lr"], momentum=h["momentum"])
        generator = torch.Generator().manual_seed(seed)
        things = net, optimizer, generator
        start = 0
        if (parent := trial.user_attrs.get("parent")) is not None and kept is not None:
            start, *states = kept[parent]
            _restore(things, states, h)
        assert isinstance(about.epochs, int)
        last = start + about.interval if about.interval else about.epochs
        value = math.nan
        for epoch in range(start + 1, last + 1):
            value = self._epoch(*things, about, h["batch_size"])
            trial.report(value, epoch)
            if kept is not None:
                states = [net.state_dict(), optimizer.state_dict(), generator.get_state()]
                kept[trial.number] = epoch, *copy.deepcopy(states)
            if epoch < last and trial.should_prune():
                raise optuna.TrialPruned
        return value

    def _epoch(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        generator: torch.Generator,
        about: Problem,
        batch_size: int,
    ) -> float:
        assert isinstance(about.train, tuple)
        assert isinstance(about.valid, tuple)
        device = next(net.parameters()).device
        x, y = (part.to(device) for part in about.train)
        order = torch.randperm(len(x), generator=generator).to(device)
        for batch in torch.split(order, batch_size):
            optimizer.zero_grad()
            self.losses(net(x[batch]), y[batch]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            valid_x, valid_y = (part.to(device) for part in about.valid)
            return self.losses(net(valid_x), valid_y).mean().item()

    def new_study(self, **about: Any) -> optuna.Study:
        about = {"sampler": optuna.samplers.RandomSampler(seed=0), **about}
        about.setdefault("pruner", optuna.pruners.NopPruner())
        return optuna.create_study(**about)

    def run(self, n_trials: int, about: Problem | None = None, **settings: Any) -> optuna.Study:
        study: optuna.Study = settings.pop("study", None) or self.new_study()
        # Which engine is the fastest is a matter of chance, on which the last bit depends.
        settings = {"device": "cpu", "engine": "vmap", **settings}
        optimize(study, about or self.problem(), n_trials, **settings)
        return study

    def curves(self, study: optuna.Study) -> list[dict[int, float]]:
        return [trial.intermediate_values for trial in study.trials]

    def assert_same(
        self, study: optuna.Study, other: optuna.Study, *, tolerance: float = 1e-12
    ) -> None:
        assert len(study.trials) == len(other.trials)
        for one, two in zip(study.trials, other.trials, strict=True):
            assert one.params == two.params
            assert one.state == two.state
            assert one.intermediate_values == pytest.approx(
                two.intermediate_values, rel=tolerance, abs=tolerance
            )
            assert one.value == pytest.approx(two.value, rel=tolerance, abs=tolerance)


def _restore(things: Sequence[Any], states: Sequence[Any], h: dict[str, Any]) -> None:
    net, optimizer, generator = things
    net.load_state_dict(states[0])
    optimizer.load_state_dict(copy.deepcopy(states[1]))
    optimizer.param_groups[0].update(lr=h["lr"], momentum=h["momentum"])
    generator.set_state(states[2])


@pytest.fixture
def toy() -> Toy:
    """Give a small problem and how it is trained."""
    return Toy()


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
        pass

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
def emulated(monkeypatch: pytest.MonkeyPatch) -> type[Emulated]:
    """Give what records steps where there is no GPU."""
    monkeypatch.setattr(Emulated, "made", 0)
    monkeypatch.setattr(Emulated, "replayed", 0)
    return Emulated


@pytest.fixture
def recording(
    device: str, emulated: type[Emulated], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Let steps be recorded from now on: by CUDA, where it is there, or what is given."""
    monkeypatch.delitem(RECORDERS, device, raising=False)

    def switch(recorder: type[Emulated] | None = None) -> None:
        real = CudaGraphs if device == "cuda" else emulated
        monkeypatch.setitem(RECORDERS, device, recorder or real)

    return switch
