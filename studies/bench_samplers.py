"""Measure what a sampler adds to a trial that costs nothing, as the study grows.

    python -m studies.bench_samplers
    python -m studies.bench_samplers --sampler random --sampler tpe --trials 100,1000 --rounds 3

What is timed is a whole trial of an objective that only suggests its parameters: ``ask``, the
suggestions and ``tell``; in memory by CPU time, in a file by the clock. Samplers take turns in
every round, and a ratio compares a sampler with the first one in the same round, so that a busy
moment of the machine hits them all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from dataclasses import dataclass
from functools import partial
from itertools import product
from json import dumps
from pathlib import Path
import shutil
import sqlite3
import statistics
import tempfile
import time
from typing import Annotated

import optuna
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
import typer

from objectives.space import suggest
from optuna_ext.storage import sqlite
from studies._errors import SentenceCommand
from studies._errors import UserError
from studies._numbers import parse_numbers
from studies._race import named_sampler
from studies._race import quiet


SPACES: Mapping[str, Mapping[str, BaseDistribution]] = {
    "5 floats": {f"x{i}": FloatDistribution(-5, 5) for i in range(5)},
    "mixed": {
        "float": FloatDistribution(-5, 5),
        "log": FloatDistribution(1e-5, 1e-1, log=True),
        "int": IntDistribution(1, 20),
        "log_int": IntDistribution(8, 512, log=True),
        "choice": CategoricalDistribution(("a", "b", "c", "d")),
    },
}
_SAMPLERS = ("random", "sobol", "halton", "hammersley", "lhs", "poisson", "qmc")
_WINDOW = {"memory": 50, "SQLite": 20}  # trials that are timed at each size of the study

_STUDY = "bench"


@dataclass(frozen=True)
class Timing:
    """Seconds of a trial: a new sampler's first, one after so many, and the mean of all."""

    first: float
    at: dict[int, float]
    mean: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a trial costs with one sampler.

    Attributes:
        storage: ``"memory"`` or ``"SQLite"``.
        space: A name of :data:`SPACES`.
        sampler: The sampler as the user named it.
        first_ms: Milliseconds of a new sampler's first trial: of a study in memory, but of a
            restart in a file.
        trial_us: Microseconds of a trial, by the number of trials before it.
        ratio: The same, divided by the first sampler's.
        mean_us: Microseconds of the mean trial of a whole study, which counts what is done only
            now and then; ``None`` for files, where none is run from the beginning.
    """

    storage: str
    space: str
    sampler: str
    first_ms: float
    trial_us: dict[int, float]
    ratio: dict[int, float]
    mean_us: float | None


app = typer.Typer(add_completion=False)


@app.command(cls=SentenceCommand)
def main(
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or NAME:key=value,...; repeatable, the first one is the measure.",
            show_default=", ".join(_SAMPLERS),
        ),
    ] = None,
    trials: Annotated[str, typer.Option(help="Sizes of the study.")] = "100,1000,4000",
    rounds: Annotated[int, typer.Option(help="Of these the median.", min=1)] = 5,
    on_sqlite: Annotated[
        bool, typer.Option("--sqlite/--no-sqlite", help="Measure in an SQLite file, too.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure what a sampler adds to a trial that costs nothing, as the study grows."""
    samplers = sampler or list(_SAMPLERS)
    sizes = sorted(set(parse_numbers("--trials", trials, int)))
    if sizes[0] < 1:
        raise UserError(f"--trials must be at least 1, not {sizes[0]}")
    for name in samplers:
        named_sampler(name, None, seed=0, n_trials=sizes[-1])
    with quiet():
        for name, space in product(samplers, SPACES.values()):  # imports are no one's cost
            study = optuna.create_study(sampler=named_sampler(name, None, seed=0, n_trials=2))
            for _ in range(2):
                _time_trial(study, space)
        costs = list(_costs(samplers, sizes, rounds=rounds, on_sqlite=on_sqlite))
    if json:
        typer.echo(dumps([asdict(cost) for cost in costs], indent=2))
    else:
        _print_tables(costs, sizes)


def _costs(
    samplers: Sequence[str], sizes: Sequence[int], *, rounds: int, on_sqlite: bool
) -> Iterator[Cost]:
    for name, space in SPACES.items():
        in_memory = partial(_time_in_memory, space=space, sizes=sizes)
        yield from _take_turns(in_memory, ("memory", name), samplers, sizes, rounds=rounds)
        if on_sqlite:
            with tempfile.TemporaryDirectory() as folder:
                files = fill_files(Path(folder), space, sizes)
                in_file = partial(_time_on_sqlite, space=space, files=files)
                yield from _take_turns(in_file, ("SQLite", name), samplers, sizes, rounds=rounds)


def _take_turns(
    timing: Callable[[str], Timing],
    where: tuple[str, str],
    samplers: Sequence[str],
    sizes: Sequence[int],
    *,
    rounds: int,
) -> Iterator[Cost]:
    timings: defaultdict[str, list[Timing]] = defaultdict(list)
    order = [name for _ in range(rounds) for name in samplers]
    progress = Console(stderr=True)
    for name in track(
        order, " in ".join(where[::-1]), console=progress, disable=not progress.is_terminal
    ):
        timings[name].append(timing(name))
    base = timings[samplers[0]]
    for name in samplers:
        own = timings[name]
        means = [timing.mean for timing in own if timing.mean is not None]
        yield Cost(
            *where,
            sampler=name,
            first_ms=1e3 * statistics.median(timing.first for timing in own),
            trial_us={n: 1e6 * statistics.median(timing.at[n] for timing in own) for n in sizes},
            ratio={
                n: statistics.median(o.at[n] / b.at[n] for o, b in zip(own, base, strict=True))
                for n in sizes
            },
            mean_us=1e6 * statistics.median(means) if means else None,
        )


def _time_in_memory(
    name: str, *, space: Mapping[str, BaseDistribution], sizes: Sequence[int]
) -> Timing:
    total = max(sizes) + _WINDOW["memory"]
    sampler = named_sampler(name, None, seed=0, n_trials=total)
    study = optuna.create_study(sampler=sampler)
    # CPU time, since nothing here waits: other programs on the machine do not count.
    seconds = [_time_trial(study, space, clock=time.process_time) for _ in range(total)]
    at = {n: statistics.fmean(seconds[n : n + _WINDOW["memory"]]) for n in sizes}
    return Timing(seconds[0], at, statistics.fmean(seconds))


def _time_on_sqlite(
    name: str, *, space: Mapping[str, BaseDistribution], files: Mapping[int, Path]
) -> Timing:
    at = {}
    for n, file in files.items():
        copy = file.with_name("copy.db")
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        storage = sqlite(copy)
        sampler = named_sampler(name, None, seed=0, n_trials=max(files) + _WINDOW["SQLite"] + 1)
        study = optuna.load_study(study_name=_STUDY, storage=storage, sampler=sampler)
        first = _time_trial(study, space)
        at[n] = statistics.fmean(_time_trial(study, space) for _ in range(_WINDOW["SQLite"]))
        storage.engine.dispose()
        copy.unlink()
    return Timing(first, at)


def fill_files(
    folder: Path, space: Mapping[str, BaseDistribution], sizes: Sequence[int]
) -> dict[int, Path]:
    """Return files with so many random trials, from which every sampler goes on."""
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    files = {}
    for n in sizes:
        done = len(random.trials)
        for _ in range(n - done):
            _time_trial(random, space)
        files[n] = folder / f"{n}.db"
        if done:
            shutil.copy(files[done], files[n])
        storage = sqlite(files[n])
        study = optuna.create_study(study_name=_STUDY, storage=storage, load_if_exists=True)
        study.add_trials(random.trials[done:])
        storage.engine.dispose()  # the last connection moves what is in the -wal file into FILE
    return files


def _time_trial(
    study: optuna.Study,
    space: Mapping[str, BaseDistribution],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    start = clock()
    trial = study.ask()
    for name in space:
        suggest(trial, space, name)
    study.tell(trial, float(trial.number % 7))
    return clock() - start


def _print_tables(costs: Sequence[Cost], sizes: Sequence[int]) -> None:
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: do not fold the table
        console = Console(width=120)
    for where in dict.fromkeys((cost.storage, cost.space) for cost in costs):
        rows = [cost for cost in costs if (cost.storage, cost.space) == where]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("sampler", no_wrap=True)
        for n in sizes:
            table.add_column(f"after {n}\ntrials", justify="right", no_wrap=True)
        table.add_column("mean\nof all", justify="right")
        table.add_column("first\ntrial", justify="right")
        for row in rows:
            cells = (f"{row.ratio[n]:.2f}x  {row.trial_us[n]:.0f} µs" for n in sizes)
            mean = "" if row.mean_us is None else f"{row.mean_us:.0f} µs"
            table.add_row(row.sampler, *cells, mean, f"{row.first_ms:.1f} ms")
        console.print(f"[bold]{where[1]} in {where[0]}[/bold]: time of a trial")
        console.print(table)


if __name__ == "__main__":
    app()
