from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Adam
from torch.optim import Optimizer
from torch.optim import SGD
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from optuna_ext import fused
from optuna_ext.fused import Member
from optuna_ext.fused import Population
from optuna_ext.fused._devices import is_out_of_memory
from optuna_ext.fused._devices import tolerance


@pytest.fixture
def cuda(fake_cuda: list[str]) -> str:
    """The second of two devices: what takes the first one by mistake shows."""
    del fake_cuda
    return "cuda:1"


def losses(outputs: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(outputs, y, reduction="none")


def population(
    device: str, engine: str, optimizer: Callable[..., Optimizer], *layers: nn.Module
) -> Population:
    def member(seed: int) -> Member:
        model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), *layers, nn.Linear(4, 2))
        return Member(
            model=model, optimizer=optimizer(model.parameters(), lr=0.1), batch_size=16, seed=seed
        )

    made = Population(member(0), slots=3, loss=losses, device=device, engine=engine)
    for slot in range(2):
        made.admit(slot, member(slot))
    return made


def rows(device: str) -> tuple[Tensor, Tensor]:
    x = torch.randn(40, 2)
    return x.to(device), (x[:, 0] > 0).long().to(device)


def momentum(parameters: Any, lr: float) -> SGD:
    return SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize(
    ("engine", "optimizer"),
    [("stack", Adam), ("vmap", momentum), ("grad", Adam), ("loop", momentum), ("loop", Adam)],
)
def test_no_step_waits_for_the_device(
    engine: str, optimizer: Callable[..., Optimizer], cuda: str, fake_cuda: list[str]
) -> None:
    made = population(cuda, engine, optimizer)
    x, y = rows(cuda)
    made.train_epoch(x, y)  # the engine is compared with the loop
    fake_cuda.clear()
    made.train_epoch(x, y, passes=5)
    assert len([wait for wait in fake_cuda if "train_epoch" not in wait]) <= 5 * 3
    assert not [wait for wait in fake_cuda if "_local_scalar_dense" in wait or "index" in wait]


def test_a_study_from_loaders(toy: Any, cuda: str) -> None:
    """Everything gets to the device, and neither rows nor generators are of another one."""
    loaders = {
        name: DataLoader(TensorDataset(*getattr(toy.problem(), name)), batch_size=50)
        for name in ("train", "valid")
    }
    alone, problem = toy.problem(), toy.problem(**loaders)
    theirs = toy.new_study()
    theirs.optimize(lambda trial: toy.alone(trial, alone, device=cuda), n_trials=4)
    ours = toy.run(4, problem, slots=2, device=cuda)
    toy.assert_same(ours, theirs)
    assert {trial.user_attrs["device"] for trial in ours.trials} == {cuda}


@pytest.mark.parametrize(
    ("first", "then", "order"), [("cuda:0", "cpu", "own"), ("cpu", "cuda:1", "shared")]
)
def test_trials_go_on_on_another_kind_of_device(
    first: str, then: str, order: str, toy: Any, cuda: str
) -> None:
    """Their orders are the same everywhere, and so are their values."""
    del cuda
    problem = toy.problem(order=order)
    studies = [toy.new_study(), toy.new_study()]
    for study in studies:
        study.enqueue_trial({"units": 3})  # one program is enough
        study.enqueue_trial({"units": 3})
    undisturbed = fused.Trainer(problem, slots=4, device=first, engine="vmap")
    undisturbed.add([studies[1].ask() for _ in range(2)])
    expected = []
    while undisturbed.trials:
        expected += [result.value for result in undisturbed.step()]
    begun = fused.Trainer(problem, slots=4, device=first, engine="vmap")
    trials = [studies[0].ask() for _ in range(2)]
    begun.add(trials)
    found = begun.step()
    file = BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    state = torch.load(file, map_location="cpu", weights_only=True)
    trainer = fused.Trainer(problem, slots=4, device=then, engine="vmap")
    assert trainer.load_state_dict(state, trials) == []
    while trainer.trials:
        found += trainer.step()
    assert [result.step for result in found if result.is_over] == [toy.EPOCHS] * 2
    assert [result.value for result in found] == pytest.approx(expected, rel=1e-12)


def test_what_a_network_draws_changes_no_generator(cuda: str) -> None:
    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, ("cuda:0", cuda))]

    made, (x, y) = population(cuda, "loop", momentum, nn.AlphaDropout(0.3)), rows(cuda)
    before = states()
    made.train_epoch(x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, states(), strict=True))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling cublasGemmEx"), False),
        (ValueError("the shop is out of memory cards"), False),
    ],
)
def test_what_is_a_lack_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_tf32_may_be_less_exact(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default cuDNN rounds the factors of a convolution to 10 bits."""
    weights = torch.zeros(2, device=cuda)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert tolerance(weights, amp=False) > 2**-10
    assert tolerance(weights.cpu(), amp=False) <= 1e-3
    assert tolerance(weights.double(), amp=False) <= 1e-8
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert tolerance(weights, amp=False) <= 1e-3
