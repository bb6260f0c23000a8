from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from objectives import nets
from objectives import runs
from objectives.data import Data
from objectives.data import load
from objectives.runs import Run
from objectives.training import Recipe


def new_run(
    data: Data,
    *,
    batch_size: int | None = 64,
    model: Callable[[torch.Generator], nn.Module] = lambda _: nets.mlp((64, 16, 10)),
    seed: int = 0,
    device: str = "cpu",
) -> Run:
    recipe = Recipe(
        model=model, optimizer=lambda weights: SGD(weights, lr=0.1), batch_size=batch_size
    )
    return Run(recipe, data, device=torch.device(device), seed=seed)


def test_a_full_batch_step_is_plain_gradient_descent() -> None:
    run = new_run(load("digits"), batch_size=None, seed=3)
    with nets.seeded(3):
        oracle = nets.mlp((64, 16, 10))
    data = load("digits")
    loss = F.cross_entropy(oracle(data.train_x), data.train_y)
    gradients = torch.autograd.grad(loss, list(oracle.parameters()))
    assert run.train_epoch() == pytest.approx(loss.item(), rel=1e-6)
    for trained, start, gradient in zip(
        run.model.parameters(), oracle.parameters(), gradients, strict=True
    ):
        torch.testing.assert_close(trained, start - 0.1 * gradient)


def test_an_epoch_shows_every_row_once() -> None:
    shown = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                shown.append(x.detach().clone())
            return super().forward(x)

    data = load("digits")
    run = new_run(data, batch_size=100, model=lambda _: Spy(64, 10))
    run.train_epoch()
    run.train_epoch()
    assert [len(x) for x in shown] == ([100] * 11 + [97]) * 2
    first, second = torch.cat(shown[:12]), torch.cat(shown[12:])
    assert not torch.equal(first, second)  # in another order
    for epoch in (first, second):
        assert sorted(epoch.tolist()) == sorted(data.train_x.tolist())


def test_evaluation_weighs_every_row_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(load("digits"))
    whole = run.evaluate("valid")
    monkeypatch.setattr(runs, "_ROWS_AT_ONCE", 7)  # 300 = 42 * 7 + 6
    split = run.evaluate("valid")
    assert split.accuracy == whole.accuracy
    assert split.loss == pytest.approx(whole.loss, rel=1e-5)


def test_one_output_is_the_log_odds_of_class_one() -> None:
    data = load("boundaries-1")
    run = new_run(data, batch_size=None, model=lambda _: nets.boundary_net("logistic"))
    p = torch.sigmoid(run.model(data.valid_x)[:, 0]).detach()
    measured = run.evaluate("valid")
    y = data.valid_y
    assert measured.accuracy == ((p > 0.5).long() == y).double().mean().item()
    by_hand = -torch.where(y == 1, p.log(), (1 - p).log()).mean().item()
    assert measured.loss == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("batch_size", [16, None])
def test_a_step_costs_no_synchronization(batch_size: int | None, fake_cuda: list[str]) -> None:
    """An order is copied and the loss read once an epoch; within one, Python never waits."""
    device = "cuda:1"
    run = new_run(
        load("digits", device=device),
        batch_size=batch_size,
        model=lambda generator: nets.mlp((64, 16, 10), dropout=0.2, generator=generator),
        device=device,
    )
    fake_cuda.clear()
    run.train_epoch()
    waits = 1 if batch_size is None else 2
    assert len(fake_cuda) == waits
    run.evaluate("valid")
    assert len(fake_cuda) == waits + 2  # its loss, and how many are right
