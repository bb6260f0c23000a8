"""The picture of the designs beside random points."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_ext.points import halton
from optuna_ext.points import hammersley
from optuna_ext.points import latin_hypercube
from optuna_ext.points import poisson_disk
from optuna_ext.points import sobol
from optuna_ext.points.discrepancy import centered_l2
from optuna_ext.points.discrepancy import min_distance
from studies._standings import Matrix


N_POINTS = 64

# Readable on a page that is light or dark: the figure brings its own white ground.
_INK, _MUTED, _EDGE, _GRID = "#1f2328", "#59636e", "#8c959f", "#dde2e8"
_OURS, _RANDOM = "#0072B2", "#8c959f"

_DESIGNS: Mapping[str, Callable[[int], Matrix]] = {
    "Random": lambda seed: np.random.default_rng(seed).random((N_POINTS, 2)),
    "Latin hypercube": lambda seed: latin_hypercube(N_POINTS, 2, seed=seed),
    "Poisson disk": lambda seed: poisson_disk(2, n=N_POINTS, seed=seed),
    "Halton": lambda seed: halton(N_POINTS, 2, seed=seed),
    "Hammersley": lambda seed: hammersley(N_POINTS, 2, seed=seed),
    "Sobol": lambda seed: sobol(N_POINTS, 2, seed=seed),
}


def draw_designs(seed: int) -> dict[str, Matrix]:
    """Return 64 points of the unit square from each design, shape ``(64, 2)``."""
    return {name: draw(seed) for name, draw in _DESIGNS.items()}


def designs_figure(points: Mapping[str, Matrix]) -> go.Figure:
    """Draw designs of the unit square, three in a row, with what was measured on each."""
    figure = make_subplots(
        rows=-(-len(points) // 3),
        cols=3,
        subplot_titles=[_title(name, rows) for name, rows in points.items()],
        horizontal_spacing=0.045,
        vertical_spacing=0.12,
    )
    for i, (name, rows) in enumerate(points.items()):
        figure.add_scatter(
            x=rows[:, 0],
            y=rows[:, 1],
            mode="markers",
            marker={"size": 7, "color": _RANDOM if name == "Random" else _OURS},
            cliponaxis=False,
            name=name,
            row=i // 3 + 1,
            col=i % 3 + 1,
        )
    axis = {
        "range": [0, 1],
        "constrain": "domain",
        "dtick": 1 / 8,  # 64 strata of equal area
        "gridcolor": _GRID,
        "zeroline": False,
        "showticklabels": False,
        "showline": True,
        "mirror": True,
        "linecolor": _EDGE,
    }
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    for i in range(1, len(points) + 1):
        figure.update_yaxes(scaleanchor=f"x{i}", selector={"anchor": f"x{i if i > 1 else ''}"})
    figure.update_annotations(yshift=4, font={"size": 15, "color": _INK})
    figure.update_layout(
        template="none",
        width=860,
        height=660,
        margin={"l": 16, "r": 16, "t": 56, "b": 16},
        showlegend=False,
        paper_bgcolor="white",
        plot_bgcolor="white",
        font_family="Helvetica, Arial, sans-serif",
    )
    return figure


def _title(name: str, rows: Matrix) -> str:
    measured = f"discrepancy {centered_l2(rows):.5f} · min distance {min_distance(rows):.3f}"
    return f"<b>{name}</b><br><span style='font-size:12px;color:{_MUTED}'>{measured}</span>"
