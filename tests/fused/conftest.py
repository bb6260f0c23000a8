from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import Optimizer

from optuna_ext.fused import binary_cross_entropy
from optuna_ext.fused import Member
from optuna_ext.fused import Population


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
        generator = torch.Generator(x.device).manual_seed(member.seed)
        model = member.model.to(x.device).train()
        rates = [group["lr"] for group in member.optimizer.param_groups]
        size = member.batch_size or len(x)
        means = []
        for epoch in range(epochs):
            if member.schedule:
                for group, rate in zip(member.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * member.schedule(epoch)
            if size < len(x):
                order = torch.randperm(len(x), generator=generator, device=x.device)
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
