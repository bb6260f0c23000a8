"""Compare samplers on the same problem, seed by seed.

    python -m studies.compare --sampler random --sampler sobol --sampler tpe --on rosenbrock
    python -m studies.compare --sampler "lhs:kind=centered" --sampler qmc --on digits --seeds 5
    python -m studies.compare --sampler tpe --on cats-grid --data-dir DIR --parallel-trials 10
    python -m studies.compare --sampler nelder-mead --sampler scipy:nelder-mead --on ellipsoid
    python -m studies.compare --designs

A seed fixes the sampler and the instance of the problem: every sampler meets the same instances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence
from json import dumps
from pathlib import Path
import re
from typing import Annotated

import numpy as np
from rich.console import Console
from rich.progress import Progress
import typer

from studies._catalog import parse_assignments
from studies._designs import designs_figure
from studies._designs import draw_designs
from studies._errors import SentenceCommand
from studies._errors import UserError
from studies._figures import check_figure_path
from studies._figures import curves_figure
from studies._figures import spans_decades
from studies._figures import write_figure
from studies._functions import FUNCTIONS
from studies._numbers import parse_numbers
from studies._problems import find_problem
from studies._problems import Problem
from studies._problems import Settings
from studies._race import check_sampler
from studies._race import Race
from studies._race import Run
from studies._race import run_all
from studies._scipy_searches import SEARCHES
from studies._standings import as_json
from studies._standings import by_sampler
from studies._standings import main_table
from studies._standings import Standing
from studies._standings import standings
from studies._standings import targets_table
from studies._standings import write_csv


app = typer.Typer(add_completion=False)


@app.command(cls=SentenceCommand)
def main(
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or NAME:key=value,...; repeatable, the others are held against the first. "
            f"Where all parameters are continuous also {', '.join(SEARCHES)}.",
            show_default="random, sobol, tpe",
        ),
    ] = None,
    on: Annotated[
        str, typer.Option(help=f"{', '.join(FUNCTIONS)}, cats-grid, digits, ..., module:objective")
    ] = "sphere",
    dims: Annotated[int, typer.Option(help="Parameters of a test function.", min=1)] = 5,
    trials: Annotated[int, typer.Option(help="Budget of a run.", min=1)] = 100,
    seeds: Annotated[int, typer.Option(help="Runs of each sampler.", min=1)] = 20,
    first_seed: Annotated[int, typer.Option(help="The others follow it.", min=0)] = 0,
    parallel_trials: Annotated[
        int, typer.Option(help="Trials that are under way at once.", min=1)
    ] = 1,
    workers: Annotated[
        int, typer.Option("--workers", "--n-jobs", help="Processes that share the runs.", min=1)
    ] = 1,
    at: Annotated[
        str | None, typer.Option(help="Trials to look at on the way.", show_default="1/4 and 1/2")
    ] = None,
    targets: Annotated[str | None, typer.Option(help="Values to reach, as 80,82,84.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs per trial.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="Where objectives train.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the data sets are.", show_default="$OPTUNA_EXT_DATA")
    ] = None,
    arg: Annotated[
        list[str] | None, typer.Option(help="key=value for the objective; repeatable.")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="HTML, SVG or PNG file.", show_default="runs/compare-PROBLEM.html"),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="File for the value of every trial.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    designs: Annotated[
        bool, typer.Option("--designs", help="Only draw 64 points of every design.")
    ] = False,
) -> None:
    """Compare samplers on the same instances of a problem, over many seeds."""
    if designs:
        _designs(figure or _default_figure("designs"), seed=first_seed)
        return
    arguments = parse_assignments("--arg", arg or [])
    race = Race(
        on=on,
        settings=Settings(dims, epochs, device, data_dir, arguments),
        n_trials=trials,
        parallel_trials=parallel_trials,
    )
    halves = sorted({max(1, trials // 4), max(1, trials // 2)})
    _compare(
        race,
        sampler or ["random", "sobol", "tpe"],
        range(first_seed, first_seed + seeds),
        workers=workers,
        at=halves if at is None else parse_numbers("--at", at, int),
        targets=None if targets is None else parse_numbers("--targets", targets, float),
        figure=figure,
        csv=csv,
        print_json=json,
    )


def _compare(
    race: Race,
    samplers: Sequence[str],
    seeds: Sequence[int],
    *,
    workers: int,
    at: Sequence[int],
    targets: Sequence[float] | None,
    figure: Path | None,
    csv: Path | None,
    print_json: bool,
) -> None:
    problem = _check(race, samplers, at=at, csv=csv)
    figure = figure or _default_figure(f"compare-{race.on}")
    check_figure_path(figure)
    done, is_interrupted = _run(race, samplers, seeds, workers=workers)
    runs = by_sampler(done, samplers)
    seeds = [run.seed for run in runs[samplers[0]]]
    if csv:
        write_csv(csv, [run for them in runs.values() for run in them])
    curves = {name: np.stack([run.best for run in them]) for name, them in runs.items()}
    rows = standings(
        runs,
        maximize=problem.direction == "maximize",
        at=at,
        targets=problem.targets if targets is None else targets,
    )
    log = spans_decades(curves)
    title = _title(race, problem.direction, len(seeds))
    write_figure(curves_figure(curves, title=title, log=log), figure)
    if print_json:
        _print_json(race, problem.direction, rows, seeds, figure)
    else:
        _print_tables(title, rows, figure, log=log)
    if is_interrupted:
        raise KeyboardInterrupt


def _run(
    race: Race, samplers: Sequence[str], seeds: Sequence[int], *, workers: int
) -> tuple[list[Run], bool]:
    """Return the runs of the seeds that all samplers have finished, and whether Ctrl-C came."""
    done: list[Run] = []
    is_interrupted = False
    try:
        for run in _progress(race, samplers, seeds, workers=workers):
            done.append(run)
    except KeyboardInterrupt:
        is_interrupted = True
    counts = Counter(run.seed for run in done)
    whole = [run for run in done if counts[run.seed] == len(samplers)]
    if not whole:
        raise KeyboardInterrupt
    return whole, is_interrupted


def _check(race: Race, samplers: Sequence[str], *, at: Sequence[int], csv: Path | None) -> Problem:
    """Refuse what cannot be done before anything is computed."""
    problem = find_problem(race.on, race.settings)
    for sampler in samplers:
        if samplers.count(sampler) > 1:
            raise UserError(f"--sampler {sampler!r} is given twice")
        check_sampler(race, sampler, problem)
    for n in at:
        if not 1 <= n <= race.n_trials:
            raise UserError(f"--at {n} must be from 1 to --trials {race.n_trials}")
    if csv and not csv.parent.is_dir():
        raise UserError(f"--csv {str(csv)!r} is in a folder that does not exist")
    return problem


def _progress(
    race: Race, samplers: Sequence[str], seeds: Sequence[int], *, workers: int
) -> Iterator[Run]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(race.on, total=len(samplers) * len(seeds))
        for run in run_all(race, samplers, seeds, workers=workers):
            progress.update(task, advance=1, description=f"{run.sampler}, seed {run.seed}")
            yield run


def _print_tables(title: str, rows: Sequence[Standing], figure: Path, *, log: bool) -> None:
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: do not fold the table
        console = Console(width=120)
    console.print(f"[bold]{title}[/bold]")
    console.print(main_table(rows, log=log))
    if rows[0].targets:
        console.print("trials until a value is reached: median (share of the runs that reach it)")
        console.print(targets_table(rows))
    console.print(f"curves: {figure}", highlight=False, soft_wrap=True)


def _print_json(
    race: Race,
    direction: str,
    rows: Sequence[Standing],
    seeds: Sequence[int],
    figure: Path,
) -> None:
    document = {
        "problem": race.on,
        "direction": direction,
        "trials": race.n_trials,
        "parallel_trials": race.parallel_trials,
        "seeds": list(seeds),
        "samplers": [as_json(row) for row in rows],
        "figure": str(figure),
    }
    typer.echo(dumps(document, indent=2))


def _designs(path: Path, *, seed: int) -> None:
    check_figure_path(path)
    write_figure(designs_figure(draw_designs(seed)), path)
    typer.echo(f"designs: {path}")


def _title(race: Race, direction: str, n_seeds: int) -> str:
    dims = f" in {race.settings.dims} dimensions" if race.on in FUNCTIONS else ""
    at_once = f", {race.parallel_trials} at once" if race.parallel_trials > 1 else ""
    return f"{direction} {race.on}{dims}: {race.n_trials} trials{at_once}, {n_seeds} seeds"


def _default_figure(name: str) -> Path:
    folder = Path("runs")
    folder.mkdir(exist_ok=True)
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', name, flags=re.IGNORECASE)}.html"


if __name__ == "__main__":
    app()
