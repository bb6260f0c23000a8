"""What the runs of several samplers on the same seeds amount to."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
import csv
from dataclasses import asdict
from dataclasses import dataclass
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from studies._race import Run


Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Median, mean and standard error of the mean over the seeds; NaN for an unknown one."""

    median: float
    mean: float
    se: float


@dataclass(frozen=True)
class Reach:
    """How soon runs reach a target.

    Attributes:
        target: The value to reach.
        evaluations: Median number of trials; infinite when fewer than half of the runs reach it.
        share: Share of the runs that reach it at all.
    """

    target: float
    evaluations: float
    share: float


@dataclass(frozen=True)
class Standing:
    """One sampler among the others.

    Attributes:
        sampler: The sampler as the user named it.
        at: Best value after a number of trials, the last one being the budget.
        rank: Mean rank of the final values on a seed, 1 for the best; ties share their ranks.
        wins: Share of the seeds on which the sampler ends better than the first one; ties half.
        targets: How soon each target is reached.
        trial_ms: Milliseconds a trial took, everything included, in the median run: the first
            one imports what the sampler needs.
        sampler_ms: Milliseconds of these spent in the sampler.
    """

    sampler: str
    at: dict[int, Spread]
    rank: float
    wins: float
    targets: tuple[Reach, ...]
    trial_ms: float
    sampler_ms: float

    @property
    def final(self) -> Spread:
        """The best value after the whole budget."""
        return self.at[max(self.at)]


def by_sampler(runs: Iterable[Run], samplers: Sequence[str]) -> dict[str, list[Run]]:
    """Sort runs by the order of ``samplers``, then by seed."""
    runs = list(runs)
    return {
        sampler: sorted((run for run in runs if run.sampler == sampler), key=lambda r: r.seed)
        for sampler in samplers
    }


def standings(
    runs: dict[str, list[Run]], *, maximize: bool, at: Iterable[int], targets: Iterable[float]
) -> list[Standing]:
    """Compare the samplers.

    Args:
        runs: Runs of each sampler on the same seeds, in the same order.
        maximize: Whether larger values are better.
        at: Numbers of trials after which to look; the budget is added.
        targets: Values whose reaching is of interest.

    Returns:
        One standing for each sampler, in the order given.
    """
    curves = {sampler: np.stack([run.best for run in them]) for sampler, them in runs.items()}
    sign = -1.0 if maximize else 1.0
    # Costs: smaller is better, and a run without any value is the worst.
    finals = np.stack([np.nan_to_num(sign * c[:, -1], nan=math.inf) for c in curves.values()])
    ranks = _ranks(finals)
    wins = np.mean((finals < finals[0]) + 0.5 * (finals == finals[0]), axis=1)
    return [
        Standing(
            sampler=sampler,
            at={n: _spread(curve[:, n - 1]) for n in sorted({*at, curve.shape[1]})},
            rank=float(rank),
            wins=float(win),
            targets=tuple(_reach(sign * curve, sign * target, target) for target in targets),
            trial_ms=float(np.median([1e3 * run.wall_s / len(run.values) for run in them])),
            sampler_ms=float(np.median([1e3 * run.sampler_s / len(run.values) for run in them])),
        )
        for (sampler, them), curve, rank, win in zip(
            runs.items(), curves.values(), ranks, wins, strict=True
        )
    ]


def main_table(rows: Sequence[Standing], *, log: bool) -> Table:
    """Return the table of the samplers; with ``log``, medians stand for values on the way."""
    *early, budget = rows[0].at
    table = _table()
    for n in early:
        table.add_column(f"{'median' if log else 'mean'}\n@{n}", justify="right")
    for header in (
        f"median\n@{budget}",
        f"mean ± se\n@{budget}",
        "mean\nrank",
        f"beats\n{rows[0].sampler}",
        "ms a\ntrial",
        "in the\nsampler",
    ):
        table.add_column(header, justify="right")
    best = min(rows, key=lambda row: row.rank)
    for row in rows:
        spreads = [row.at[n] for n in early]
        table.add_row(
            row.sampler,
            *(number(spread.median if log else spread.mean) for spread in spreads),
            number(row.final.median),
            f"{number(row.final.mean)} ± {number(row.final.se, digits=2)}",
            f"{row.rank:.2f}",
            "" if row is rows[0] else f"{row.wins:.0%}",
            f"{row.trial_ms:.2f}",
            f"{row.sampler_ms:.2f}",
            style="bold" if row is best else None,
        )
    return table


def _table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("sampler", no_wrap=True)
    return table


def targets_table(rows: Sequence[Standing]) -> Table:
    """Return the table of median evaluations to each target and the share that reaches it."""
    table = _table()
    for reach in rows[0].targets:
        table.add_column(f"{reach.target:g}", justify="right")
    budget = max(rows[0].at)
    for row in rows:
        cells = (
            f"{f'{r.evaluations:.0f}' if math.isfinite(r.evaluations) else f'>{budget}'}"
            f" ({r.share:.0%})"
            for r in row.targets
        )
        table.add_row(row.sampler, *cells)
    return table


def as_json(row: Standing) -> dict[str, Any]:
    """Return the standing as a JSON object; what is not finite becomes ``None``."""
    plain: dict[str, Any] = _finite(asdict(row))
    return plain


def write_csv(path: Path, runs: Iterable[Run]) -> None:
    """Write a row per trial: sampler, seed, trial, value and best value so far."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sampler", "seed", "trial", "value", "best"))
        for run in runs:
            for i, (value, best) in enumerate(zip(run.values, run.best, strict=True)):
                writer.writerow((run.sampler, run.seed, i, *map(_cell, (value, best))))


def number(value: float, *, digits: int = 4) -> str:
    """Return a value as people read it: 84.00, 0.002381, 1.200e+06; a dash for an unknown one."""
    if math.isnan(value):
        return "-"
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent <= 5:
        return f"{value:.{max(0, digits - 1 - exponent)}f}"
    return f"{value:.{digits - 1}e}"


def _ranks(finals: Matrix) -> Matrix:
    from scipy.stats import rankdata

    ranks: Matrix = rankdata(finals, axis=0).mean(axis=1)
    return ranks


def _spread(values: Matrix) -> Spread:
    if not np.isfinite(values).all():  # no mean stands for runs without a value
        return Spread(math.nan, math.nan, math.nan)
    n = len(values)
    se = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Spread(float(np.median(values)), float(np.mean(values)), se)


def _reach(costs: Matrix, cost: float, target: float) -> Reach:
    reached = np.nan_to_num(costs, nan=math.inf) <= cost
    ever = reached.any(axis=1)
    evaluations = np.where(ever, reached.argmax(axis=1) + 1.0, math.inf)
    # The lower of the two middle ones: half of the runs are there by then, and no run took 37.5.
    median = float(np.quantile(evaluations, 0.5, method="inverted_cdf"))
    return Reach(target, median, float(ever.mean()))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))
