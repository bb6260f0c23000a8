"""A study's own charts: files beside its figure, and panels of the dashboard."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
import plotly.graph_objects as go

from studies._figures import write_figure


Draw = Callable[[Study], go.Figure | None]  # None if there is nothing to draw yet


def save_charts(
    study: Study, charts: Mapping[str, Draw], *, beside: Path | None
) -> dict[str, str]:
    """Draw charts of a study that has run, for its dashboard and as pages.

    Args:
        study: What has run.
        charts: By name, which is the dashboard's panel's and ends the file's.
        beside: The study's figure; without one there are no pages either.

    Returns:
        The files by name of the chart.
    """
    from optuna_dashboard import save_plotly_graph_object

    pages = {}
    for name, draw in charts.items():
        chart = draw(study)
        if chart is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            save_plotly_graph_object(study, chart, graph_object_id=name)
        if beside is not None:
            page = beside.with_name(f"{beside.stem}-{name}.html")
            page.parent.mkdir(parents=True, exist_ok=True)
            write_figure(chart, page)
            pages[name] = str(page)
    return pages
