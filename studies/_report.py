"""What a study found: as data, as tables and as a figure."""

from __future__ import annotations

from collections import Counter
import contextlib
import html
import json
import math
import os
from pathlib import Path
import shlex
import shutil
import sys
from typing import Any
import warnings

import optuna
from optuna.study import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from optuna_ext.storage import dashboard_command
from studies._errors import UserError


_N_TOP = 5
_N_FOR_IMPORTANCES = 10  # completed trials below which importances are noise
_HIDDEN_ATTRS = {"process", "heartbeat", "checkpoint", "resumed", "schedule", "optuna_ext:run"}


def summarize(study: Study, *, location: str) -> dict[str, Any]:
    """Return what the study found, fit for JSON.

    Args:
        study: The study.
        location: Path or URL of its storage.
    """
    trials = study.get_trials(deepcopy=False)
    counts = Counter(trial.state for trial in trials)
    single = len(study.directions) == 1
    ranked = _ranked(study, trials) if single else study.best_trials
    return {
        "study": study.study_name,
        "directions": [direction.name.lower() for direction in study.directions],
        "trials": {state.name.lower(): counts[state] for state in TrialState},
        "best": _entry(ranked[0]) if single and ranked else None,
        ("top" if single else "pareto"): [
            _entry(trial) for trial in (ranked[:_N_TOP] if single else ranked)
        ],
        "importances": _importances(study) if single else {},
        "dashboard": _dashboard(location),
    }


def to_json(summary: dict[str, Any]) -> str:
    """Return the summary as strict JSON, which knows no NaN and no infinity: they become null."""
    return json.dumps(_finite(summary), default=str, allow_nan=False)


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the best trial, the tables and where to look further."""
    best = summary["best"]
    if best is not None:
        console.print(f"\n[bold]Best trial[/bold] {best['number']}: {best['values'][0]:.6g}")
        for title in ("params", "user_attrs"):
            pairs = ", ".join(f"{name}={_short(value)}" for name, value in best[title].items())
            if pairs:
                console.print(f"  {pairs}", markup=False, highlight=False)
    top = summary.get("top", summary.get("pareto", []))
    if top:
        title = "Top trials" if best is not None else "Best trials (Pareto front)"
        console.print(_table(title, top))
    else:
        console.print("No trial is complete yet.")
    if summary["importances"]:
        console.print(_importance_table(summary["importances"]))
    if summary.get("figure"):
        console.print(f"Figure: {summary['figure']}", markup=False, soft_wrap=True)
    for name, path in summary.get("charts", {}).items():
        title = name.capitalize().replace("-", " ")
        console.print(f"{title}: {path}", markup=False, soft_wrap=True)
    if summary["dashboard"]:
        console.print(f"Look closer: {summary['dashboard']}", markup=False, soft_wrap=True)


def check_figure(path: Path) -> None:
    """Refuse a path that ``save_figure`` cannot write, before a study is run for it.

    Raises:
        UserError: If it does not end in .html, is a folder or lies in one that is read-only.
    """
    if path.suffix.lower() != ".html":
        raise UserError(f"--figure must end in .html, not {str(path)!r}")
    try:
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # which fails if the name is too long
    except OSError as error:
        raise UserError(f"--figure {str(path)!r}: {error.strerror}") from error
    if path.is_dir():
        raise UserError(f"--figure {str(path)!r} is a folder")
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"--figure {str(path)!r} cannot be written: {str(there)!r} is read-only")


def save_figure(study: Study, path: Path) -> bool:
    """Save history and slice plots of the study as one HTML file that needs no internet.

    Returns:
        Whether there was something to plot.
    """
    if not any(t.params for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))):
        return False
    pages: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for i in range(len(study.directions)):
            options: dict[str, Any] = {}
            if len(study.directions) > 1:
                options = {"target": lambda t, i=i: t.values[i], "target_name": f"Objective {i}"}
            for plot in (
                optuna.visualization.plot_optimization_history,
                optuna.visualization.plot_slice,
            ):
                pages.append(
                    plot(study, **options).to_html(full_html=False, include_plotlyjs=not pages)
                )
    title = f"<meta charset='utf-8'><title>{html.escape(study.study_name)}</title>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<!doctype html>{title}{''.join(pages)}", encoding="utf-8")
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ranked(study: Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    return sorted(complete, key=lambda t: sign * t.values[0])


def _entry(trial: FrozenTrial) -> dict[str, Any]:
    attrs = {name: v for name, v in trial.user_attrs.items() if name not in _HIDDEN_ATTRS}
    return {
        "number": trial.number,
        "values": list(trial.values),
        "params": dict(trial.params),
        "user_attrs": attrs,
    }


def _importances(study: Study) -> dict[str, float]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < _N_FOR_IMPORTANCES or len({t.values[0] for t in complete}) == 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importances = optuna.importance.get_param_importances(study)
        except (ValueError, RuntimeError):  # such as a space that changed midway
            return {}
    return importances if len(importances) > 1 else {}


def _dashboard(location: str) -> str | None:
    """Return the command that shows a storage, which works in this shell."""
    try:
        command = dashboard_command(location)
    except ValueError:
        return None
    program, _, rest = command.partition(" ")
    beside = Path(sys.executable).with_name(program)  # of an environment that is not activated
    if shutil.which(program) is not None or not beside.exists():
        return command
    beside = beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside
    return f"{shlex.quote(str(beside))} {rest}"


def _table(title: str, entries: list[dict[str, Any]]) -> Table:
    """Return a table with a column per trial, since there may be many parameters."""
    table = Table(title=title, title_justify="left")
    table.add_column("trial")
    for entry in entries:
        table.add_column(str(entry["number"]), justify="right")
    n_values = len(entries[0]["values"])
    for i in range(n_values):
        name = "value" if n_values == 1 else f"value {i}"
        values = [f"{entry['values'][i]:.6g}" for entry in entries]
        table.add_row(name, *values, style="bold", end_section=i == n_values - 1)
    for name in dict.fromkeys(name for entry in entries for name in entry["params"]):
        table.add_row(name, *(_short(entry["params"].get(name, "")) for entry in entries))
    return table


def _importance_table(importances: dict[str, float]) -> Table:
    table = Table(title="Importance of the parameters", title_justify="left", show_header=False)
    for name, value in importances.items():
        table.add_row(name, f"{value:.2f}", "█" * round(20 * value))
    return table


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
