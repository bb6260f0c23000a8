"""Population-based training of one of our objectives, or of your own.

Sixteen multilayer perceptrons on the handwritten digits, ten intervals of two epochs each, about
a minute on a CPU::

    python -m studies.pbt digits

MNIST on two GPUs; the data are downloaded when they are not in ``--data-dir``::

    python -m studies.pbt mnist --amp --devices cuda:0,cuda:1

The whole population as one program, which copies weights on the device::

    python -m studies.pbt digits --fused

The size for a quick look::

    python -m studies.pbt digits --study quick --population 4 --interval 1 --generations 3

The same command goes on with a study that was stopped or killed. Your own objective is
``module:function`` or ``path/to/file.py:function`` and takes ``interval``, the epochs to train,
and ``checkpoints``, where to find its parent's weights; see ``optuna_ext.CheckpointStore``.
``--sampler`` makes the initial population, ``--sampler-arg`` reaches every option of
``PopulationBasedTrainingSampler``.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
import inspect
from pathlib import Path
import sys
from typing import Annotated
from typing import Any

from optuna.trial import FrozenTrial
import typer

from studies._catalog import parse_assignments
from studies._charts import save_chart
from studies._command import as_main
from studies._command import run_plan
from studies._command import take_options
from studies._errors import UserError
from studies._family_tree import family_tree
from studies._fused import run_fused
from studies._job import connect_to_read
from studies._job import storage_file
from studies._objective import find_objective
from studies._objective import Objective
from studies._options import Options
from studies._plan import make_plan
from studies._plan import Plan


_OURS = ("boundaries", "digits", "fashion", "mnist")


class Exploit(StrEnum):
    """Who is replaced."""

    TRUNCATION = "truncation"
    TOURNAMENT = "tournament"
    T_TEST = "t-test"


def _command(
    target: Annotated[
        str, typer.Argument(help=f"{', '.join(_OURS)}, module:function or file.py:function.")
    ],
    *,
    population: Annotated[int, typer.Option(help="Members.", min=2)] = 16,
    interval: Annotated[int, typer.Option(help="Epochs between two decisions.", min=1)] = 2,
    generations: Annotated[int, typer.Option(help="Intervals of every member.", min=1)] = 10,
    exploit: Annotated[
        Exploit, typer.Option(help="Who is replaced by a better member.")
    ] = Exploit.TRUNCATION,
    burn_in: Annotated[int, typer.Option(help="Intervals before anybody is replaced.", min=0)] = 0,
    asynchronous: Annotated[
        bool, typer.Option("--asynchronous", help="Let no worker wait for another one.")
    ] = False,
    architecture: Annotated[
        list[str] | None,
        typer.Option(
            help="Parameter that stays with the weights; repeatable. (default: those of the "
            "objective's ARCHITECTURE)"
        ),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(help="name=value for the objective; repeatable."),
    ] = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Train the whole population as one program.")
    ] = False,
    **values: Any,
) -> int:
    options = take_options({**values, "trials": population * generations, "epochs": None})
    objective = find_objective(f"objectives.{target}:objective" if target in _OURS else target)
    arguments = parse_assignments("--arg", arg or [])
    shape = list(architecture or []) or list(getattr(_module(objective), "ARCHITECTURE", []))
    given = {
        "population_size": population,
        "exploit": exploit.value,
        "burn_in": burn_in,
        "synchronous": not asynchronous,
        "architecture": shape,
        "initial_population": options.sampler,
    }
    name = options.study or "-".join([objective.name, *map(str, arguments.values()), "pbt"])
    options = replace(
        options,
        sampler="pbt",
        sampler_arg=[*(f"{k}={v!r}" for k, v in given.items()), *(options.sampler_arg or [])],
        study=name,
        storage=options.storage or str(Path("runs", f"{objective.name}.db")),
    )
    if not fused:
        options = replace(options, checkpoints=options.checkpoints or _checkpoints(options, name))
    plan = _plan(options, objective, arguments={**arguments, "interval": interval})
    _check_population(plan, population)
    run = _fused_run(plan, options, objective, slots=population) if fused else None
    code = run_plan(plan, as_json=options.json, run=run)
    path = save_chart(plan, family_tree, name="family-tree")
    if path is not None and not options.json:
        typer.echo(f"Family tree: {path}")
    return code


def _plan(options: Options, objective: Objective, *, arguments: dict[str, Any]) -> Plan:
    missing = [name for name in ("interval", "checkpoints") if name not in objective.keywords()]
    if missing:
        raise UserError(
            f"objective {objective.name!r} must take the argument {missing[0]!r}: see the help of "
            "studies.pbt"
        )
    plan = make_plan(options, objective, arguments=arguments, directions=objective.directions)
    try:
        objective.rehearse({"checkpoints": ":memory:", **plan.job.arguments})
        if objective.target.startswith("objectives."):
            import torch

            own = {n: v for n, v in arguments.items() if n in objective.own_keywords()}
            task = _module(objective).task(**own, data_dir=options.data_dir)
            task.data(torch.device("cpu"))  # missing data are noticed before there is a study
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return replace(plan, more="--generations")


def _fused_run(
    plan: Plan, options: Options, objective: Objective, *, slots: int
) -> Callable[..., bool]:
    if not objective.target.startswith("objectives."):
        raise UserError(f"--fused needs one of {', '.join(_OURS)}, not {objective.target!r}")
    return run_fused(plan, options, objective, _module(objective), slots=slots)


def _module(objective: Objective) -> Any:
    return sys.modules[objective.function.__module__]


def _checkpoints(options: Options, study: str) -> str:
    """Name a directory beside the storage's file."""
    file = storage_file(options.storage or "")
    return str((Path("runs") if file is None else file.parent) / f"{study}-checkpoints")


def _check_population(plan: Plan, population: int) -> None:
    """Refuse another population size than the study has."""
    file = storage_file(plan.job.storage)
    if file is not None and not file.exists():
        return
    storage = connect_to_read(plan.job.storage)
    try:
        study_id = storage.get_study_id_from_name(plan.job.study)
    except KeyError:
        return
    size = _population_size(storage.get_all_trials(study_id, deepcopy=False))
    if size not in (None, population):
        raise UserError(
            f"study {plan.job.study!r} in {plan.job.storage} has a population of {size}, not "
            f"{population}: choose another name with --study"
        )


def _population_size(trials: Sequence[FrozenTrial]) -> int | None:
    """Return the size of the population, None if it cannot be told yet."""
    places = [t.user_attrs for t in trials if "member" in t.user_attrs]
    if not any(place["generation"] for place in places):
        return None
    return 1 + max(int(place["member"]) for place in places)


_OWN = [
    parameter
    for parameter in inspect.signature(_command, eval_str=True).parameters.values()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD
]

main = as_main(
    _command, _OWN, name="pbt", about="population-based training", without=("trials", "epochs")
)

if __name__ == "__main__":
    sys.exit(main(None))
