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

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
import sys
from typing import Annotated
from typing import Any

from optuna.trial import FrozenTrial
import typer

from studies._catalog import parse_assignments
from studies._command import as_main
from studies._command import run_plan
from studies._command import take_options
from studies._continuation import find_target
from studies._continuation import make_continuation_plan
from studies._continuation import run_together
from studies._continuation import Target
from studies._errors import unknown
from studies._errors import UserError
from studies._family_tree import family_tree
from studies._job import connect_to_read
from studies._job import storage_file
from studies._objective import Objective
from studies._options import Arg
from studies._plan import Plan


class Exploit(StrEnum):
    """Who is replaced."""

    TRUNCATION = "truncation"
    TOURNAMENT = "tournament"
    T_TEST = "t-test"


def _command(
    target: Target,
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
    arg: Arg = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Train the whole population as one program.")
    ] = False,
    **values: Any,
) -> int:
    options = take_options({**values, "trials": population * generations, "epochs": None})
    objective = find_target(target)
    given = {
        "population_size": population,
        "exploit": exploit.value,
        "burn_in": burn_in,
        "synchronous": not asynchronous,
        "architecture": _architecture(objective, architecture),
        "initial_population": options.sampler,
    }
    plan = make_continuation_plan(
        replace(
            options,
            sampler="pbt",
            sampler_arg=[*(f"{k}={v!r}" for k, v in given.items()), *(options.sampler_arg or [])],
        ),
        objective,
        method="pbt",
        arguments=parse_assignments("--arg", arg or []),
        given={"interval": interval},
    )
    _check_population(plan, population)
    run = run_together(plan, options, objective, slots=population) if fused else None
    plan = replace(plan, more="--generations")
    return run_plan(plan, as_json=options.json, run=run, charts={"family-tree": family_tree})


def _architecture(objective: Objective, names: Sequence[str] | None) -> list[str]:
    """Return the parameters that stay with the weights; those the user names must exist."""
    space = objective.space
    for name in names or ():
        if space is not None and name not in space:
            raise unknown("--architecture", name, space, where=f"of objective {objective.name!r}")
    published: Sequence[str] = getattr(objective.module, "ARCHITECTURE", ())
    return list(names or published)


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


main = as_main(
    _command, name="pbt", about="population-based training", without=("trials", "epochs")
)

if __name__ == "__main__":
    sys.exit(main(None))
