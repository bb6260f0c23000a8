"""The command of a study: check everything, run it, say what came out."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
from dataclasses import fields
from dataclasses import replace
from functools import partial
import inspect
import re
import sys
import time
from types import ModuleType
from types import SimpleNamespace
from typing import Annotated
from typing import Any
from typing import get_type_hints

from rich.console import Console
import typer

from studies._charts import Draw
from studies._charts import save_charts
from studies._errors import mistakes_in_a_sentence
from studies._errors import SentenceCommand
from studies._errors import UserError
from studies._handover import take_over
from studies._interrupt import Interrupt
from studies._job import Job
from studies._logs import ConsoleHandler
from studies._logs import quiet_optuna
from studies._objective import find_objective
from studies._objective import Objective
from studies._options import option_parameters
from studies._options import Options
from studies._outage import damage_in_a_sentence
from studies._outage import outage_in_a_sentence
from studies._outage import tolerant
from studies._plan import design_size
from studies._plan import make_plan
from studies._plan import open_study
from studies._plan import Plan
from studies._progress import failure_reason
from studies._progress import StudyProgress
from studies._ray import RayCluster
from studies._report import print_summary
from studies._report import save_figure
from studies._report import summarize
from studies._report import to_json
from studies._runner import run_trials
from studies._tickets import Tickets
from studies._workers import Launched
from studies._workers import LocalProcess
from studies._workers import run_workers


Main = Callable[[Sequence[str] | None], int]


def study_command(
    module: ModuleType,
    *,
    data: Callable[[Mapping[str, Any]], str] | None = None,
    instead: Mapping[str, Callable[..., int]] | None = None,
    charts: Mapping[str, Draw] | None = None,
) -> Main:
    """Return the ``main`` of a study of one of our objectives.

    The objective's own keywords become flags beside the shared ones.

    Args:
        module: A module of ``objectives``.
        data: Names the data set for the objective's own arguments, so that missing data are
            noticed before a study is created.
        instead: Commands that run in place of a study when the flag of their name is given. They
            take the shared flags and the objective's own; their docstring is the flag's help, and
            keywords of theirs are flags, too.
        charts: Of a study that has run, as for ``run_plan``.
    """
    objective = find_objective(f"{module.__name__}:objective")
    others = instead or {}
    theirs = {
        name: [p for p in _parameters(other) if p.kind is p.KEYWORD_ONLY]
        for name, other in others.items()
    }

    def command(**values: Any) -> int:
        options = take_options(values)
        chosen = [name for name in others if values.pop(name)][:1]
        given = {
            name: _taken(values, theirs[name], command=name, is_chosen=name in chosen)
            for name in others
        }
        for name in chosen:
            return others[name](options, values, **given[name])
        plan = make_plan(options, objective, arguments=values, directions=objective.directions)
        objective.rehearse(plan.job.arguments)
        if data is not None:
            from objectives.data import load

            with mistakes_in_a_sentence():
                load(data(values), data_dir=options.data_dir)
        return run_plan(plan, as_json=options.json, charts=charts)

    flags = [_flag(name, help=inspect.getdoc(other)) for name, other in others.items()]
    more = [parameter for parameters in theirs.values() for parameter in parameters]
    return as_main(command, [*_own_options(objective, module), *flags, *more], name=objective.name)


def as_main(
    command: Callable[..., int],
    more: Sequence[inspect.Parameter] = (),
    *,
    name: str,
    about: str | None = None,
    without: Collection[str] = (),
) -> Main:
    """Return a ``main(argv)`` that reads the command's parameters and the shared flags.

    Args:
        command: Takes its own, which typer reads, and all others as keywords; returns the exit
            code.
        more: Parameters that its signature does not name.
        name: Of the study's module.
        about: What the help says that it optimizes; its name by default.
        without: Shared flags that make no sense there.
    """

    def callback(**values: Any) -> int:
        with outage_in_a_sentence():
            return command(**values)

    shared = [p for p in option_parameters() if p.name not in without]
    signature = inspect.Signature([*_parameters(command), *more, *shared])
    callback.__signature__ = signature  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    about = f"Run a study of {about or name}; the same command goes on with it."
    app.command(help=about, cls=SentenceCommand)(callback)
    program = typer.main.get_command(app)

    def main(argv: Sequence[str] | None = None) -> int:
        code: int = program.main(
            args=sys.argv[1:] if argv is None else list(argv),
            prog_name=f"python -m studies.{name}",
            standalone_mode=False,
        )
        return code

    return main


def run_plan(
    plan: Plan,
    *,
    as_json: bool,
    run: Callable[..., bool] | None = None,
    charts: Mapping[str, Draw] | None = None,
) -> int:
    """Run a study and print what it found; return the exit code.

    Args:
        plan: What to run.
        as_json: Whether to print JSON and nothing else.
        run: Runs the trials, instead of one after another in each process; returns whether any
            worker lived to the end.
        charts: Charts of a study that has run, by name: each a page beside the study's figure and
            a panel of the dashboard.
    """
    errors = Console(stderr=True)
    interrupt = Interrupt()
    with (
        interrupt.listening(),
        quiet_optuna(ConsoleHandler(errors)),
        damage_in_a_sentence(plan.job.storage),
    ):
        study, storage = open_study(plan)
        job = replace(
            plan.job,
            design_size=design_size(study),
            stream=1024 * len(study.get_trials(deepcopy=False)),
            deadline=None if plan.timeout is None else time.time() + plan.timeout,
        )
        tickets = Tickets(
            study, storage, location=job.storage, total=job.trials, retries=job.retries
        )
        tickets.fail_orphans()
        if run is None:
            take_over(study, job, tickets)
        # What an objective prints must not end up in the JSON.
        quiet = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        with quiet, StudyProgress(study, total=job.trials, console=errors) as progress:
            if progress.n_before >= job.trials:
                progress.say(
                    f"study {job.study!r} has its {job.trials} trials already: give it more with "
                    f"{plan.more}, or start another one with --study"
                )
            is_alive = (run or _run)(
                plan, job, interrupt=interrupt, progress=progress, tickets=tickets
            )
        summary = summarize(study, location=job.storage)
        try:
            if plan.figure is not None and save_figure(study, plan.figure):
                summary["figure"] = str(plan.figure)
            if charts is not None:
                summary["charts"] = save_charts(study, charts, beside=plan.figure)
        except OSError as error:  # the disk is full, say; what was found is told all the same
            errors.print(f"warning: no figure: {error}", markup=False, soft_wrap=True)
        if as_json:
            sys.stdout.write(to_json(summary) + "\n")
        else:
            print_summary(summary, Console())
    if interrupt.signum is None and progress.n_new and len(progress.failures) == progress.n_new:
        reason = failure_reason(progress.failures[-1])
        sys.stderr.write(f"error: every trial failed, the last one with {reason}\n")
        return 1
    if not is_alive:
        sys.stderr.write("error: every worker died too often: the same command goes on\n")
        return 1
    return interrupt.exit_code


def _run(
    plan: Plan, job: Job, *, interrupt: Interrupt, progress: StudyProgress, tickets: Tickets
) -> bool:
    """Run the trials; return whether any worker lived to the end."""
    jobs = [
        job if device is None else replace(job, arguments={**job.arguments, "device": device})
        for device in plan.devices
    ]
    if len(jobs) == 1 and plan.ray is None:
        run_trials(jobs[0], interrupt=interrupt, after_trial=progress.update)
        return True
    with _launcher(plan, n_workers=len(jobs), say=progress.say) as launch:
        return run_workers(
            jobs,
            launch=launch,
            interrupt=interrupt,
            say=progress.say,
            look=tolerant(progress.update),
            after_death=tolerant(tickets.fail_orphans),
            n_done=lambda: progress.n_done,
        )


@contextlib.contextmanager
def _launcher(
    plan: Plan, *, n_workers: int, say: Callable[[str], None]
) -> Iterator[Callable[[Job, str], Launched]]:
    """Give what starts a worker, here or on a Ray cluster."""
    if plan.ray is None:
        yield partial(LocalProcess, n_workers=n_workers, say=say)
        return
    cluster = RayCluster(plan.ray, gpus=plan.gpus)
    try:
        yield cluster.launch
    finally:
        cluster.close()


def take_options(values: dict[str, Any]) -> Options:
    """Move the shared flags out of ``values``."""
    return Options(**{field.name: values.pop(field.name) for field in fields(Options)})


def _own_options(objective: Objective, module: ModuleType) -> list[inspect.Parameter]:
    """Make flags of the keywords that only this objective has."""
    parameters = []
    for name, parameter in objective.own_keywords().items():
        annotated = SimpleNamespace(__annotations__={name: parameter.annotation})
        kind = get_type_hints(annotated, globalns=vars(module))[name]
        option = typer.Option(help=_argument_doc(objective.function, name))
        parameters.append(
            parameter.replace(
                kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option]
            )
        )
    return parameters


def _parameters(command: Callable[..., int]) -> list[inspect.Parameter]:
    """Give the parameters that a command names, as typer reads them."""
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    return [p for p in parameters if p.kind is not p.VAR_KEYWORD]


def _taken(
    values: dict[str, Any],
    keywords: Sequence[inspect.Parameter],
    *,
    command: str,
    is_chosen: bool,
) -> dict[str, Any]:
    """Move the keywords of a command out of ``values``; those of others must not be given."""
    taken = {keyword.name: values.pop(keyword.name) for keyword in keywords}
    for keyword in keywords:
        if not is_chosen and taken[keyword.name] != keyword.default:
            raise UserError(f"--{keyword.name} needs --{command}")
    return taken


def _flag(name: str, *, help: str | None) -> inspect.Parameter:
    """Make a flag that is off by default."""
    option = typer.Option(f"--{name}", help=help)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )


def _argument_doc(function: Callable[..., Any], name: str) -> str:
    """Return what the docstring says about an argument."""
    found = re.search(rf"\n +{name}:\n((?: {{8}}.*\n)+)", inspect.getdoc(function) or "")
    return " ".join(found[1].replace("`", "").split()) if found else ""
