"""Population-based training beside other searches, a plain loop and Ray Tune.

Held-out accuracy after equal training steps, on the decision boundaries of Auto-Tune::

    python -m studies.compare_pbt quality --seeds 10

Intervals per second and final accuracy on MNIST beside a loop written by hand and, where it is
installed (``pip install 'optuna-ext[ray]'``), Ray Tune::

    python -m studies.compare_pbt speed --seeds 3

Sizes for a quick look::

    python -m studies.compare_pbt quality --seeds 1 --members 4 --intervals 5
    python -m studies.compare_pbt speed --seeds 1 --members 4 --intervals 3 --steps 2
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
import math
from pathlib import Path
import statistics
from typing import Annotated
from typing import Any

import optuna
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
import torch
import typer

from studies._errors import SentenceGroup
from studies._errors import unknown
from studies._pbt_quality import Budget
from studies._pbt_quality import Case
from studies._pbt_quality import CASES
from studies._pbt_quality import METHODS
from studies._pbt_quality import Outcome
from studies._pbt_quality import run_all
from studies._pbt_quality import STEPS
from studies._pbt_speed import CONTESTANTS
from studies._pbt_speed import run_all as race
from studies._pbt_speed import Setting
from studies._pbt_speed import Timing
from studies._ray import has_ray


app = typer.Typer(add_completion=False, cls=SentenceGroup)

Seeds = Annotated[int, typer.Option(help="Runs of each.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def quality(
    seeds: Seeds = 10,
    members: Annotated[int, typer.Option(help="Members of the population.", min=2)] = 10,
    intervals: Annotated[int, typer.Option(help="Intervals of 350 steps.", min=1, max=STEPS)] = 10,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable.", show_default=", ".join(METHODS)),
    ] = None,
    json: Json = False,
) -> None:
    """Compare searches at equal training steps on six small problems."""
    methods = method or list(METHODS)
    for name in methods:
        if name not in METHODS:
            raise unknown("--method", name, METHODS)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    budget = Budget(members, intervals)
    n_runs = seeds * len(CASES) * len(methods)
    outcomes = list(_progress(run_all(budget, range(seeds), methods), n_runs))
    if json:
        typer.echo(dumps([asdict(outcome) for outcome in outcomes], indent=2))
        return
    console = _console()
    title = (
        f"{members} x {intervals} intervals of {budget.steps_per_interval} steps, {seeds} seeds"
    )
    console.print(f"[bold]test accuracy: median (lowest to highest); {title}[/bold]")
    console.print(_quality_table(outcomes, methods))


def _quality_table(outcomes: Sequence[Outcome], methods: Sequence[str]) -> Table:
    table = Table("data", "net", *methods, "lr spread of PBT", box=None)
    for case in CASES:
        cells = [_median_and_range(_tests(outcomes, case, name)) for name in methods]
        spreads = [o.spread for o in outcomes if (o.case, o.method) == (case, "pbt")]
        table.add_row(
            str(case.dataset),
            case.net,
            *cells,
            f"{statistics.median(spreads):.0f} ({min(spreads):.1f} at least)" if spreads else "",
        )
    return table


def _tests(outcomes: Iterable[Outcome], case: Case, method: str) -> list[float]:
    return [o.test for o in outcomes if (o.case, o.method) == (case, method)]


def _median_and_range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


@app.command()
def speed(
    seeds: Seeds = 3,
    members: Annotated[int, typer.Option(help="Members of the population.", min=2)] = 8,
    intervals: Annotated[int, typer.Option(help="Intervals of every member.", min=2)] = 20,
    steps: Annotated[int, typer.Option(help="Steps of an interval, 32 images each.", min=1)] = 5,
    images: Annotated[
        int, typer.Option(help="Images on which an interval is measured.", min=1, max=5000)
    ] = 500,
    workers: Annotated[
        int, typer.Option(help="Threads of the studies, CPUs of Ray Tune.", min=1)
    ] = 2,
    without: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(CONTESTANTS)}; repeatable.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where MNIST is.", show_default="$OPTUNA_EXT_DATA")
    ] = None,
    json: Json = False,
) -> None:
    """Time the same population in a study, a plain loop and Ray Tune."""
    for name in without or []:
        if name not in CONTESTANTS:
            raise unknown("--without", name, CONTESTANTS)
    names = [name for name in CONTESTANTS if name not in (without or [])]
    if "Ray Tune" in names and not has_ray():
        typer.echo("Ray Tune is not installed: pip install 'optuna-ext[ray]'", err=True)
        names.remove("Ray Tune")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    setting = Setting(
        members=members,
        intervals=intervals,
        steps=steps,
        images=images,
        workers=workers,
        data_dir=data_dir,
    )
    timings = list(_progress(race(setting, range(seeds), names), seeds * len(names)))
    if json:
        typer.echo(dumps([_finite(asdict(timing)) for timing in timings], indent=2))
        return
    console = _console()
    title = (
        f"{members} x {intervals} intervals of {steps} steps and {images} images, {seeds} seeds; "
        f"{workers} threads of a study, {workers} CPUs of Ray Tune"
    )
    console.print(f"[bold]MNIST: {title}; medians[/bold]")
    console.print(_speed_table(timings, names))


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in values.items()}


def _speed_table(timings: Sequence[Timing], names: Sequence[str]) -> Table:
    table = Table("", "intervals/s", "to the first", "CPU/interval", "to the first", "accuracy")
    by_name = {name: [t for t in timings if t.contestant == name] for name in names}
    first = by_name[names[0]]
    for name, own in by_name.items():
        pairs = list(zip(own, first, strict=True))  # of one seed, one after the other
        cpu = statistics.median(t.cpu_per_interval for t in own)
        cpu_ratio = statistics.median(t.cpu_per_interval / f.cpu_per_interval for t, f in pairs)
        rates = [t.intervals_per_second / f.intervals_per_second for t, f in pairs]
        table.add_row(
            name,
            f"{statistics.median(t.intervals_per_second for t in own):.1f}",
            f"x {statistics.median(rates):.2f}",
            "" if math.isnan(cpu) else f"{1000 * cpu:.1f} ms",
            "" if math.isnan(cpu) else f"x {cpu_ratio:.2f}",
            f"{statistics.median(t.accuracy for t in own):.3f}",
        )
    return table


def _progress(outcomes: Iterator[Any], total: int) -> Iterator[Any]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=total)
        for outcome in outcomes:
            progress.advance(task)
            yield outcome


def _console() -> Console:
    console = Console()
    # A file or a pipe has no width: do not fold the table.
    return console if console.is_terminal else Console(width=200)


if __name__ == "__main__":
    app()
