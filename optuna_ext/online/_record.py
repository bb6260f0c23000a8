from __future__ import annotations

from pathlib import Path
import tempfile
from typing import Protocol
from typing import TYPE_CHECKING

import optuna

from optuna_ext._checks import check_int
from optuna_ext.schedule import Schedule


if TYPE_CHECKING:
    from optuna.artifacts import FileSystemArtifactStore
    from optuna.trial import BaseTrial

SCHEDULE = "optuna_ext:schedule"
"""The user attribute that holds a trial's schedule, thinned, as ``Schedule.to_dict`` gives it."""

ARTIFACT = "optuna_ext:schedule_artifact"
"""The user attribute that names the artifact with all of it."""

_SHOWN = 20  # trials in the dashboard's panel


class Tuner(Protocol):
    """What has a schedule: ``T1T2``, or a ``RateRecorder``."""

    @property
    def schedule(self) -> Schedule:
        """The values so far."""
        ...


def record(
    trial: BaseTrial,
    tuner: Tuner,
    *,
    artifact_store: FileSystemArtifactStore | None = None,
    n_points: int = 100,
) -> None:
    """Keep with a trial what was tuned in it.

    The schedule becomes the user attribute ``optuna_ext:schedule``, thinned, from which
    :func:`recorded` returns it; where optuna-dashboard is installed, it shows the schedules of the
    latest trials in a panel of the study. Call it once, when the training is over, pruned
    trainings included.

    Args:
        trial:
            The trial; of an :obj:`optuna.trial.FixedTrial` only the attribute is set.
        tuner:
            What has the schedule.
        artifact_store:
            Where all of the schedule goes, as JSON. The default, :obj:`None`, is nowhere.
        n_points:
            How many changes the attribute may have.

    Raises:
        ValueError: If ``n_points`` is below 1.
    """
    check_int("n_points", n_points, low=1)
    schedule = tuner.schedule
    thinned = _thin(schedule, n_points)
    trial.set_user_attr(SCHEDULE, thinned.to_dict())
    if not isinstance(trial, optuna.Trial):
        return
    if artifact_store is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "schedule.json")
            path.write_text(schedule.to_json(), encoding="utf-8")
            identifier = optuna.artifacts.upload_artifact(
                artifact_store=artifact_store, file_path=str(path), study_or_trial=trial
            )
        trial.set_user_attr(ARTIFACT, identifier)  # now it is whole
    _show(trial.study)


def _show(study: optuna.Study) -> None:
    """Draw the latest schedules into one figure, for a panel of the dashboard."""
    try:
        from optuna_dashboard import save_plotly_graph_object
    except ImportError:
        return
    trials = [t for t in study.get_trials(deepcopy=False) if SCHEDULE in t.user_attrs][-_SHOWN:]
    figures = {trial.number: recorded(trial).plot() for trial in trials}
    whole = None
    for number, figure in figures.items():
        figure.update_traces(name=f"trial {number}")
        whole = figure if whole is None else whole.add_traces(figure.data)
    save_plotly_graph_object(study, whole, graph_object_id="schedules")


def recorded(trial: optuna.trial.FrozenTrial) -> Schedule:
    """Return the schedule that :func:`record` has kept, thinned.

    Raises:
        ValueError: If the trial has none.
    """
    if SCHEDULE not in trial.user_attrs:
        raise ValueError(f"Trial {trial.number} has no schedule: call `record` in the objective.")
    return Schedule.from_dict(trial.user_attrs[SCHEDULE])


def _thin(schedule: Schedule, n: int) -> Schedule:
    parts = list(schedule)
    if len(parts) > n:
        parts = [parts[i * len(parts) // n] for i in range(n)]
    return Schedule({steps.start: values for steps, values in parts}, last=schedule.last)
