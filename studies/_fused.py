"""A study whose trials train together as one program."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from functools import partial
import inspect
from pathlib import Path
import signal
import time
from types import ModuleType
from typing import Annotated
from typing import Any
from typing import TYPE_CHECKING

import typer

from optuna_ext import bulk_storage
from studies._command import run_plan
from studies._errors import mistakes_in_a_sentence
from studies._errors import UserError
from studies._handover import fused_checkpoint
from studies._interrupt import Interrupt
from studies._job import connect
from studies._job import Job
from studies._objective import find_objective
from studies._objective import Objective
from studies._options import Options
from studies._plan import make_plan
from studies._plan import Plan
from studies._progress import StudyProgress
from studies._tickets import n_begun


if TYPE_CHECKING:
    from optuna_ext import CheckpointStore
    from optuna_ext.fused import Problem

Slots = Annotated[int, typer.Option(help="Trials that train at once, with --fused.", min=1)]


def fused_study(module: ModuleType) -> Callable[..., int]:
    """Return the command that trains the trials of one of our objectives together."""
    objective = find_objective(f"{module.__name__}:objective")

    def command(options: Options, arguments: Mapping[str, Any], *, slots: Slots = 256) -> int:
        """Train many trials at once as one program."""
        plan = make_plan(options, objective, arguments=arguments, directions=objective.directions)
        objective.rehearse(plan.job.arguments)
        run = run_fused(plan, options, objective, slots=slots)
        return run_plan(plan, as_json=options.json, run=run)

    return command


def run_fused(
    plan: Plan, options: Options, objective: Objective, *, slots: int
) -> Callable[..., bool]:
    """Return what runs the trials of a plan together, for ``run_plan``.

    Raises:
        UserError: If an option has no meaning there, or the objective cannot be trained so.
    """
    if options.workers is not None:
        raise UserError("--workers must not be given with --fused, whose flag is --slots")
    if options.ray is not None:
        raise UserError("--ray must not be given with --fused, which is one process")
    if len(plan.devices) > 1:
        raise UserError("--device must be one device with --fused")
    given: dict[str, Any] = {name: p.default for name, p in objective.keywords().items()}
    given |= plan.job.arguments
    given["device"] = plan.devices[0] or "auto"
    with mistakes_in_a_sentence():
        problem = _problem(objective.module, given)
    return partial(_run, problem=problem, slots=slots, given=given)


def _problem(module: ModuleType, given: Mapping[str, Any]) -> Problem:
    from objectives import fusion

    takes = inspect.signature(module.task).parameters
    task = module.task(**{name: value for name, value in given.items() if name in takes})
    settings = {name: given[name] for name in ("epochs", "device", "seed", "interval")}
    return fusion.problem(task, **settings)


def _run(plan: Plan, job: Job, **settings: Any) -> bool:
    """Train, unless another process does already: the checkpoint can be of one only."""
    from optuna_ext import fused

    del plan
    checkpoint = fused_checkpoint(job)
    checkpoint.parent.mkdir(exist_ok=True)
    try:
        with fused.locked(checkpoint):  # what is missing is counted inside
            return _train(job, checkpoint=checkpoint, **settings)
    except fused.CheckpointInUseError:
        raise UserError(
            f"study {job.study!r} is being trained by another process with --fused: wait for it, "
            "or start another study with --study"
        ) from None


def _train(
    job: Job,
    *,
    checkpoint: Path,
    interrupt: Interrupt,
    progress: StudyProgress,
    problem: Problem,
    slots: int,
    given: Mapping[str, Any],
    **others: Any,  # what only processes of their own need
) -> bool:
    from optuna_ext import CheckpointError
    from optuna_ext import fused

    del others
    study, _ = job.load(bulk_storage(connect(job.storage)))
    progress.follow(study)
    mine = fused.interrupted(study, checkpoint)
    missing = job.trials - n_begun(study.get_trials(deepcopy=False)) + len(mine)
    if missing < 1:
        return True

    started = time.perf_counter()

    def look(trials: int, model_steps: int) -> None:
        progress.update(more=_speed(trials, model_steps, time.perf_counter() - started))

    try:
        with interrupt.raising():
            summary = fused.optimize(
                study,
                problem,
                missing,
                slots=slots,
                device=given["device"],
                amp=given["amp"],
                compile=given["compile"],
                timeout=None if job.deadline is None else max(0, job.deadline - time.time()),
                after_epoch=look,
                checkpoint=checkpoint,
                store=_store(job),
            )
    except KeyboardInterrupt:
        if interrupt.signum is None:
            interrupt.signum = signal.SIGINT
        return True
    except (ValueError, CheckpointError) as error:
        raise UserError(str(error)) from error
    progress.say(_speed(summary.trials, summary.model_steps, summary.seconds))
    megabytes = summary.bytes_per_slot / 1e6
    progress.say(f"{summary.slots} slots of {megabytes:.3g} MB for the largest network")
    for name, reason in summary.engines.items():
        progress.say(f"engine {name}: {reason}")
    return True


def _speed(trials: int, model_steps: int, seconds: float) -> str:
    return f"{trials / seconds:.3g} trials/s, {model_steps / seconds:,.0f} model steps/s"


def _store(job: Job) -> CheckpointStore | None:
    """Open where the same study keeps its trials without --fused."""
    from optuna_ext import CheckpointStore

    place = job.arguments.get("checkpoints")
    return None if place is None else CheckpointStore(place)
