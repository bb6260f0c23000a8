"""Writing figures, and the curves of the samplers that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import re

import numpy as np
import plotly.graph_objects as go

from studies._errors import UserError
from studies._standings import Matrix


# Okabe & Ito (2008), https://jfly.uni-koeln.de/color: told apart by color-blind readers too.
_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6D31",
    "#000000",
)


def check_figure_path(path: Path) -> None:
    """Refuse a path that :func:`write_figure` cannot write, before any work is done.

    Raises:
        UserError: If the suffix is unknown or the folder does not exist.
    """
    if path.suffix.lower() not in (".html", ".svg", ".png"):
        raise UserError(f"--figure must end in .html, .svg or .png, not {str(path)!r}")
    if not path.parent.is_dir():
        raise UserError(f"--figure {str(path)!r} is in a folder that does not exist")


def write_figure(figure: go.Figure, path: Path) -> None:
    """Write a figure as its suffix says: a page with everything in it, or a picture.

    Raises:
        UserError: If the path cannot be written or a picture cannot be made here.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".html":
            figure.write_html(path, include_plotlyjs=True)
        elif suffix == ".svg":
            path.write_text(_short_svg(figure.to_image("svg").decode()), encoding="utf-8")
        else:
            figure.write_image(path, scale=2)
    except OSError as error:
        raise UserError(f"cannot write --figure {str(path)!r}: {error.strerror}") from error
    except (ValueError, RuntimeError) as error:  # kaleido, or the browser it steers, is missing
        reason = " ".join(str(error).split())
        raise UserError(
            f"--figure {str(path)!r} needs kaleido and a Chromium (or end it in .html): {reason}"
        ) from error


def spans_decades(curves: Mapping[str, Matrix]) -> bool:
    """Return whether best values are positive and lie more than two decades apart."""
    values = np.concatenate([curve.ravel() for curve in curves.values()])
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > 100 * values.min())


def curves_figure(curves: Mapping[str, Matrix], *, title: str, log: bool) -> go.Figure:
    """Draw the mean best value so far of each sampler, with a band of one standard error.

    Args:
        curves: Best values so far of each sampler, shape ``(n_seeds, n_trials)``.
        title: Title of the figure.
        log: Whether to average and draw logarithms.
    """
    figure = go.Figure()
    for i, (sampler, curve) in enumerate(curves.items()):
        # Before every seed has a value there is no mean: the curve begins later.
        begun = np.isfinite(curve).all(axis=0)
        trials = np.arange(1, curve.shape[1] + 1)[begun]
        mean, se = _mean_and_se(np.log10(curve[:, begun]) if log else curve[:, begun])
        low, high = mean - se, mean + se
        if log:
            low, mean, high = 10**low, 10**mean, 10**high
        color = _COLORS[i % len(_COLORS)]
        figure.add_scatter(
            x=np.concatenate([trials, trials[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            mode="lines",
            line_width=0,
            fill="toself",
            fillcolor=color,
            opacity=0.18,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=str(i),
        )
        figure.add_scatter(
            x=trials,
            y=mean,
            mode="lines",
            line={"color": color, "width": 2, "dash": "dash" if i >= len(_COLORS) else "solid"},
            name=sampler,
            legendgroup=str(i),
        )
    figure.update_layout(
        template="plotly_white",
        title=title,
        xaxis_title="trials",
        yaxis_title=f"best so far, {'geometric ' if log else ''}mean ± standard error",
        yaxis_type="log" if log else "linear",
        yaxis_dtick=1 if log else None,
        yaxis_exponentformat="power",
        hovermode="x unified",
    )
    return figure


def _short_svg(svg: str) -> str:
    """Return plotly's SVG at half its size: round markers as circles, coordinates to 0.01."""
    marker = (
        r'<path class="point" transform="translate\(([^,]+),([^)]+)\)" d="M([\d.]+),0A[^"]+"'
        r' style="opacity: 1; stroke-width: 0px; (fill: [^;]+);"/>'
    )
    svg = re.sub(r" (opacity|fill-opacity|stroke-opacity): 1;", "", svg)  # the default
    svg = re.sub(marker, r'<circle cx="\1" cy="\2" r="\3" style="\4"/>', svg)
    return re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), svg)


def _mean_and_se(values: Matrix) -> tuple[Matrix, Matrix]:
    n = len(values)
    mean = np.mean(values, axis=0)
    if n == 1:
        return mean, np.zeros_like(mean)
    return mean, np.std(values, axis=0, ddof=1) / np.sqrt(n)
