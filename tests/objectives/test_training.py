from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import logging
import math
from typing import Any
import weakref

import optuna
from optuna.trial import FixedTrial
from optuna.trial import TrialState
import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from objectives import nets
from objectives import runs
from objectives import training
from objectives.data import Data
from objectives.data import load
from objectives.runs import Run
from objectives.training import fit
from objectives.training import Recipe
from objectives.training import resolve_device
from objectives.training import Task


def recipe(
    *,
    lr: float = 0.1,
    batch_size: int | None = 64,
    dropout: float = 0.0,
    model: Callable[[torch.Generator], nn.Module] | None = None,
) -> Recipe:
    return Recipe(
        model=model or (lambda g: nets.mlp((64, 16, 10), dropout=dropout, generator=g)),
        optimizer=lambda parameters: SGD(parameters, lr=lr),
        batch_size=batch_size,
    )


def digits(where: torch.device) -> list[Data]:
    return [load("digits", device=where)]


def task(
    made: Recipe | None = None,
    data: Callable[[torch.device], Sequence[Data]] = digits,
    **about: Any,
) -> Task:
    return Task(
        hyperparameters=lambda _: {}, recipe=lambda _: made or recipe(), data=data, **about
    )


def train(trial: optuna.trial.BaseTrial, made: Recipe | None = None, **settings: Any) -> float:
    about = {name: settings.pop(name) for name in ("metric", "best_of") if name in settings}
    return fit(trial, task(made, **about), **{"epochs": 2, "device": "cpu", **settings})


class Recording(FixedTrial):
    """A fixed trial that remembers what was reported and prunes when told to."""

    def __init__(self, *, prune_at: int | None = None) -> None:
        super().__init__({})
        self.reports: dict[int, float] = {}
        self.prune_at = prune_at

    def report(self, value: float, step: int) -> None:
        assert step not in self.reports
        self.reports[step] = value

    def should_prune(self) -> bool:
        return max(self.reports) == self.prune_at


def test_it_learns_and_says_what_it_did(device: str) -> None:
    trial = Recording()
    value = train(trial, epochs=15, device=device)
    assert value > 0.8  # of ten classes
    assert list(trial.reports) == list(range(1, 16))
    assert trial.reports[15] == value
    attributes = trial.user_attrs
    assert attributes["device"] == str(resolve_device(device))
    assert attributes["n_parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert attributes["epochs"] == 15
    assert 0 < attributes["train_seconds"] < 60
    assert 0 < attributes["train_loss"] < math.log(10)
    assert 0 < attributes["valid_loss"] < math.log(10)
    assert attributes["test_accuracy"] == pytest.approx(value, abs=0.1)
    assert "reason" not in attributes


def test_error_is_one_minus_accuracy() -> None:
    accuracy, error = FixedTrial({}), FixedTrial({})
    assert train(error, metric="error") == 1 - train(accuracy)
    assert error.user_attrs["test_error"] == 1 - accuracy.user_attrs["test_accuracy"]


@pytest.mark.parametrize("metric", ["accuracy", "error"])
def test_the_best_of_some_epochs_is_the_value(metric: str) -> None:
    curve, trial = Recording(), Recording()
    train(curve, recipe(lr=2.0), epochs=6, metric=metric)  # so large that it goes up and down
    value = train(trial, recipe(lr=2.0), epochs=6, metric=metric, best_of=(2, 3, 5, 8))
    assert trial.reports == {epoch: curve.reports[epoch] for epoch in (2, 3, 5)}
    assert value == (max if metric == "accuracy" else min)(trial.reports.values())
    best = trial.user_attrs["best_epoch"]
    assert best == min(epoch for epoch in trial.reports if trial.reports[epoch] == value)
    alone = FixedTrial({})
    assert train(alone, recipe(lr=2.0), epochs=best, metric=metric) == value
    for name in ("train_loss", "valid_loss", f"test_{metric}"):
        assert trial.user_attrs[name] == alone.user_attrs[name]
    assert trial.user_attrs["epochs"] == 5
    with pytest.raises(ValueError, match="best_of must have an epoch up to 1, but it has none"):
        train(FixedTrial({}), epochs=1, best_of=(2, 3))


def test_a_full_batch_step_is_plain_gradient_descent() -> None:
    run = Run(recipe(batch_size=None), load("digits"), device=torch.device("cpu"), seed=3)
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
    made = recipe(batch_size=100, model=lambda _: Spy(64, 10))
    run = Run(made, data, device=torch.device("cpu"))
    run.train_epoch()
    run.train_epoch()
    assert [len(x) for x in shown] == ([100] * 11 + [97]) * 2
    first, second = torch.cat(shown[:12]), torch.cat(shown[12:])
    assert not torch.equal(first, second)  # in another order
    for epoch in (first, second):
        assert sorted(epoch.tolist()) == sorted(data.train_x.tolist())


def test_evaluation_weighs_every_row_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(recipe(), load("digits"), device=torch.device("cpu"))
    whole = run.evaluate("valid")
    monkeypatch.setattr(runs, "_ROWS_AT_ONCE", 7)  # 300 = 42 * 7 + 6
    split = run.evaluate("valid")
    assert split.accuracy == whole.accuracy
    assert split.loss == pytest.approx(whole.loss, rel=1e-5)


def test_one_output_is_the_log_odds_of_class_one() -> None:
    data = load("boundaries-1")
    made = recipe(batch_size=None, model=lambda _: nets.boundary_net("logistic"))
    run = Run(made, data, device=torch.device("cpu"))
    p = torch.sigmoid(run.model(data.valid_x)[:, 0]).detach()
    measured = run.evaluate("valid")
    y = data.valid_y
    assert measured.accuracy == ((p > 0.5).long() == y).double().mean().item()
    by_hand = -torch.where(y == 1, p.log(), (1 - p).log()).mean().item()
    assert measured.loss == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_equal_seeds_give_equal_values_in_threads_too(dropout: float) -> None:
    def value(seed: int) -> tuple[float, float]:
        trial = FixedTrial({})
        accuracy = train(trial, recipe(dropout=dropout), seed=seed)
        return accuracy, trial.user_attrs["train_loss"]

    alone = value(0)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(value, [0, 0, 0, 0])) == [alone] * 4
    assert value(1) != alone


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    train(FixedTrial({}), recipe(dropout=0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_test_rows_do_not_touch_the_value() -> None:
    def relabeled(where: torch.device) -> list[Data]:
        data = load("digits", device=where)
        return [dataclasses.replace(data, test_y=(data.test_y + 1) % 10)]

    honest, other = Recording(), Recording()
    value = fit(honest, task(), epochs=3, device="cpu")
    assert fit(other, task(data=relabeled), epochs=3, device="cpu") == value
    assert other.reports == honest.reports
    assert other.user_attrs["test_accuracy"] != honest.user_attrs["test_accuracy"]


def test_the_value_of_several_sets_is_their_mean() -> None:
    first, second = load("digits"), load("digits")
    second = dataclasses.replace(second, valid_y=(second.valid_y + 1) % 10)
    values = [
        fit(FixedTrial({}), task(data=lambda _, sets=sets: sets), epochs=2, device="cpu")  # type: ignore[misc]
        for sets in ([first], [second], [first, second])
    ]
    assert values[0] != values[1]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2)


def test_the_pruner_is_asked_after_every_epoch_but_the_last() -> None:
    pruned = Recording(prune_at=2)
    with pytest.raises(optuna.TrialPruned, match="after epoch 2 of 4"):
        train(pruned, epochs=4)
    assert list(pruned.reports) == [1, 2]
    assert pruned.user_attrs["epochs"] == 2
    assert "test_accuracy" not in pruned.user_attrs  # looked at by nobody
    finished = Recording(prune_at=4)
    assert train(finished, epochs=4) == finished.reports[4]


def test_several_objectives_are_trained_without_reports() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.optimize(lambda trial: (train(trial), 1.0), n_trials=1)
    assert study.trials[0].state == TrialState.COMPLETE
    assert study.trials[0].intermediate_values == {}


def test_a_diverged_trial_fails_with_its_reason_and_the_study_goes_on(
    caplog: pytest.LogCaptureFixture, device: str
) -> None:
    rates = iter([1e30, 0.1])
    study = optuna.create_study(direction="maximize")
    with caplog.at_level(logging.WARNING, logger="objectives"):
        study.optimize(
            lambda trial: train(trial, recipe(lr=next(rates)), device=device), n_trials=2
        )
    failed, finished = study.trials
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["reason"].startswith("diverged in epoch 1: the training loss is ")
    assert failed.user_attrs["epochs"] == 1
    assert failed.intermediate_values == {}
    assert "Trial 0 fails: diverged in epoch 1" in caplog.text
    assert finished.state == TrialState.COMPLETE


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB.\nGPU 0 has ..."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GiB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError("out of memory"),
    ],
    ids=["cuda", "mps", "cpu", "python"],
)
def test_a_trial_without_memory_fails_with_its_reason_and_the_study_goes_on(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(self: nn.Module, x: Tensor) -> Tensor:
        raise error

    study = optuna.create_study(direction="maximize")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", explode)
        study.optimize(train, n_trials=1)
    study.optimize(train, n_trials=1)
    failed, finished = study.trials
    assert failed.state == TrialState.FAIL
    first_line = str(error).splitlines()[0]
    assert failed.user_attrs["reason"] == f"out of memory on cpu: {first_line}"
    assert failed.user_attrs["epochs"] == 1
    assert first_line in caplog.text
    assert finished.state == TrialState.COMPLETE


def test_memory_that_runs_out_while_loading_fails_the_trial() -> None:
    def explode(where: torch.device) -> list[Data]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trial = FixedTrial({})
    assert math.isnan(fit(trial, task(data=explode), epochs=1, device="cpu"))
    assert trial.user_attrs["reason"] == "out of memory on cpu: CUDA out of memory."


def test_a_mistake_in_a_network_is_not_called_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(FixedTrial({}), recipe(model=lambda _: nn.Linear(63, 10)))


@pytest.mark.parametrize("end", ["complete", "pruned", "diverged", "error"])
def test_the_network_is_gone_when_memory_is_released(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[weakref.ref[nn.Module]] = []
    alive: list[bool] = []

    def build(_: torch.Generator) -> nn.Module:
        net = nn.Linear(64, 10)
        built.append(weakref.ref(net))
        return net

    def release(device: torch.device, *, compiled: bool) -> None:
        alive.extend(ref() is not None for ref in built)

    def explode(loss: Tensor, **_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(training, "_release_memory", release)
    if end == "error":
        monkeypatch.setattr(Tensor, "backward", explode)
    trial = Recording(prune_at=1 if end == "pruned" else None)
    made = recipe(lr=1e38 if end == "diverged" else 0.1, model=build)
    try:
        value = train(trial, made)
        assert math.isnan(value) == (end in ("diverged", "error"))
    except optuna.TrialPruned:
        assert end == "pruned"
    assert alive == [False]


def test_bfloat16_computes_differently_and_keeps_float32_weights(device: str) -> None:
    full, half = FixedTrial({}), FixedTrial({})
    value = train(full, epochs=10, device=device)
    assert train(half, epochs=10, device=device, amp=True) == pytest.approx(value, abs=0.05)
    assert half.user_attrs["train_loss"] != full.user_attrs["train_loss"]
    where = resolve_device(device)
    run = Run(recipe(), load("digits", device=where), device=where, amp=True)
    run.train_epoch()
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_compiled_networks_train_the_same(device: str) -> None:
    plain, compiled = FixedTrial({}), FixedTrial({})
    train(plain, recipe(dropout=0.2), device=device)
    train(compiled, recipe(dropout=0.2), device=device, compile=True)
    assert compiled.user_attrs["train_loss"] == pytest.approx(
        plain.user_attrs["train_loss"], rel=1e-3
    )


def test_a_recipe_may_end_earlier() -> None:
    short, alone = Recording(), Recording()
    value = train(short, dataclasses.replace(recipe(), max_epochs=3), epochs=5)
    assert value == train(alone, epochs=3)
    assert short.reports == alone.reports


def test_wrong_counts_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 1, but it is 0"):
        train(FixedTrial({}), epochs=0)
    with pytest.raises(ValueError, match="max_epochs must be at least 1, but it is 0"):
        dataclasses.replace(recipe(), max_epochs=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, but it is 0"):
        recipe(batch_size=0)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpu:3", "", "meta"])
def test_a_device_that_is_not_here_lists_those_that_are(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"device must be one of \['auto'.*'cpu'\].* is '{name}'"
    ):
        resolve_device(name)


@pytest.mark.parametrize(
    ("cudas", "mps", "asked", "given"),
    [
        (2, False, "auto", "cuda:0"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cpu", "cpu"),
        (0, True, "auto", "mps"),
        (0, False, "auto", "cpu"),
        (0, False, torch.device("cpu"), "cpu"),
    ],
)
def test_devices(
    cudas: int,
    mps: bool,
    asked: str | torch.device,
    given: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cudas)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device(asked) == torch.device(given)


@pytest.mark.parametrize("batch_size", [16, None])
def test_a_step_costs_no_synchronization(batch_size: int | None, fake_cuda: list[str]) -> None:
    """The loss is read once an epoch, so Python never waits for a GPU within one."""
    device = torch.device("cuda:1")
    made = recipe(batch_size=batch_size, dropout=0.2)
    run = Run(made, load("digits", device=device), device=device)
    fake_cuda.clear()
    run.train_epoch()
    assert len(fake_cuda) == 1
    run.evaluate("valid")
    assert len(fake_cuda) == 3  # its loss, and how many are right
