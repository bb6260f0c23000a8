"""What a tuner did to a training, kept with the trial."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import io
import os
from pathlib import Path
import tempfile
from typing import Any
from typing import Protocol
from typing import TYPE_CHECKING

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts import upload_artifact
from optuna.trial import Trial

from optuna_ext._checks import check_int
from optuna_ext.schedule import Schedule


if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore
    from optuna.trial import BaseTrial
    from optuna.trial import FrozenTrial
    from torch.optim import Optimizer

SCHEDULE = "schedule"  # user attribute: a thinned schedule, and which artifact is the whole one
_FILE = "schedule.json"
_MOST_CHANGES = 200
_MOST_NUMBERS = 2000  # 64 kB of JSON are what the smallest database takes
_DIGITS = 6


class Recorder:
    """Notes the options of an optimizer at every step, from when it is made.

    It works with every torch optimizer, such as ``HypergradientSGD``, or one with a learning rate
    scheduler. Its state belongs into the checkpoint, next to the optimizer's.

    Args:
        optimizer:
            The optimizer. With several groups of parameters, the options of group 1 and so on
            are called ``lr_1`` and so on; the first is ``lr`` in any case.
        names:
            Which of its options, numbers all of them.
        every:
            How many steps it makes per note.

    Raises:
        ValueError: If the optimizer has no such option, or ``every`` is below 1.

    Example:
        .. testcode::

            import torch
            from optuna_ext import HypergradientSGD
            from optuna_ext.online import Recorder

            model = torch.nn.Linear(1, 1)
            optimizer = HypergradientSGD(model.parameters(), lr=0.01)
            recorder = Recorder(optimizer)
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.ones(1)).square().sum().backward()
                optimizer.step()
            assert recorder.schedule.last == 5
    """

    def __init__(
        self, optimizer: Optimizer, *, names: Sequence[str] = ("lr",), every: int = 1
    ) -> None:
        self._every = check_int("every", every, low=1)
        for name in names:
            if any(name not in group for group in optimizer.param_groups):
                options = sorted({*optimizer.param_groups[0]} - {"params"})
                raise ValueError(f"`names` must be among {options}, but got {name!r}.")
        self._names = tuple(names)
        self._steps = 0
        self._schedule = Schedule()
        optimizer.register_step_post_hook(self._note)

    @property
    def schedule(self) -> Schedule:
        """What was noted so far."""
        return self._schedule

    def _note(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        del args, kwargs
        if self._steps % self._every == 0:
            values = {
                f"{name}_{i}" if i else name: float(group[name])
                for i, group in enumerate(optimizer.param_groups)
                for name in self._names
            }
            self._schedule.record(self._steps + 1, **values)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what was noted."""
        return {"steps": self._steps, "schedule": self._schedule.to_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was noted before."""
        self._steps = state["steps"]
        self._schedule = Schedule.from_dict(state["schedule"])


class _HasSchedule(Protocol):
    @property
    def schedule(self) -> Schedule: ...


def record(
    trial: BaseTrial,
    schedule: Schedule | _HasSchedule,
    *,
    place: str | os.PathLike[str] | ArtifactStore | None = None,
) -> None:
    """Keep with a trial what was tuned while it trained.

    The trial's user attribute ``schedule`` holds at most 200 of the changes, to six digits:
    enough for a figure, on every storage. With ``place`` the whole schedule becomes an artifact of
    the trial, ``schedule.json``, which the dashboard offers for download. The attribute names it
    after it is there. Recorded again, a schedule takes the place of the one before.

    Args:
        trial:
            The trial in progress.
        schedule:
            A schedule, or what has one: a :class:`Recorder`, a ``T1T2``.
        place:
            A directory (created if need be) or an artifact store of Optuna.

    Raises:
        TypeError: If ``schedule`` or ``place`` is something else.
        ValueError: If there is a ``place``, and the trial is fixed or frozen.

    Example:
        .. testcode::

            import optuna
            from optuna_ext import Schedule
            from optuna_ext.online import record
            from optuna_ext.online import recorded

            trial = optuna.create_study().ask()
            record(trial, Schedule({1: {"lr": 0.1}, 2: {"lr": 0.2}}))
            assert recorded(trial).at(2) == {"lr": 0.2}
    """
    whole = schedule if isinstance(schedule, Schedule) else getattr(schedule, "schedule", None)
    if not isinstance(whole, Schedule):
        raise TypeError(
            "`schedule` must be a Schedule or have one as its attribute `schedule`, but is of "
            f"type {type(schedule).__name__}."
        )
    n_numbers = max(1, len(whole.names))
    thinned = whole.thinned(max(2, min(_MOST_CHANGES, _MOST_NUMBERS // n_numbers)))
    attribute = _rounded(thinned).to_dict()
    if place is not None:
        attribute["artifact"] = _upload(trial, whole, _open(place))
    trial.set_user_attr(SCHEDULE, attribute)


def recorded(
    trial: BaseTrial | FrozenTrial,
    *,
    place: str | os.PathLike[str] | ArtifactStore | None = None,
) -> Schedule | None:
    """Return the schedule that was recorded with a trial.

    Args:
        trial:
            The trial, in any state.
        place:
            Where the whole schedule is, as for :func:`record`. Without it the thinned one is
            returned.

    Returns:
        The schedule; ``None`` if there is none.

    Raises:
        TypeError: If ``place`` is no directory and no artifact store.
        ValueError: If there is a ``place``, but the schedule was recorded without.
        ArtifactNotFound: If the artifact is not there.
    """
    attribute = trial.user_attrs.get(SCHEDULE)
    if attribute is None:
        return None
    if place is None:
        return Schedule.from_dict(attribute)
    if "artifact" not in attribute:
        raise ValueError(
            f"trial {trial.number} has its schedule in no artifact: leave out `place`."
        )
    with _open(place).open_reader(attribute["artifact"]) as file:
        return Schedule.from_json(file.read().decode())


def _upload(trial: BaseTrial, schedule: Schedule, store: ArtifactStore) -> str:
    """Write the whole schedule; return the name of its artifact, the former one if there is."""
    if not isinstance(trial, Trial):
        raise ValueError(
            "`place` must be None with a trial that no study has, such as a "
            f"{type(trial).__name__}."
        )
    text = schedule.to_json()
    former: str | None = trial.user_attrs.get(SCHEDULE, {}).get("artifact")
    if former is not None:
        store.write(former, io.BytesIO(text.encode()))
        return former
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, _FILE)
        path.write_text(text, encoding="utf-8")
        return upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)


def _open(place: str | os.PathLike[str] | ArtifactStore) -> ArtifactStore:
    if isinstance(place, str | os.PathLike):
        directory = Path(place).expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        return FileSystemArtifactStore(directory)
    if not all(hasattr(place, method) for method in ("open_reader", "write", "remove")):
        raise TypeError(
            "`place` must be a directory or an artifact store of Optuna, but is of type "
            f"{type(place).__name__}."
        )
    return place


def _rounded(schedule: Schedule) -> Schedule:
    points = {
        steps.start: {name: _round(value) for name, value in values.items()}
        for steps, values in schedule
    }
    return Schedule(points, last=schedule.last)


def _round(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
