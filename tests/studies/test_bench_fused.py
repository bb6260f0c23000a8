from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
import json
import math
from multiprocessing import get_context

import pytest
import torch
from typer.testing import CliRunner

from optuna_ext import fused
from studies import _loops
from studies.bench_fused import app


runner = CliRunner()


def measured(*arguments: object) -> list[dict[str, object]]:
    flags = ["--rounds", 1, "--trials", 8, "--slots", 8, "--epochs", 2, *arguments]
    result = runner.invoke(app, [*map(str, flags), "--json"])
    assert result.exit_code == 0, result.output
    rows: list[dict[str, object]] = json.loads(result.stdout)
    return rows


def test_the_studies_are_run_in_full() -> None:
    (row,) = measured("--only", "study")
    assert row["complete"] == 8
    assert all(value > 0 for value in row.values() if isinstance(value, float))
    (row,) = measured("--only", "halving")
    assert 1 <= float(str(row["epochs_per_trial"])) <= 2


def test_a_table() -> None:
    result = runner.invoke(app, ["--only", "study", "--rounds", "1", "--trials", "8"])
    assert "8 trials of 10 epochs, in SQLite" in result.stdout


@pytest.mark.parametrize("arguments", [["--only", "tea"], ["--device", "cuda:99"]])
def test_mistakes(arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert arguments[1] in result.output


def test_steps_of_every_workload() -> None:
    for workload in _loops.workloads(torch.device("cpu")):
        if workload.slots > 100:  # the others take seconds
            population = workload.population(engine="vmap")
            assert len(population.taken) == workload.slots
            for seconds in (
                workload.seconds_of_loader(2),
                workload.seconds_of_loop(2, fused=True),
                workload.seconds_together(population),
            ):
                assert 0 < seconds < math.inf
        assert workload.model()(workload.x[:2]).shape[0] == 2


def test_loops_on_a_gpu_do_not_wait(fake_cuda: list[str]) -> None:
    """Both sides would look slow there, and theirs slower, if rows were moved at every step."""
    workload = next(iter(_loops.workloads(torch.device("cuda:1"))))
    fake_cuda.clear()
    workload.seconds_of_loop(1, fused=True)
    at_the_start = len(fake_cuda)
    fake_cuda.clear()
    workload.seconds_of_loop(20, fused=True)
    assert len(fake_cuda) == at_the_start
    assert workload.seconds_of_loader(2) > 0


def test_one_by_one_in_another_process() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
        found = elsewhere.submit(_loops.seconds_one_by_one, "2-5-5-1", "cpu", 2).result()
    assert all(0 < seconds < math.inf for seconds in found)


def test_both_sides_train_the_same_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to the last bit, because a DataLoader draws another order."""
    import optuna

    monkeypatch.setattr(_loops, "N_ROWS", 1000)
    settings = {"pruner": optuna.pruners.NopPruner()}
    one = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), **settings)  # type: ignore[arg-type]
    many = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), **settings)  # type: ignore[arg-type]
    device = torch.device("cpu")
    one.optimize(lambda trial: _loops.objective(trial, device=device, epochs=2), n_trials=6)
    fused.optimize(many, _loops.search(device, epochs=2), 6, device=device)
    for alone, together in zip(one.trials, many.trials, strict=True):
        assert alone.params == together.params
        assert together.value == pytest.approx(alone.value, rel=0.1)
