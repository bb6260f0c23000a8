"""Compare pruners on learning curves of real trainings, with many workers in virtual time.

    python -m studies.curves digits
    python -m studies.curves small-fashion
    python -m studies.compare_pruners runs/curves-digits.npz runs/curves-small-fashion.npz

With a model-based sampler underneath, which takes longer::

    python -m studies.compare_pruners runs/curves-digits.npz --base random --base tpe --seeds 5

Every search begins all configurations of the table once, each worker an epoch per unit of time.
Speed-ups are those of the median time or number of epochs until a whole training is among the
best configurations, against the first base sampler without pruning. *Lost* are those of the best
5% of all configurations that were never trained to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from json import dumps
from pathlib import Path
from typing import Annotated
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
import plotly.graph_objects as go
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
import typer

from optuna_ext import Hyperband
from optuna_ext import HyperbandPruner
from optuna_ext import SuccessiveHalving
from optuna_ext import SuccessiveHalvingPruner
from studies._catalog import make_sampler
from studies._curve_table import CurveTable
from studies._curve_table import Floats
from studies._errors import SentenceCommand
from studies._errors import unknown
from studies._figures import check_figure_path
from studies._figures import write_figure
from studies._logs import ConsoleHandler
from studies._logs import quiet_optuna
from studies._virtual_time import Search
from studies._virtual_time import search


_Pair = tuple[BaseSampler, BasePruner]
_TARGETS = (0.02, 0.01, 0.004)  # shares of the best configurations
_BEST = 0.05


def _promote(**arguments: Any) -> Callable[[BaseSampler, int], _Pair]:
    def pair(base: BaseSampler, epochs: int) -> _Pair:
        halving = SuccessiveHalving(max_resource=epochs, base_sampler=base, **arguments)
        return halving.sampler, halving.pruner

    return pair


def _hyperband(base: BaseSampler, epochs: int) -> _Pair:
    hyperband = Hyperband(max_resource=epochs, base_sampler=base)
    return hyperband.sampler, hyperband.pruner


METHODS: dict[str, Callable[[BaseSampler, int], _Pair]] = {
    "none": lambda base, _: (base, optuna.pruners.NopPruner()),
    "optuna-median": lambda base, _: (base, optuna.pruners.MedianPruner()),
    "optuna-sha": lambda base, _: (base, optuna.pruners.SuccessiveHalvingPruner(min_resource=1)),
    "optuna-hyperband": lambda base, epochs: (
        base,
        optuna.pruners.HyperbandPruner(max_resource=epochs),
    ),
    "sha-pruner": lambda base, epochs: (base, SuccessiveHalvingPruner(max_resource=epochs)),
    "hyperband-pruner": lambda base, epochs: (base, HyperbandPruner(max_resource=epochs)),
    "halving": _promote(),
    "halving-all-rungs": _promote(min_resource=1),
    "halving-synchronous": _promote(synchronous=True),
    "hyperband": _hyperband,
}
"""By name: what makes a sampler and a pruner of a base sampler and the longest training."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method with one base sampler, over many seeds."""

    base: str
    method: str
    lost: float
    """Share of the best configurations that were not trained to the end, on average."""
    epochs_per_config: float
    """Epochs trained for each configuration that was begun."""
    epochs: list[float]
    """Median epochs until each target; inf if most searches never got there."""
    time: list[float]
    """Likewise, the time with all workers."""
    final: float
    """Median loss of the best whole training, less the table's best."""


app = typer.Typer(add_completion=False)


@app.command(cls=SentenceCommand)
def main(
    tables: Annotated[list[Path], typer.Argument(help="Files made by studies.curves.")],
    method: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(METHODS)}; repeatable.")
    ] = None,
    base: Annotated[
        list[str] | None, typer.Option(help="Sampler of new configurations; repeatable.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Trials at the same time.", min=1)] = 8,
    seeds: Annotated[int, typer.Option(help="Searches of each method.", min=1)] = 10,
    figure: Annotated[
        Path | None, typer.Option(help="HTML file.", show_default="runs/compare-pruners.html")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare pruners on learning curves of real trainings."""
    methods = method or list(METHODS)
    for name in methods:
        if name not in METHODS:
            raise unknown("--method", name, METHODS)
    bases = base or ["random"]
    for name in bases:
        make_sampler(name, seed=0)
    curves = [CurveTable.load(path) for path in tables]
    path = figure or Path("runs", "compare-pruners.html")
    if figure is None:
        path.parent.mkdir(exist_ok=True)
    check_figure_path(path)
    results: dict[str, list[Row]] = {}
    lines = go.Figure()
    for (table, name, key), runs in _searches(curves, bases, methods, seeds, workers):
        results.setdefault(table.name, []).append(_row(table, name, key, runs))
        _add_line(lines, table, f"{table.name}, {name}, {key}", runs)
    _finish(lines, workers)
    write_figure(lines, path)
    if json:
        document = {n: [vars(row) for row in rows] for n, rows in results.items()}
        typer.echo(dumps(document, indent=2))
        return
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: do not fold the table
        console = Console(width=120)
    for name, rows in results.items():
        console.print(_table(f"{name}: {workers} workers, {seeds} seeds", rows))
    console.print(f"regret over time: {path}", highlight=False, soft_wrap=True)


def _searches(
    tables: list[CurveTable], bases: list[str], methods: list[str], seeds: int, workers: int
) -> Iterator[tuple[tuple[CurveTable, str, str], list[Search]]]:
    """Run everything; the first method is none, which the others are held against."""
    cases = list(product(tables, bases, dict.fromkeys(["none", *methods])))
    console = Console(stderr=True)
    with (
        quiet_optuna(ConsoleHandler(console)),
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("searches", total=len(cases) * seeds)
        for table, base, method in cases:
            runs = []
            for seed in range(seeds):
                pair = METHODS[method](make_sampler(base, seed=seed), table.n_epochs)
                runs.append(search(table, *pair, workers=workers))
                progress.update(task, advance=1)
            yield (table, base, method), runs


def _row(table: CurveTable, base: str, method: str, runs: list[Search]) -> Row:
    final = table.losses()[:, -1]
    ordered = np.sort(final)
    best = set(np.argsort(final, kind="stable")[: max(1, int(_BEST * len(final)))].tolist())
    goals = [ordered[int(share * len(final))] for share in _TARGETS]
    lost = [1 - len(best & set(run.config.tolist())) / len(best) for run in runs]
    return Row(
        base=base,
        method=method,
        lost=float(np.mean(lost)),
        epochs_per_config=float(np.mean([run.n_epochs / run.n_started for run in runs])),
        epochs=[
            _median([_first(r.epochs, final[r.config] <= goal) for r in runs]) for goal in goals
        ],
        time=[_median([_first(r.time, final[r.config] <= goal) for r in runs]) for goal in goals],
        final=_median([final[run.config].min(initial=np.inf) for run in runs]) - float(ordered[0]),
    )


def _first(when: Floats, reached: np.ndarray) -> float:
    return float(when[reached].min(initial=np.inf))


def _median(values: list[float]) -> float:
    return float(np.median(values))


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, caption="speed-up until one of the best share is trained")
    table.add_column("base", no_wrap=True)
    table.add_column("method", no_wrap=True)
    table.add_column("lost", justify="right")
    table.add_column("epochs each", justify="right")
    for what in ("epochs", "time"):
        for share in _TARGETS:
            table.add_column(f"{what} {share:.1%}", justify="right")
    against = rows[0]
    for row in rows:
        speed = [
            "never" if np.isinf(own) else f"x {other / own:.1f}"
            for own, other in zip(
                (*row.epochs, *row.time), (*against.epochs, *against.time), strict=True
            )
        ]
        table.add_row(
            row.base, row.method, f"{row.lost:.0%}", f"{row.epochs_per_config:.1f}", *speed
        )
    return table


def _add_line(figure: go.Figure, table: CurveTable, name: str, runs: list[Search]) -> None:
    """Add the median regret over time."""
    final = table.losses()[:, -1]
    times = np.unique(np.concatenate([run.time for run in runs]))
    best = np.array(
        [
            np.minimum.accumulate(np.append(np.inf, final[run.config]))[
                np.searchsorted(run.time, times, side="right")
            ]
            for run in runs
        ]
    )
    regret = np.median(best, axis=0) - final.min()
    known = np.isfinite(regret)
    figure.add_scatter(
        x=times[known], y=regret[known], name=name, mode="lines", line={"shape": "hv"}
    )


def _finish(figure: go.Figure, workers: int) -> None:
    figure.update_layout(
        template="plotly_white",
        title="Regret of the best whole training, median over seeds",
        xaxis={"title": f"time of {workers} workers, in epochs", "type": "log"},
        yaxis={"title": "regret"},
        hovermode="closest",
    )


if __name__ == "__main__":
    app()
