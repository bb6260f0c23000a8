"""What the tuners of a study's trials did, in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.study import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_ext.online import recorded
from optuna_ext.schedule import Schedule


_BEST, _OTHERS, _UNFINISHED = "#000000", "#56B4E9", "#c8c8c8"
_MOST_PANELS = 12
_PANEL_HEIGHT = 260  # pixels


def trajectories(study: Study) -> go.Figure | None:
    """Draw the recorded schedules of all trials, a panel for every hyperparameter.

    The best trial is black, and trials that were pruned or failed are gray.

    Args:
        study: A study whose trials call ``optuna_ext.online.record``.

    Returns:
        The figure; None if nothing was recorded yet.
    """
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    schedules = {t.number: s for t in trials if (s := recorded(t)) is not None and s.last}
    names = [*dict.fromkeys(n for schedule in schedules.values() for n in schedule.names)]
    if not names:
        return None
    names = names[:_MOST_PANELS]
    best = _best(study, [trial for trial in trials if trial.number in schedules])
    figure = make_subplots(rows=len(names), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    # The best comes last, above the others.
    shown = [trial for trial in trials if trial.number in schedules]
    shown.sort(key=lambda trial: (trial is best, trial.state == TrialState.COMPLETE))
    for row, name in enumerate(names, start=1):
        is_positive = True
        for trial in shown:
            x, y = _curve(schedules[trial.number], name)
            is_positive &= all(value > 0 for value in y)
            style = _style(trial, is_best=trial is best)
            figure.add_scatter(x=x, y=y, **style, row=row, col=1)
        scale = "log" if is_positive else "linear"
        figure.update_yaxes(title=name, type=scale, exponentformat="power", row=row, col=1)
    figure.update_xaxes(title="training steps", row=len(names), col=1)
    return figure.update_layout(
        template="plotly_white",
        title=f"{study.study_name}: what was tuned in {len(schedules)} trials",
        height=160 + _PANEL_HEIGHT * len(names),
        showlegend=False,
    )


def _best(study: Study, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete or len(study.directions) > 1:
        return None
    pick = max if study.direction == StudyDirection.MAXIMIZE else min
    return pick(complete, key=lambda trial: trial.value or 0.0)


def _curve(schedule: Schedule, name: str) -> tuple[list[int], list[float]]:
    """Where a number begins to hold, and once more where it ends to."""
    parts = [
        (steps, values[name])
        for steps, values in schedule
        if isinstance(values.get(name), int | float)
    ]
    ends = [(steps.stop, value) for steps, value in parts[-1:]]
    points = [(steps.start, value) for steps, value in parts] + ends
    return [step for step, _ in points], [value for _, value in points]


def _style(trial: FrozenTrial, *, is_best: bool) -> dict[str, Any]:
    is_complete = trial.state == TrialState.COMPLETE
    color = _BEST if is_best else _OTHERS if is_complete else _UNFINISHED
    value = f": {trial.values[0]:.6g}" if trial.values else ""
    return {
        "mode": "lines",
        "line": {"color": color, "width": 3 if is_best else 1, "shape": "hv"},
        "name": f"trial {trial.number}{value}",
    }
