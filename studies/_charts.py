"""A study's own chart: a file beside its figure, and a panel of the dashboard."""

from __future__ import annotations

from collections.abc import Callable
import warnings

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
import plotly.graph_objects as go

from studies._figures import write_figure
from studies._job import connect
from studies._plan import Plan


def save_chart(plan: Plan, draw: Callable[[Study], go.Figure | None], *, name: str) -> str | None:
    """Draw a chart of a study that has run, for its dashboard and as a page.

    Args:
        plan: What has run; without a figure there is no page either.
        draw: Draws it; returns None if there is nothing to draw yet.
        name: Of the dashboard's panel, and the end of the file's name.

    Returns:
        The file, if there is one.
    """
    from optuna_dashboard import save_plotly_graph_object

    study = optuna.load_study(study_name=plan.job.study, storage=connect(plan.job.storage))
    chart = draw(study)
    if chart is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        save_plotly_graph_object(study, chart, graph_object_id=name)
    if plan.figure is None:
        return None
    path = plan.figure.with_name(f"{plan.figure.stem}-{name}.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_figure(chart, path)
    return str(path)
