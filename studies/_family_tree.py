"""A population in one figure: who took over whose weights, and the schedules that came of it."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.study import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_ext.lineage import parent_of
from optuna_ext.lineage import schedule
from optuna_ext.schedule import Schedule


_MAX_PANELS = 6  # hyperparameters drawn
_STAYED, _COPIED, _BEST, _LOST = "#c8c8c8", "#E69F00", "#000000", "#D55E00"
_TREE_HEIGHT, _PANEL_HEIGHT = 420, 170  # pixels


def family_tree(study: Study) -> go.Figure | None:
    """Draw the members of a population over its training steps.

    Above, every trial is a point where its interval ends, colored by its value; a line leads from
    its parent. Below are the schedules of the last generation's members, that of the best in
    black.

    Args:
        study: A study of population-based training.

    Returns:
        The figure; None before the first interval is finished.
    """
    trials = study.get_trials(deepcopy=False)
    members = {t.number: t for t in trials if "member" in t.user_attrs and t.state.is_finished()}
    if not members:
        return None
    final = _last_generation(list(members.values()))
    best = _best(final, study.direction)
    schedules = {t.number: schedule(study, t) for t in final if t.last_step}
    names = _changing_names(schedules.values(), final)
    figure = make_subplots(
        rows=1 + len(names),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.03,
        row_heights=[_TREE_HEIGHT, *[_PANEL_HEIGHT] * len(names)],
    )
    _draw_tree(figure, members, best, study.direction)
    _draw_schedules(figure, schedules, best, names)
    for row, name in enumerate(names, start=2):
        is_log = any(getattr(t.distributions.get(name), "log", False) for t in final)
        scale = "log" if is_log else None
        figure.update_yaxes(title=name, type=scale, exponentformat="power", row=row, col=1)
    figure.update_xaxes(title="training steps", row=1 + len(names), col=1)
    figure.update_layout(
        template="plotly_white",
        title=f"{study.study_name}: {len(members)} intervals",
        height=_TREE_HEIGHT + _PANEL_HEIGHT * len(names),
        hovermode="closest",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    )
    return figure


def _draw_tree(
    figure: go.Figure,
    members: dict[int, FrozenTrial],
    best: FrozenTrial | None,
    direction: StudyDirection,
) -> None:
    ancestors = _ancestors(members, best)
    families: dict[str, list[tuple[FrozenTrial, FrozenTrial]]] = {
        "goes on": [],
        "takes over another's weights": [],
        "lineage of the best": [],
    }
    for trial in members.values():
        parent = members.get(-1 if (number := parent_of(trial)) is None else number)
        if parent is None:
            continue
        if trial.number in ancestors:
            families["lineage of the best"].append((parent, trial))
        elif parent.user_attrs["member"] == trial.user_attrs["member"]:
            families["goes on"].append((parent, trial))
        else:
            families["takes over another's weights"].append((parent, trial))
    styles = zip(families.items(), (_STAYED, _COPIED, _BEST), (1, 1.5, 3), strict=True)
    for (name, pairs), color, width in styles:
        figure.add_scatter(
            x=[x for pair in pairs for x in (*map(_step, pair), None)],
            y=[y for pair in pairs for y in (*(t.user_attrs["member"] for t in pair), None)],
            mode="lines",
            line={"color": color, "width": width},
            name=name,
            hoverinfo="skip",
            row=1,
            col=1,
        )
    _draw_nodes(figure, list(members.values()), direction)
    figure.update_yaxes(title="member", row=1, col=1)


def _draw_nodes(
    figure: go.Figure, trials: Sequence[FrozenTrial], direction: StudyDirection
) -> None:
    values = {t.number: value for t in trials if (value := _value(t)) is not None}
    is_maximized = direction == StudyDirection.MAXIMIZE
    # The worst quarter, which is the first generation mostly, shares one color.
    shares = (0.25, 1.0) if is_maximized else (0.0, 0.75)
    low, high = np.quantile([*values.values()], shares) if values else (0.0, 1.0)
    colors = {
        "color": [*values.values()],
        "colorscale": "Viridis" if is_maximized else "Viridis_r",
        "cmin": low,
        "cmax": high,
        "colorbar": {"title": "value", "thickness": 12, "len": 0.5, "y": 0.75},
    }
    for name, shown, marker in (
        ("done", [t for t in trials if t.number in values], {"size": 9, **colors}),
        ("lost", [t for t in trials if t.number not in values], {"symbol": "x", "color": _LOST}),
    ):
        figure.add_scatter(
            x=[_step(trial) for trial in shown],
            y=[trial.user_attrs["member"] for trial in shown],
            mode="markers",
            marker=marker,
            text=[_about(trial) for trial in shown],
            hovertemplate="%{text}<extra></extra>",
            name=name,
            showlegend=name == "lost" and bool(shown),
            row=1,
            col=1,
        )


def _draw_schedules(
    figure: go.Figure,
    schedules: Mapping[int, Schedule],
    best: FrozenTrial | None,
    names: Sequence[str],
) -> None:
    own = None if best is None else best.number
    for number, followed in sorted(schedules.items(), key=lambda item: item[0] == own):  # on top
        color, width = (_BEST, 3) if number == own else (_STAYED, 1)
        for row, name in enumerate(names, start=2):
            x, y = _stairs(followed, name)
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": color, "width": width, "shape": "hv"},
                hovertemplate=f"trial {number}: %{{y}} after step %{{x}}<extra></extra>",
                showlegend=False,
                row=row,
                col=1,
            )


def _stairs(followed: Schedule, name: str) -> tuple[list[int], list[Any]]:
    parts = [(steps, values[name]) for steps, values in followed if name in values]
    if not parts:
        return [], []
    ends = parts[-1][0].stop - 1, parts[-1][1]
    return [*(s.start - 1 for s, _ in parts), ends[0]], [*(v for _, v in parts), ends[1]]


def _last_generation(members: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the last finished interval of every member."""
    last: dict[int, FrozenTrial] = {}
    for trial in members:
        member = trial.user_attrs["member"]
        known = last.get(member)
        if _value(trial) is not None and (
            known is None or trial.user_attrs["generation"] >= known.user_attrs["generation"]
        ):
            last[member] = trial
    return list(last.values())


def _best(trials: Sequence[FrozenTrial], direction: StudyDirection) -> FrozenTrial | None:
    sign = -1 if direction == StudyDirection.MAXIMIZE else 1
    return min(trials, key=lambda t: sign * (_value(t) or 0.0), default=None)


def _ancestors(members: dict[int, FrozenTrial], trial: FrozenTrial | None) -> set[int]:
    found: set[int] = set()
    while trial is not None and trial.number not in found:
        found.add(trial.number)
        parent = parent_of(trial)
        trial = None if parent is None else members.get(parent)
    return found


def _changing_names(schedules: Iterable[Schedule], final: Sequence[FrozenTrial]) -> list[str]:
    """Return the parameters that somebody's weights had several values of, numbers first."""
    values: dict[str, set[tuple[int, Any]]] = {}
    for i, followed in enumerate(schedules):
        for _, params in followed:
            for name, value in params.items():
                values.setdefault(name, set()).add((i, value))
    distributions = {n: d for trial in final for n, d in trial.distributions.items()}
    names = [n for n, pairs in values.items() if len(pairs) > len({i for i, _ in pairs})]
    is_choice = {n: isinstance(distributions.get(n), CategoricalDistribution) for n in names}
    return sorted(names, key=is_choice.__getitem__)[:_MAX_PANELS]


def _step(trial: FrozenTrial) -> int:
    """Return the step after which an interval ended; its generation, if it reported none."""
    return trial.last_step or int(trial.user_attrs["generation"]) + 1


def _value(trial: FrozenTrial) -> float | None:
    reports = trial.intermediate_values
    value = trial.value
    if trial.state == TrialState.PRUNED and reports:
        value = reports[max(reports)]
    return value if value is not None and math.isfinite(value) else None


def _about(trial: FrozenTrial) -> str:
    value = _value(trial)
    shown = trial.state.name.lower() if value is None else f"{value:.6g}"
    attrs = trial.user_attrs
    head = f"trial {trial.number}, member {attrs['member']}, generation {attrs['generation']}"
    params = (
        f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in trial.params.items()
    )
    return "<br>".join([f"{head}: {shown}", f"parent: {parent_of(trial)}", *params])
