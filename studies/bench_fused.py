"""Measure what training many trials as one program gains, workload by workload.

    python -m studies.bench_fused
    python -m studies.bench_fused --only steps --rounds 5 --json

Three things are measured, on one CPU thread or on one GPU:

- *steps*: optimizer steps of a network, among others in a population, against the same steps of
  one network after another: as everybody trains, with a ``DataLoader``, and by the best loop that
  we know, with slices of tensors that lie on the device and torch's fused optimizers. These run in
  a process of their own, because a population also speeds up the rest of its process: freed memory
  is kept, which is worth 7% to 784-1000-1000-10. The time of a step in a population is that of an
  epoch, shuffling and taking the rows included, divided by its steps and members. Small networks
  are trained by the engine chosen among all, by the one for any module, and by the compiled one,
  without the seconds that the compiler takes once.
- *study*: the headline, 1,024 trials of ten epochs over the three networks of Auto-Tune
  (Jacobson & Gonzalez 2020), 2-1, 2-3-1 and 2-5-5-1: 10,000 points, batches of 256; learning
  rate, momentum and weight decay; the validation loss is reported after every epoch. Results are
  in an SQLite file. Against ``study.optimize`` with a ``DataLoader`` on the storage that Optuna
  makes of ``sqlite:///study.db``, of which a few trials are enough.
- *halving*: the same with a pruner that keeps a third at each rung, in memory.

All are ratios of neighbors in time, so that a busy moment of the machine hits both; the seconds
beside them are of CPU time but for those of the headline, which are given as wall time, too.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import Executor
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from json import dumps
from multiprocessing import get_context
from pathlib import Path
import statistics
import sys
import tempfile
import time
from typing import Annotated
from typing import Any

import optuna
from rich import box
from rich.console import Console
from rich.table import Table
import typer

from studies._errors import SentenceCommand
from studies._errors import UserError
from studies._interrupt import Interrupt


_PARTS = ("steps", "study", "halving")
_FEW = 4  # trials that are trained one by one

Row = dict[str, Any]

app = typer.Typer(add_completion=False)


@app.command(cls=SentenceCommand)
def main(
    only: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(_PARTS)}; all by default.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Trials of the studies.", min=8)] = 1024,
    slots: Annotated[int, typer.Option(help="How many of them at once.", min=1)] = 1024,
    epochs: Annotated[int, typer.Option(help="Epochs of each trial.", min=1)] = 10,
    rounds: Annotated[int, typer.Option(help="How often everything is measured.", min=1)] = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure what training many trials as one program gains."""
    from objectives.training import resolve_device

    if only not in (None, *_PARTS):
        raise UserError(f"--only must be one of {', '.join(_PARTS)}, not {only!r}")
    try:
        where = resolve_device(device)
    except ValueError as error:
        raise UserError(f"--device: {error}") from error
    rows: list[Row] = []
    settings = {"trials": trials, "slots": slots, "epochs": epochs, "device": where}
    with (
        Interrupt().listening() as interrupt,
        _quiet_and_single_threaded(),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere,
    ):
        for measure in _measures(only, settings, elsewhere):
            results = []
            for _ in range(rounds):
                results.append(measure())
                if interrupt.signum is not None:
                    raise typer.Exit(interrupt.exit_code)
            rows.append(_median(results))
            if sys.stderr.isatty():
                sys.stderr.write(f"{rows[-1]['workload']}\n")
    if json:
        typer.echo(dumps(rows, indent=2))
    else:
        _print_table(rows)


def _measures(
    only: str | None, settings: dict[str, Any], elsewhere: Executor
) -> Iterator[Callable[[], Row]]:
    from studies._loops import Workload
    from studies._loops import workloads

    if only in (None, "steps"):

        def of(workload: Workload) -> Callable[[], Row]:
            return lambda: _steps(workload, elsewhere)

        yield from (of(workload) for workload in workloads(settings["device"]))
    if only in (None, "study"):
        yield lambda: _study(**settings)
    if only in (None, "halving"):
        yield lambda: _halving(**settings)


def _steps(workload: Any, elsewhere: Executor) -> Row:
    """Time steps one by one, in a process of their own, and together."""
    from studies._loops import seconds_one_by_one

    engines = ("auto", "vmap", "compiled") if workload.slots > 100 else ("auto",)
    populations = {name: workload.population(engine=name) for name in engines}
    for population in populations.values():
        workload.seconds_together(population)  # chooses the engine, and waits for the compiler
    n = 100 if workload.slots > 100 else 32
    where = str(workload.x.device)
    loader, plain, loop = elsewhere.submit(seconds_one_by_one, workload.name, where, n).result()
    row: Row = {
        "workload": f"steps of {workload.name}, {workload.slots} together",
        "loader_us": 1e6 * loader,
        "best_loop_us": 1e6 * min(plain, loop),
        "fused_optimizer_over_plain": plain / loop,
    }
    for name, population in populations.items():
        seconds = workload.seconds_together(population)
        row |= {
            f"{name}_us": 1e6 * seconds,
            f"{name}_over_loader": loader / seconds,
            f"{name}_over_best_loop": min(plain, loop) / seconds,
            f"{name}_engine": population.engine,
        }
    return row


def _study(*, trials: int, slots: int, epochs: int, device: Any) -> Row:
    """Time the headline."""
    from optuna_ext import fused
    from optuna_ext import sqlite
    from studies import _loops

    with tempfile.TemporaryDirectory() as folder:
        theirs = _new_study(storage=f"sqlite:///{folder}/one.db")
        alone = _timed(
            lambda: theirs.optimize(
                lambda trial: _loops.objective(trial, device=device, epochs=epochs), n_trials=_FEW
            )
        )
        storage = sqlite(Path(folder) / "many.db")
        ours = _new_study(storage=storage)
        problem = _loops.search(device, epochs=epochs)
        together = _timed(
            lambda: fused.optimize(ours, problem, trials, slots=slots, device=device)
        )
        again = optuna.load_study(
            study_name=ours.study_name, storage=f"sqlite:///{folder}/many.db"
        )
        complete = sum(len(trial.intermediate_values) == epochs for trial in again.trials)
        storage.engine.dispose()
    return {
        "workload": f"{trials} trials of {epochs} epochs, in SQLite",
        "complete": complete,
        "wall_s": together[0],
        "cpu_s": together[1],
        "alone_wall_s": alone[0] / _FEW * trials,
        "alone_cpu_s": alone[1] / _FEW * trials,
        "over_loader_wall": alone[0] / _FEW * trials / together[0],
        "over_loader_cpu": alone[1] / _FEW * trials / together[1],
    }


def _halving(*, trials: int, slots: int, epochs: int, device: Any) -> Row:
    """Time a study of which a pruner ends two thirds at each rung."""
    from optuna_ext import fused
    from studies import _loops

    def pruner() -> optuna.pruners.BasePruner:
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)

    few = 8 * _FEW
    theirs = _new_study(pruner=pruner())
    alone = _timed(
        lambda: theirs.optimize(
            lambda trial: _loops.objective(trial, device=device, epochs=epochs), n_trials=few
        )
    )
    ours = _new_study(pruner=pruner())
    problem = _loops.search(device, epochs=epochs)
    n_slots = min(slots, 512)
    together = _timed(lambda: fused.optimize(ours, problem, trials, slots=n_slots, device=device))
    return {
        "workload": f"{trials} trials pruned by halving, {n_slots} slots refilled, in memory",
        "epochs_per_trial": _epochs(ours),
        "alone_epochs_per_trial": _epochs(theirs),
        "cpu_s": together[1],
        "alone_cpu_s": alone[1] / few * trials,
        "over_loader_cpu": alone[1] / few * trials / together[1],
        "over_loader_cpu_per_epoch": (alone[1] / few / _epochs(theirs))
        / (together[1] / trials / _epochs(ours)),
    }


def _epochs(study: optuna.Study) -> float:
    return statistics.fmean(len(trial.intermediate_values) for trial in study.trials)


def _new_study(**about: Any) -> optuna.Study:
    about.setdefault("pruner", optuna.pruners.NopPruner())
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), **about)


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Return seconds of wall and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


@contextmanager
def _quiet_and_single_threaded() -> Iterator[None]:
    import torch

    verbosity, threads = optuna.logging.get_verbosity(), torch.get_num_threads()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
        torch.set_num_threads(threads)


def _median(results: list[Row]) -> Row:
    """Return the median of each number."""
    return {
        name: statistics.median(result[name] for result in results)
        if isinstance(value, float | int)
        else value
        for name, value in results[-1].items()
    }


def _print_table(rows: list[Row]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("workload")
    table.add_column("measured", justify="right")
    for row in rows:
        lines = [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.items()
            if name != "workload"
        ]
        table.add_row(row["workload"], "\n".join(lines), end_section=True)
    Console().print(table)


if __name__ == "__main__":
    app()
