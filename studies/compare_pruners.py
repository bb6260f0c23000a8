"""Compare pruners on learning curves of real trainings, with many workers in virtual time.

    python -m studies.curves digits
    python -m studies.curves small-fashion
    python -m studies.compare_pruners runs/curves-digits.npz runs/curves-small-fashion.npz

With a model-based sampler underneath, some minutes more::

    python -m studies.compare_pruners runs/curves-digits.npz --base random --base tpe --seeds 5

Where Syne Tune is installed, its ASHA takes part. With ``--oracle`` every epoch reports how its
training ends, which shows what the cuts would allow if early values told everything.

Each worker trains an epoch per unit of time. With the base sampler ``random``, a search begins all
configurations of the table once, in random order, and *lost* are those of the best 5% that were
never trained to the end. With others, which get the nearest configurations that are left, it ends
after 32 whole trainings, as long as most are.

*As random, 16* is how many random whole trainings would have done as well as all workers in the
time of 16, divided by 16; by the mean rank of what was found. But for chance, a random search
cannot exceed the epochs of a whole training over *epochs each*, as it sees no more configurations,
even if it chose the best of them every time. The columns *epochs* are speed-ups against random
search without pruning: of the median number of epochs until a whole training is as good as what
Optuna's successive halving has in the end, and until one is among the best of all.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from json import dumps
import math
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
from studies._equivalents import random_equivalents
from studies._errors import SentenceCommand
from studies._errors import unknown
from studies._errors import UserError
from studies._figures import check_figure_path
from studies._figures import write_figure
from studies._logs import ConsoleHandler
from studies._logs import quiet_optuna
from studies._syne_tune import HOW_TO_INSTALL
from studies._syne_tune import is_installed
from studies._syne_tune import SyneTuneAsha
from studies._virtual_time import Search
from studies._virtual_time import search


_Case = tuple[str, str]  # base sampler and method
_Pair = tuple[BaseSampler, BasePruner]
_BUDGETS = (16, 32)  # whole trainings
_TARGETS = (0.02, 0.01, 0.004)  # shares of the best configurations
_BEST = 0.05
_WHOLE = "random"  # the base sampler whose searches go through the whole table
_SHA = "optuna-sha"
_SYNE_TUNE = "syne-tune-asha"


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
    _SYNE_TUNE: lambda base, epochs: (base, SyneTuneAsha(max_resource=epochs)),
}
"""By name: what makes a sampler and a pruner of a base sampler and the longest training."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method with one base sampler, over many seeds."""

    base: str
    method: str
    lost: float | None
    """Share of the best configurations not trained to the end, if all were begun."""
    epochs_per_config: float
    """Epochs trained for each configuration that was begun."""
    as_random: list[float]
    """Random whole trainings that would have done as well as one, for each budget."""
    epochs_to_sha: float
    """Median epochs until the median end of Optuna's halving; inf if most never got there."""
    epochs: list[float]
    """Likewise, until one of each share of the best."""


app = typer.Typer(add_completion=False)


@app.command(cls=SentenceCommand)
def main(
    tables: Annotated[list[Path], typer.Argument(help="Files made by studies.curves.")],
    method: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(METHODS)}; repeatable.")
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(help="Sampler of new configurations; repeatable.", show_default="random"),
    ] = None,
    workers: Annotated[int, typer.Option(help="Trials at the same time.", min=1)] = 8,
    seeds: Annotated[int, typer.Option(help="Searches of each method.", min=1)] = 10,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Let every epoch report how its training ends.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option(help="HTML file.", show_default="runs/compare-pruners.html")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare pruners on learning curves of real trainings."""
    methods = _known_methods(method) if method else _installed_methods()
    bases = base or [_WHOLE]
    for name in bases:
        make_sampler(name, seed=0)
    curves = {path: CurveTable.load(path) for path in tables}
    if oracle:
        curves = {path: table.foreseen() for path, table in curves.items()}
    path = figure or Path("runs", "compare-pruners.html")
    if figure is None:
        path.parent.mkdir(exist_ok=True)
    check_figure_path(path)
    cases = [*product([_WHOLE], ["none", _SHA]), *product(bases, ["none", *methods])]
    results = {}
    lines = go.Figure()
    for (file, table), runs in _searches(curves, list(dict.fromkeys(cases)), seeds, workers):
        for (name, key), searches in runs.items():
            _add_line(lines, table, f"{table.name}, {name}, {key}", searches)
        results[str(file)] = _rows(table, runs, workers)
    _finish(lines, workers)
    write_figure(lines, path)
    if json:
        document = {file: [_plain(row) for row in rows] for file, rows in results.items()}
        typer.echo(dumps(document, indent=2))
        return
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: do not fold the table
        console = Console(width=140)
    setting = f"{workers} workers, {seeds} seeds" + (", oracle" if oracle else "")
    for name, rows in results.items():
        console.print(_table(f"{name}: {setting}", rows))
    console.print(f"regret over time: {path}", highlight=False, soft_wrap=True)


def _known_methods(names: list[str]) -> list[str]:
    for name in names:
        if name not in METHODS:
            raise unknown("--method", name, METHODS)
    if _SYNE_TUNE in names and not is_installed():
        raise UserError(f"--method {_SYNE_TUNE} needs Syne Tune: {HOW_TO_INSTALL}")
    return names


def _installed_methods() -> list[str]:
    if is_installed():
        return list(METHODS)
    typer.echo(f"{_SYNE_TUNE} is left out: it needs Syne Tune, {HOW_TO_INSTALL}", err=True)
    return [name for name in METHODS if name != _SYNE_TUNE]


def _searches(
    tables: dict[Path, CurveTable], cases: list[_Case], seeds: int, workers: int
) -> Iterator[tuple[tuple[Path, CurveTable], dict[_Case, list[Search]]]]:
    """Run everything, table by table."""
    console = Console(stderr=True)
    with (
        quiet_optuna(ConsoleHandler(console)),
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("searches", total=len(tables) * len(cases) * seeds)
        for path, table in tables.items():
            runs: dict[_Case, list[Search]] = {case: [] for case in cases}
            for (base, method), seed in product(cases, range(seeds)):
                pair = METHODS[method](make_sampler(base, seed=seed), table.n_epochs)
                if base == _WHOLE:
                    found = search(table, *pair, workers=workers, seed=seed)
                else:
                    end = max(_BUDGETS) * table.n_epochs
                    found = search(table, *pair, workers=workers, max_epochs=end)
                runs[base, method].append(found)
                progress.update(task, advance=1)
            yield (path, table), runs


def _rows(table: CurveTable, runs: dict[_Case, list[Search]], workers: int) -> list[Row]:
    final = table.losses()[:, -1]
    ordered = np.sort(final)
    best = set(np.argsort(final, kind="stable")[: max(1, int(_BEST * len(final)))].tolist())
    sha = _median([final[run.config].min(initial=np.inf) for run in runs[_WHOLE, _SHA]])
    goals = [sha, *(ordered[int(share * len(final))] for share in _TARGETS)]
    rows = []
    for (base, method), searches in runs.items():
        lost = [1 - len(best & set(run.config.tolist())) / len(best) for run in searches]
        to_sha, *epochs = (
            _median([_first(run.epochs, final[run.config] <= goal) for run in searches])
            for goal in goals
        )
        rows.append(
            Row(
                base=base,
                method=method,
                lost=float(np.mean(lost)) if base == _WHOLE else None,
                epochs_per_config=float(np.mean([r.n_epochs / r.n_started for r in searches])),
                as_random=[
                    _as_random(final, searches, n, n * table.n_epochs / workers) for n in _BUDGETS
                ],
                epochs_to_sha=to_sha,
                epochs=epochs,
            )
        )
    return rows


def _as_random(final: Floats, searches: list[Search], n: int, time: float) -> float:
    """Return how many random trainings did as well until a time, for each of ``n``."""
    found = [final[run.config[run.time <= time]].min(initial=np.inf) for run in searches]
    return random_equivalents(final, found) / n


def _first(when: Floats, reached: np.ndarray) -> float:
    return float(when[reached].min(initial=np.inf))


def _median(values: list[float]) -> float:
    return float(np.median(values))


def _plain(row: Row) -> dict[str, Any]:
    """Return a row as JSON knows it, which has no infinity."""
    never = [None if math.isinf(value) else value for value in (row.epochs_to_sha, *row.epochs)]
    return vars(row) | {"epochs_to_sha": never[0], "epochs": never[1:]}


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, caption="epochs: speed-up until as good as that")
    table.add_column("base", no_wrap=True)
    table.add_column("method", no_wrap=True)
    heads = ["lost", "epochs each", *(f"as random, {n}" for n in _BUDGETS), "epochs, SHA's"]
    for head in (*heads, *(f"epochs, {share:.1%}" for share in _TARGETS)):
        table.add_column(head, justify="right")
    against = rows[0]
    for row in rows:
        speed = [
            "never" if math.isinf(own) else f"x {other / own:.1f}"
            for own, other in zip(
                (row.epochs_to_sha, *row.epochs),
                (against.epochs_to_sha, *against.epochs),
                strict=True,
            )
        ]
        table.add_row(
            row.base,
            row.method,
            "" if row.lost is None else f"{row.lost:.0%}",
            f"{row.epochs_per_config:.1f}",
            *(f"x {value:.1f}" for value in row.as_random),
            *speed,
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
