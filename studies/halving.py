"""Successive halving that pauses and promotes, of one of our objectives or of your own.

Multilayer perceptrons on the handwritten digits, 64 trials of 27 epochs at most, under a minute
on a CPU::

    python -m studies.halving digits

Hyperband, and MNIST on two GPUs::

    python -m studies.halving mnist --hyperband --epochs 9 --amp --devices cuda:0,cuda:1

Eight trials at a time as one program::

    python -m studies.halving boundaries --fused

The size for a quick look::

    python -m studies.halving digits --study quick --epochs 4 --trials 12

Each promotion is a trial of the study; ``--plan`` prints what to expect and trains nothing. The
same command goes on with a study that was stopped or killed. Your own objective is
``module:function`` or ``path/to/file.py:function`` and takes ``epochs``, and ``checkpoints``,
where to find the weights of the trial it goes on from; see ``optuna_ext.CheckpointStore``.
``--sampler`` proposes new parameters, ``--sampler-arg`` reaches every option of
``SuccessiveHalving`` and ``Hyperband``.
"""

from __future__ import annotations

from dataclasses import replace
import sys
from typing import Annotated
from typing import Any

import typer

from optuna_ext import Hyperband
from optuna_ext import SuccessiveHalving
from studies._catalog import parse_assignments
from studies._command import as_main
from studies._command import run_plan
from studies._command import take_options
from studies._continuation import find_target
from studies._continuation import make_continuation_plan
from studies._continuation import run_together
from studies._continuation import Target
from studies._errors import UserError
from studies._options import Arg
from studies._survival import survival_chart


_EPOCHS = 27
_SLOTS = 8  # what begins before anybody has reached a rung is not promoted


def _command(
    target: Target,
    *,
    eta: Annotated[int, typer.Option(help="One trial in this many is promoted.", min=2)] = 2,
    min_epochs: Annotated[
        int | None, typer.Option(help="Epochs to the first rung. (default: early)", min=1)
    ] = None,
    hyperband: Annotated[
        bool, typer.Option("--hyperband", help="Several brackets with different first rungs.")
    ] = False,
    synchronous: Annotated[
        bool, typer.Option("--synchronous", help="Promote when a whole round is there.")
    ] = False,
    show_plan: Annotated[
        bool, typer.Option("--plan", help="Only print the rungs and what they cost.")
    ] = False,
    arg: Arg = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Train several trials at once as one program.")
    ] = False,
    slots: Annotated[int, typer.Option(help="How many, with --fused.", min=1)] = _SLOTS,
    **values: Any,
) -> int:
    if slots != _SLOTS and not fused:
        raise UserError("--slots needs --fused")
    options = take_options(values)
    objective = find_target(target)
    epochs = options.epochs or _EPOCHS
    given: dict[str, Any] = {"max_resource": epochs, "reduction_factor": eta}
    if min_epochs is not None:
        if min_epochs > epochs:
            raise UserError(f"--min-epochs {min_epochs} must not exceed --epochs {epochs}")
        given["min_resource"] = min_epochs
    if show_plan:
        given |= parse_assignments("--sampler-arg", options.sampler_arg or [])
        return _show(given, hyperband=hyperband)
    given |= {"synchronous": synchronous, "base_sampler": options.sampler}
    method = "hyperband" if hyperband else "halving"
    plan = make_continuation_plan(
        replace(
            options,
            epochs=epochs,
            sampler=method,
            sampler_arg=[*(f"{k}={v!r}" for k, v in given.items()), *(options.sampler_arg or [])],
        ),
        objective,
        method=method,
        arguments=parse_assignments("--arg", arg or []),
    )
    run = run_together(plan, options, objective, slots=slots) if fused else None
    return run_plan(plan, as_json=options.json, run=run, charts={"survival": survival_chart})


def _show(arguments: dict[str, Any], *, hyperband: bool) -> int:
    try:
        pair = Hyperband(**arguments) if hyperband else SuccessiveHalving(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    typer.echo(pair.plan)
    return 0


main = as_main(_command, name="halving", about="successive halving")

if __name__ == "__main__":
    sys.exit(main(None))
