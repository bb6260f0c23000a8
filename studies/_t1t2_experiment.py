"""The experiment of Fioravanti (2020): random starts, tuned, and again by what was found."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
import math
from pathlib import Path
import random
import statistics
import time
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from objectives import t1t2
from objectives.training import resolve_device
from optuna_ext import Schedule
from studies._figures import check_figure_path
from studies._figures import write_figure
from studies._options import Options


_FAILED = 0.05  # error of a training that one would call failed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of one start; errors are shares of the test images.

    Args:
        n_test: Number of test images.
        start: First values.
        fixed: Error when they stay.
        tuned: Error at the end of tuning.
        by_schedule: Error of a second training that follows the schedule.
        by_constants: Error of a second training with the last values.
        schedule: What the tuner did.
        seconds: CPU time of an epoch without and with tuning.
    """

    n_test: int
    start: Mapping[str, float]
    fixed: float
    tuned: float
    by_schedule: float
    by_constants: float
    schedule: Schedule
    seconds: tuple[float, float]

    def is_worse(self, *, errors: float = 0.0) -> bool:
        """Return whether tuning did harm, by more than so many standard errors of the counts."""
        variance = sum(e * (1 - e) / self.n_test for e in (self.fixed, self.tuned))
        return self.tuned - self.fixed > errors * math.sqrt(variance)


def experiment(options: Options, own: Mapping[str, Any]) -> int:
    """Tune from --trials random starts, hold it against no tuning, train again by the result."""
    path = options.figure or Path("runs", f"t1t2-{own['net']}.html")
    if options.figure is None:
        path.parent.mkdir(exist_ok=True)
    check_figure_path(path)
    device = resolve_device(options.device or "auto")
    splits = t1t2.load_splits(device=device, data_dir=options.data_dir, with_valid=False)
    hidden = t1t2.hidden_units(own["net"], own["width"])
    epochs = options.epochs or 50
    outcomes: list[Outcome] = []
    console = Console()
    for seed in range(options.seed or 0, (options.seed or 0) + options.trials):
        found = _outcome(splits, hidden, epochs=epochs, seed=seed, amp=options.amp or None)
        outcomes.append(found)
        console.print(_line(len(outcomes), found), highlight=False, soft_wrap=True)
    title = f"MNIST, {'-'.join(map(str, hidden))}, {epochs} epochs on {device}"
    console.print(_table(outcomes, title=title))
    write_figure(figure(outcomes, title=title), path)
    console.print(f"figure: {path}", highlight=False, soft_wrap=True)
    return 0


def _outcome(
    splits: t1t2.Splits, hidden: tuple[int, ...], *, epochs: int, seed: int, amp: bool | None
) -> Outcome:
    rng = random.Random(seed)
    start = {"l2": 10 ** rng.uniform(-5.5, -2.5), "input_noise": rng.uniform(0.01, 0.8)}

    def train(schedule: Schedule | None, seed: int) -> tuple[float, float, Schedule]:
        training = t1t2.train(
            splits, hidden, start=start, epochs=epochs, schedule=schedule, seed=seed, amp=amp
        )
        started = time.process_time()
        for _ in training:
            pass
        seconds = (time.process_time() - started) / epochs
        return t1t2.error(training.model, splits.test), seconds, training.tuner.schedule

    fixed, plain_seconds, _ = train(Schedule({1: start}), seed)
    tuned, tuned_seconds, schedule = train(None, seed)
    by_schedule, _, _ = train(schedule, seed + 1000)  # other weights, other noise
    last = Schedule({1: schedule.at(schedule.last)})
    by_constants, _, _ = train(last, seed + 1000)
    return Outcome(
        n_test=len(splits.test[0]),
        start=start,
        fixed=fixed,
        tuned=tuned,
        by_schedule=by_schedule,
        by_constants=by_constants,
        schedule=schedule,
        seconds=(plain_seconds, tuned_seconds),
    )


def _line(number: int, outcome: Outcome) -> str:
    errors = f"fixed {outcome.fixed:.2%}, tuned {outcome.tuned:.2%}"
    again = f"by the schedule {outcome.by_schedule:.2%}, by the last values"
    return f"start {number}: {errors}; again {again} {outcome.by_constants:.2%}"


def _table(outcomes: Sequence[Outcome], *, title: str) -> Table:
    table = Table("", "median test error", "best", "worst", title=title)
    rows = {
        "fixed at the start": [o.fixed for o in outcomes],
        "end of tuning": [o.tuned for o in outcomes],
        "again, by the schedule": [o.by_schedule for o in outcomes],
        "again, by the last values": [o.by_constants for o in outcomes],
    }
    for name, errors in rows.items():
        cells = (statistics.median(errors), min(errors), max(errors))
        table.add_row(name, *(f"{cell:.2%}" for cell in cells))
    worse = statistics.fmean(o.is_worse() for o in outcomes)
    surely = statistics.fmean(o.is_worse(errors=2) for o in outcomes)
    failed = statistics.fmean(o.tuned > _FAILED for o in outcomes)
    overhead = statistics.median(o.seconds[1] / o.seconds[0] for o in outcomes) - 1
    table.caption = (
        f"tuned, worse than its own start: {worse:.0%}, by two standard errors: {surely:.0%}; "
        f"above {_FAILED:.0%}: {failed:.0%}; time of an epoch: {overhead:+.1%}"
    )
    return table


def figure(outcomes: Sequence[Outcome], *, title: str) -> go.Figure:
    """Draw trajectories, errors before and after, again by schedule or constants, and times."""
    titles = (
        "trajectories (dot: end)",
        "test error, fixed and tuned",
        "test error, tuned and trained again",
        "CPU seconds per epoch",
    )
    drawn = make_subplots(rows=2, cols=2, subplot_titles=titles)
    for outcome in outcomes:
        values = [v for _, v in outcome.schedule]
        drawn.add_scatter(
            x=[v["input_noise"] for v in values],
            y=[math.log10(v["l2"]) for v in values],
            mode="lines+markers",
            marker={"size": [0] * (len(values) - 1) + [8]},
            row=1,
            col=1,
        )
    tuned = [100 * o.tuned for o in outcomes]
    _scatter(drawn, [100 * o.fixed for o in outcomes], tuned, name="tuned", row=1, col=2)
    _scatter(drawn, tuned, [100 * o.by_schedule for o in outcomes], name="schedule", row=2, col=1)
    _scatter(drawn, tuned, [100 * o.by_constants for o in outcomes], name="last", row=2, col=1)
    for i, name in enumerate(("fixed", "tuned")):
        drawn.add_box(y=[o.seconds[i] for o in outcomes], name=name, row=2, col=2)
    drawn.update_xaxes(title_text="input noise", row=1, col=1)
    drawn.update_yaxes(title_text="log10 L2", row=1, col=1)
    return drawn.update_layout(title_text=title, showlegend=False, height=900)


def _scatter(
    drawn: go.Figure, x: Sequence[float], y: Sequence[float], *, name: str, row: int, col: int
) -> None:
    ends = [min(*x, *y), max(*x, *y)]
    line = {"color": "lightgray"}
    drawn.add_scatter(x=ends, y=ends, mode="lines", line=line, row=row, col=col)
    drawn.add_scatter(x=x, y=y, mode="markers", name=name, row=row, col=col)
