"""From what the user said to a checked plan; until ``open_study`` nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.study import StudyDirection

from studies._catalog import parse_assignments
from studies._errors import UserError
from studies._job import connect
from studies._job import connect_to_read
from studies._job import file_beside
from studies._job import Job
from studies._job import RUNS
from studies._job import storage_file
from studies._locks import study_lock
from studies._objective import Objective
from studies._options import Options
from studies._outage import damage_in_a_sentence
from studies._ray import check_ray
from studies._report import check_figure
from studies._tickets import n_begun


_OBJECTIVE = "objective"  # user attributes of a study
_ARGUMENTS = "arguments"
_DESIGN_SIZE = "design_size"
_RETRIES = 3  # with checkpoints: what made a trial's process die may not be the trial
_NAME_LENGTH = 60  # characters, which are four bytes each at most; file systems allow 255


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run.

    Args:
        job: The study; the device is not in its arguments yet.
        objective: What the job optimizes.
        devices: One per process; ``None`` if the objective does not take one.
        ray: Address of the Ray cluster to run on, if any.
        gpus: GPUs of each process there.
        points: Parameters to try first.
        timeout: Seconds after which no trial starts, if at all.
        figure: Where to save the figure, if at all.
        more: The flag that gives a study more trials.
    """

    job: Job
    objective: Objective
    devices: Sequence[str | None]
    ray: str | None
    gpus: float
    points: Sequence[dict[str, Any]]
    timeout: float | None
    figure: Path | None
    more: str = "--trials"


def make_plan(
    options: Options,
    objective: Objective,
    *,
    arguments: Mapping[str, Any],
    directions: Sequence[str],
) -> Plan:
    """Check everything that can be checked before something is written.

    Args:
        options: The shared flags.
        objective: What to optimize.
        arguments: The objective's own arguments.
        directions: ``"minimize"`` or ``"maximize"`` for every value.

    Raises:
        UserError: If something is wrong.
    """
    arguments = _training_arguments(options, objective) | dict(arguments)
    objective.check_arguments(arguments)
    _check_json(arguments)
    if options.ray is not None:
        check_ray()
    devices = _devices(options, objective)
    points = _points(options, objective)
    for flag, text in (("--storage", options.storage), ("--study", options.study)):
        if text is not None and not text.strip():
            raise UserError(f"{flag} must not be empty: leave it out for the default")
    storage = options.storage or default_storage(objective)
    file = storage_file(storage)
    study = options.study or study_name(objective, arguments)
    figure = None if options.no_figure else options.figure or _figure(storage, study)
    if figure is not None:
        check_figure(figure)
    job = Job(
        objective=objective.target,
        arguments=arguments,
        directions=list(directions),
        storage=storage,
        study=study,
        sampler=options.sampler,
        sampler_arg=options.sampler_arg or [],
        pruner=options.pruner,
        pruner_arg=options.pruner_arg or [],
        trials=options.trials,
        design_size=options.trials,
        seed=options.seed,
        retries=_retries(options, arguments),
    )
    job.sampler_and_pruner(objective)
    if file is None or file.exists():
        with damage_in_a_sentence(storage):
            _find_study(connect_to_read(storage), job, objective)
    elif file.parent != RUNS and not file.parent.is_dir():  # before checkpoints make it
        raise UserError(f"--storage: the directory {file.parent} of {file.name} does not exist")
    if "checkpoints" in arguments:
        _check_checkpoints(arguments["checkpoints"])
    return Plan(
        job=job,
        objective=objective,
        devices=devices,
        ray=options.ray,
        gpus=_gpus(options),
        points=points,
        timeout=options.timeout,
        figure=figure,
    )


def open_study(plan: Plan) -> tuple[Study, BaseStorage]:
    """Create the study, or find the one to go on with, and enqueue the user's points.

    Raises:
        UserError: If the storage cannot be opened or the study is another one.
    """
    job = plan.job
    file = storage_file(job.storage)
    if file is not None and file.parent == RUNS:
        RUNS.mkdir(exist_ok=True)
    storage = connect(job.storage)
    with study_lock(job.storage, storage, job.study):
        study = _find_study(storage, job, plan.objective)
        if study is None:
            study = optuna.create_study(
                study_name=job.study,
                storage=storage,
                directions=[StudyDirection[d.upper()] for d in job.directions],
            )
        about = {
            _OBJECTIVE: plan.objective.name,
            _ARGUMENTS: plan.objective.meaning(job.arguments),
            _DESIGN_SIZE: job.design_size,
        }
        for key, value in about.items():
            if key not in study.user_attrs:
                study.set_user_attr(key, value)
        if n_begun(study.get_trials(deepcopy=False)) < job.trials:
            for point in plan.points:
                study.enqueue_trial(point, skip_if_exists=True)
    return study, storage


def design_size(study: Study) -> int:
    """Return the size of finite designs in this study."""
    return int(study.user_attrs[_DESIGN_SIZE])


def default_storage(objective: Objective) -> str:
    """Name the file that holds the studies of an objective."""
    return str(RUNS / f"{objective.name}.db")


def study_name(objective: Objective, arguments: Mapping[str, Any]) -> str:
    """Name a study after the objective and what is not by default in it."""
    own = objective.own_keywords()
    chosen = [
        k if v is True else str(v)
        for k, v in arguments.items()
        if k in own and v != own[k].default
    ]
    return "-".join([objective.name, *chosen])


def _training_arguments(options: Options, objective: Objective) -> dict[str, Any]:
    said = {
        "epochs": options.epochs,
        "checkpoints": options.checkpoints,
        "data_dir": None if options.data_dir is None else str(options.data_dir),
        "amp": options.amp or None,
        "compile": options.compile or None,
    }
    arguments = {name: value for name, value in said.items() if value is not None}
    for name in arguments:
        if name not in objective.keywords():
            flag = name.replace("_", "-")
            raise UserError(f"objective {objective.name!r} has no argument {name!r} for --{flag}")
    if options.seed is not None and "seed" in objective.keywords():
        arguments["seed"] = options.seed
    return arguments


def _retries(options: Options, arguments: Mapping[str, Any]) -> int:
    if options.retries is not None:
        return options.retries
    return _RETRIES if arguments.get("checkpoints") is not None else 0


def _check_checkpoints(place: str) -> None:
    """Refuse a place where every trial would fail when it saves."""
    from optuna_ext import CheckpointError
    from optuna_ext import CheckpointStore

    if place == ":memory:":
        raise UserError(
            "--checkpoints :memory: would be forgotten with the process: name a directory"
        )
    try:
        CheckpointStore(place).check()
    except (ValueError, TypeError, OSError, ImportError, CheckpointError) as error:
        raise UserError(f"--checkpoints: {error}") from error


def _check_json(arguments: Mapping[str, Any]) -> None:
    """Refuse what would not reach another process as it is."""
    for name, value in arguments.items():
        try:
            travels = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            travels = False
        if not travels:
            raise UserError(
                f"--arg {name} must be a number, a text, a bool, None, or a list or dict of them, "
                f"not {value!r}"
            )


def _devices(options: Options, objective: Objective) -> list[str | None]:
    """Return the device of every process."""
    if "device" not in objective.keywords():
        if options.device is not None:
            raise UserError(f"objective {objective.name!r} has no argument 'device' for --device")
        return [None] * (options.workers or 1)
    if options.ray is not None:
        if options.device not in (None, "auto", "cpu", "cuda"):
            raise UserError(
                f"--device must be cpu or cuda with --ray, which gives each worker its GPU, not "
                f"{options.device!r}"
            )
        device = options.device or ("cuda" if _gpus(options) else "cpu")
        return [device] * (options.workers or 1)
    if options.device is None and (options.workers or 1) == 1:
        return [None]
    devices = [d.strip() for d in (options.device or "all").split(",")]
    from objectives.training import resolve_device

    try:
        if devices == ["all"]:
            import torch

            devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["auto"]
        for device in devices:
            resolve_device(device)
    except ValueError as error:
        raise UserError(f"--device: {error}") from error
    n_workers = options.workers or len(devices)
    return [devices[i % len(devices)] for i in range(n_workers)]


def _gpus(options: Options) -> float:
    if options.gpus is None:
        return 1.0 if options.ray is not None and options.device == "cuda" else 0.0
    if options.ray is None:
        raise UserError("--gpus is what Ray gives to each worker: name its cluster with --ray")
    return options.gpus


def _points(options: Options, objective: Objective) -> list[dict[str, Any]]:
    points = []
    if options.param:
        point = parse_assignments("--param", options.param)
        objective.check_params(point)
        points.append(point)
    if options.defaults:
        if not objective.defaults:
            raise UserError(f"objective {objective.name!r} publishes no DEFAULTS for --defaults")
        objective.check_params(objective.defaults, what="DEFAULTS")
        points.append(dict(objective.defaults))
    return points


def _figure(storage: str, study: str) -> Path:
    """Name the figure after the study, and after its storage where that says something else."""
    file = storage_file(storage)
    if file is not None and study != file.stem and not study.startswith(f"{file.stem}-"):
        study = f"{file.stem}-{study}"
    return file_beside(storage, f"{study[:_NAME_LENGTH]}.html")


def _find_study(storage: BaseStorage, job: Job, objective: Objective) -> Study | None:
    """Return the study of this name if there is one, and if it is of the same objective."""
    try:
        storage.get_study_id_from_name(job.study)
    except KeyError:
        return None
    study = optuna.load_study(study_name=job.study, storage=storage)
    where = f"study {job.study!r} in {job.storage}"
    advice = "choose another name with --study"
    made_of = study.user_attrs.get(_OBJECTIVE, objective.name)
    if made_of != objective.name:
        raise UserError(f"{where} is of objective {made_of!r}, not {objective.name!r}: {advice}")
    directions = [direction.name.lower() for direction in study.directions]
    if directions != job.directions:
        raise UserError(
            f"{where} has direction {_list(directions)}, not {_list(job.directions)}: {advice}"
        )
    meaning = objective.meaning(job.arguments)
    before = study.user_attrs.get(_ARGUMENTS, meaning)
    for name in sorted(before.keys() | meaning.keys()):
        if before.get(name) != meaning.get(name):
            raise UserError(
                f"{where} was made with {name}={before.get(name)!r}, not {meaning.get(name)!r}: "
                f"{advice}"
            )
    _check_space(study, objective, where=where, advice=advice)
    return study


def _check_space(study: Study, objective: Objective, *, where: str, advice: str) -> None:
    if objective.space is None:
        return
    for trial in study.get_trials(deepcopy=False):
        for name, distribution in trial.distributions.items():
            if name not in objective.space:
                raise UserError(
                    f"{where} has a parameter {name!r}, which objective {objective.name!r} does "
                    f"not know: {advice}"
                )
            try:
                check_distribution_compatibility(objective.space[name], distribution)
            except ValueError as error:
                raise UserError(
                    f"{where} has a parameter {name!r} of another kind than objective "
                    f"{objective.name!r}: {advice}"
                ) from error


def _list(directions: Sequence[str]) -> str:
    return " and ".join(directions)
