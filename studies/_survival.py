"""A halving study in one figure: who got how far, and the learning curves behind it."""

from __future__ import annotations

from collections import Counter
from collections import defaultdict
from collections.abc import Collection
from collections.abc import Sequence
import statistics

from optuna.study import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_ext.ladder import BRACKET
from optuna_ext.ladder import Climber
from optuna_ext.ladder import count
from optuna_ext.ladder import Ladder
from optuna_ext.ladder import RUNG
from optuna_ext.lineage import parent_of


_PAUSED, _WHOLE, _BEST = "#c8c8c8", "#0072B2", "#000000"
_FATES = {  # what became of the trials that were to reach a rung
    "reached the end": _WHOLE,
    "went on": "#56B4E9",
    "paused": _PAUSED,
    "running": "#E69F00",
    "failed": "#D55E00",
}
_REACHED = ("went on", "paused", "reached the end")


def survival_chart(study: Study) -> go.Figure | None:
    """Draw how many trials reached each rung, and the learning curves of all parameters.

    Args:
        study: A study with the sampler of ``SuccessiveHalving`` or ``Hyperband``.

    Returns:
        The figure; None if no trial has reached its rung yet.
    """
    trials = [t for t in study.get_trials(deepcopy=False) if RUNG in t.user_attrs]
    parents = {parent_of(t) for t in trials if t.state != TrialState.FAIL}
    fates = {t.number: fate for t in trials if (fate := _fate(t, parents)) is not None}
    if not set(fates.values()) & set(_REACHED):
        return None
    figure = make_subplots(rows=2, cols=1, row_heights=[0.6, 0.4], vertical_spacing=0.12)
    _draw_curves(figure, study)
    _draw_rungs(figure, trials, fates)
    figure.update_layout(
        template="plotly_white",
        title=f"{study.study_name}: {sum(count(t, RUNG) == 0 for t in trials)} configurations, "
        f"{len(trials)} trials",
        height=760,
        barmode="stack",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    )
    return figure


def _fate(trial: FrozenTrial, parents: Collection[int | None]) -> str | None:
    if trial.state == TrialState.PRUNED:
        return "went on" if trial.number in parents else "paused"
    return {
        TrialState.COMPLETE: "reached the end",
        TrialState.RUNNING: "running",
        TrialState.FAIL: "failed",
    }.get(trial.state)


def _draw_rungs(figure: go.Figure, trials: Sequence[FrozenTrial], fates: dict[int, str]) -> None:
    counts: defaultdict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    steps: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for trial in trials:
        place = count(trial, BRACKET), count(trial, RUNG)
        if trial.number in fates:
            counts[place][fates[trial.number]] += 1
            if fates[trial.number] in _REACHED and trial.last_step is not None:
                steps[place].append(trial.last_step)
    places = sorted(counts)
    many = len({bracket for bracket, _ in places}) > 1
    names = [
        (f"bracket {bracket}, " if many else "")
        + (f"step {statistics.mode(steps[bracket, rung])}" if steps[bracket, rung] else "...")
        for bracket, rung in places
    ]
    for fate, color in _FATES.items():
        figure.add_bar(
            x=names,
            y=[counts[place][fate] for place in places],
            name=fate,
            marker_color=color,
            row=2,
            col=1,
        )
    figure.update_xaxes(title="rung", row=2, col=1)
    figure.update_yaxes(title="trials", row=2, col=1)


def _draw_curves(figure: go.Figure, study: Study) -> None:
    ladder = Ladder((), first_step=1, best_so_far=True, maximize=False)
    ladder.update(study.get_trials(deepcopy=False))
    climbers = [climber for climber in ladder.climbers.values() if climber.reports]
    whole = [climber for climber in climbers if climber.tip.state == TrialState.COMPLETE]
    pick = max if study.direction == StudyDirection.MAXIMIZE else min
    best = pick(whole, key=lambda climber: climber.tip.value or 0.0) if whole else None
    for climber in climbers:
        is_whole = climber.tip.state == TrialState.COMPLETE
        color = _BEST if climber is best else _WHOLE if is_whole else _PAUSED
        steps = sorted(climber.reports)
        figure.add_scatter(
            x=steps,
            y=[climber.reports[step] for step in steps],
            mode="lines+markers" if len(steps) == 1 else "lines",
            line={"color": color, "width": 3 if climber is best else 1},
            marker={"size": 3},
            name=_name(climber),
            showlegend=False,
            row=1,
            col=1,
        )
    figure.update_xaxes(title="training steps", row=1, col=1)
    figure.update_yaxes(title="value", row=1, col=1)


def _name(climber: Climber) -> str:
    root, tip = climber.root.number, climber.tip.number
    return f"trial {root}" if root == tip else f"trials {root} to {tip}"
