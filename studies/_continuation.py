"""Studies whose trials go on from each other's checkpoints, of our objectives or your own."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import replace
import inspect
from pathlib import Path
from typing import Annotated
from typing import Any

import typer

from studies._errors import mistakes_in_a_sentence
from studies._errors import unknown
from studies._errors import UserError
from studies._fused import run_fused
from studies._job import checkpoints_beside
from studies._objective import find_objective
from studies._objective import Objective
from studies._options import Options
from studies._plan import default_storage
from studies._plan import make_plan
from studies._plan import Plan
from studies._plan import study_name


OURS = ("boundaries", "digits", "fashion", "mnist")

Target = Annotated[
    str, typer.Argument(help=f"{', '.join(OURS)}, module:function or file.py:function.")
]


def find_target(target: str) -> Objective:
    """Import the objective that a ``Target`` names.

    Raises:
        UserError: If that is not possible.
    """
    if target in OURS:
        return find_objective(f"objectives.{target}:objective")
    if ":" not in target:
        raise unknown("objective", target, (*OURS, "module:function", "file.py:function"))
    return find_objective(target)


def is_ours(objective: Objective) -> bool:
    """Return whether it is one of the project's objectives."""
    return objective.target.startswith("objectives.")


def make_continuation_plan(
    options: Options,
    objective: Objective,
    *,
    method: str,
    arguments: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> Plan:
    """Check everything, down to the data, before something is written.

    Args:
        options: The shared flags; the study and where it and its checkpoints are have names of
            their own by default.
        objective: What to optimize.
        method: Ends the study's name.
        arguments: The objective's own arguments.
        given: Arguments that the method gives it.

    Raises:
        UserError: If something is wrong.
    """
    given = given or {}
    for name in (*given, "checkpoints"):
        if name not in objective.keywords():
            raise UserError(
                f"objective {objective.name!r} must take the argument {name!r}, as --help says"
            )
    storage = options.storage or default_storage(objective)
    study = options.study
    if study is None:  # an empty one is refused
        study = f"{study_name(objective, arguments)}-{method}"
    options = replace(options, storage=storage, study=study)
    if not options.checkpoints:
        place = checkpoints_beside(storage, study)
        options = replace(options, checkpoints=str(place))
    plan = make_plan(
        options,
        objective,
        arguments={**arguments, **given},
        directions=objective.directions,
    )
    objective.rehearse({"checkpoints": ":memory:", **plan.job.arguments})
    if is_ours(objective):
        _check_data(objective, arguments, data_dir=options.data_dir)
    return plan


def run_together(
    plan: Plan, options: Options, objective: Objective, *, slots: int
) -> Callable[..., bool]:
    """Return what runs the trials of a plan as one program, for ``run_plan``.

    Raises:
        UserError: If the objective cannot be trained so.
    """
    if not is_ours(objective):
        raise UserError(f"--fused needs one of {', '.join(OURS)}, not {objective.target!r}")
    return run_fused(plan, options, objective, slots=slots)


def _check_data(
    objective: Objective, arguments: Mapping[str, Any], *, data_dir: Path | None
) -> None:
    """Notice missing data before there is a study."""
    import torch

    make = objective.module.task
    takes = inspect.signature(make).parameters
    given = {**arguments, "data_dir": data_dir}
    with mistakes_in_a_sentence():
        task = make(**{name: value for name, value in given.items() if name in takes})
        task.data(torch.device("cpu"))
