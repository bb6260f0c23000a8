"""Train random configurations to the end and keep their learning curves in one small file.

Multilayer perceptrons on the handwritten digits, about two minutes on a CPU::

    python -m studies.curves digits

Small networks on a part of Fashion-MNIST, about three minutes::

    python -m studies.curves small-fashion

The size for a quick look::

    python -m studies.curves digits --configs 20 --epochs 3

``python -m studies.compare_pruners`` searches in such tables. Your own objective is
``module:function`` or ``path/to/file.py:function``; it reports every epoch, from 1 on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from rich.console import Console
from rich.progress import Progress
import typer

from studies._curve_table import CurveTable
from studies._errors import SentenceCommand
from studies._errors import unknown
from studies._errors import UserError
from studies._logs import ConsoleHandler
from studies._logs import quiet_optuna
from studies._objective import find_objective


_SHORT = {
    "boundaries": "objectives.boundaries:objective",
    "digits": "objectives.digits:objective",
    "fashion": "objectives.fashion:objective",
    "mnist": "objectives.mnist:objective",
    "small-fashion": "studies._small_fashion:objective",
}

app = typer.Typer(add_completion=False)


@app.command(cls=SentenceCommand)
def main(
    target: Annotated[
        str, typer.Argument(help=f"{', '.join(_SHORT)}, module:function or file.py:function.")
    ],
    configs: Annotated[int, typer.Option(help="How many configurations.", min=1)] = 500,
    epochs: Annotated[int, typer.Option(help="How long each is trained.", min=1)] = 27,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the data sets are.", show_default="$OPTUNA_EXT_DATA")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the configurations.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The file.", show_default="runs/curves-TARGET.npz")
    ] = None,
) -> None:
    """Train random configurations to the end and keep their learning curves."""
    if target not in _SHORT and ":" not in target:
        raise unknown("objective", target, (*_SHORT, "module:function", "file.py:function"))
    objective = find_objective(_SHORT.get(target, target))
    name = target if target in _SHORT else objective.name
    path = out or Path("runs", f"curves-{name}.npz")
    if out is None:
        path.parent.mkdir(exist_ok=True)
    elif not path.parent.is_dir():
        raise UserError(f"--out {str(out)!r} is in a folder that does not exist")
    given = {"epochs": epochs, "device": device, "data_dir": data_dir and str(data_dir)}
    arguments = {n: v for n, v in given.items() if n in objective.keywords() and v is not None}
    console = Console(stderr=True)
    with (
        quiet_optuna(ConsoleHandler(console)),
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        study = optuna.create_study(
            direction=StudyDirection[objective.directions[0].upper()],
            sampler=RandomSampler(seed=seed),
            pruner=NopPruner(),
        )
        task = progress.add_task(name, total=configs)
        try:
            study.optimize(
                lambda trial: objective.function(trial, **arguments),
                n_trials=configs,
                callbacks=[lambda *_: progress.update(task, advance=1)],
            )
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
    table = CurveTable.of(study, name=name, n_epochs=epochs)
    table.save(path)
    typer.echo(f"{path}: {configs} configurations, {epochs} epochs")


if __name__ == "__main__":
    app()
