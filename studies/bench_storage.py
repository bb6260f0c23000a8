"""Measure what a trial costs in an SQLite file: ``optuna_ext.sqlite`` against Optuna's default.

    python -m studies.bench_storage
    python -m studies.bench_storage --trials 200 --rounds 3 --directory /mnt/disk --json

A trial samples four floats at random, reports five values, asks ``should_prune`` after each and
returns at once, so that nearly all of its time is the storage's. The two storages take turns, a
fresh study each, and a ratio compares two neighbors, so that a busy moment of the machine hits
both.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from json import dumps
from pathlib import Path
import statistics
import tempfile
import time
from typing import Annotated

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
import typer

from optuna_ext.storage import sqlite
from studies._errors import SentenceCommand
from studies._interrupt import Interrupt


_OPTUNA = 'storage="sqlite:///study.db"'
_OURS = 'storage=sqlite("study.db")'

_STORAGES: Mapping[str, Callable[[Path], RDBStorage]] = {
    _OPTUNA: lambda path: RDBStorage(f"sqlite:///{path}"),  # what Optuna makes of that URL
    _OURS: sqlite,
}


app = typer.Typer(add_completion=False)


@app.command(cls=SentenceCommand)
def main(
    trials: Annotated[int, typer.Option(help="Trials of each study.", min=1)] = 100,
    rounds: Annotated[int, typer.Option(help="Studies per storage.", min=1)] = 5,
    directory: Annotated[
        Path,
        typer.Option(
            help="Where the files are written for a moment: the disk that you mean to use.",
            exists=True,
            file_okay=False,
            writable=True,
        ),
    ] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure what a trial costs in an SQLite file, by the storage that writes it."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        # An exception in the middle of a transaction would be reported by SQLAlchemy and Optuna.
        with Interrupt().listening() as interrupt:
            seconds = _take_turns(interrupt, trials=trials, rounds=rounds, directory=directory)
    finally:
        optuna.logging.set_verbosity(verbosity)
    speedups = [
        theirs / ours for theirs, ours in zip(seconds[_OPTUNA], seconds[_OURS], strict=True)
    ]
    if json:
        typer.echo(dumps({"seconds_per_trial": seconds, "speedup": speedups}, indent=2))
    else:
        _print_table(seconds, speedups)


def _take_turns(
    interrupt: Interrupt, *, trials: int, rounds: int, directory: Path
) -> dict[str, list[float]]:
    """Return the seconds per trial of every round, by storage."""
    seconds: dict[str, list[float]] = {name: [] for name in _STORAGES}
    progress = Console(stderr=True)
    for _ in track(range(rounds), "measuring", console=progress, disable=not progress.is_terminal):
        for name, open_ in _STORAGES.items():
            with tempfile.TemporaryDirectory(dir=directory) as folder:
                storage = open_(Path(folder).absolute() / "study.db")
                seconds[name].append(_time_trials(storage, trials, interrupt) / trials)
                storage.engine.dispose()
            if interrupt.signum is not None:
                raise typer.Exit(interrupt.exit_code)
    return seconds


def _time_trials(storage: RDBStorage, trials: int, interrupt: Interrupt) -> float:
    def stop_if_interrupted(study: optuna.Study, trial: FrozenTrial) -> None:
        if interrupt.signum is not None:
            study.stop()

    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(storage=storage, sampler=sampler)
    study.optimize(_objective, n_trials=1)  # opens the connection
    start = time.perf_counter()
    study.optimize(_objective, n_trials=trials, callbacks=[stop_if_interrupted])
    return time.perf_counter() - start


def _objective(trial: optuna.Trial) -> float:
    value = sum(trial.suggest_float(f"x{i}", -5, 5) ** 2 for i in range(4))
    for epoch in range(5):
        trial.report(value / (epoch + 1), epoch)
        trial.should_prune()
    return value


def _print_table(seconds: Mapping[str, Sequence[float]], speedups: Sequence[float]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("create_study(...)", no_wrap=True)
    table.add_column("time of a trial", justify="right")
    table.add_column("speedup (range)", justify="right")
    speedup = f"{statistics.median(speedups):.1f}x ({min(speedups):.1f}-{max(speedups):.1f})"
    for name, ratio in ((_OPTUNA, "1.0x"), (_OURS, speedup)):
        table.add_row(name, f"{1e3 * statistics.median(seconds[name]):.1f} ms", ratio)
    Console().print(table)


if __name__ == "__main__":
    app()
