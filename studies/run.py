"""Your own objective, ``objective(trial) -> float``, from a module or a file.

::

    python -m studies.run my_package.training:objective --trials 50
    python -m studies.run path/to/train.py:objective --sampler tpe --pruner hyperband

A size for a quick look, with an objective of this project on a CPU::

    python -m studies.run objectives.digits:objective --trials 8 --epochs 3 --device cpu

The function may take keyword arguments: ``epochs``, ``device``, ``data_dir``, ``seed``, ``amp``
and ``compile`` are given when their flags are, others with ``--arg name=value``. Its module may
publish ``DIRECTION``, ``SPACE`` and ``DEFAULTS``, as those of ``objectives`` do. An objective
with several values needs a ``--direction`` for each.
"""

from __future__ import annotations

from enum import StrEnum
import sys
from typing import Annotated
from typing import Any

import typer

from studies._catalog import parse_assignments
from studies._command import as_main
from studies._command import run_plan
from studies._command import take_options
from studies._objective import find_objective
from studies._options import Arg
from studies._plan import make_plan


class Direction(StrEnum):
    """Whether a value shall be small or large."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


def _command(
    target: Annotated[str, typer.Argument(help="module:function or path/to/file.py:function.")],
    *,
    direction: Annotated[
        list[Direction] | None,
        typer.Option(help="Once per value. (default: the module's DIRECTION, or minimize)"),
    ] = None,
    arg: Arg = None,
    **values: Any,
) -> int:
    options = take_options(values)
    objective = find_objective(target)
    plan = make_plan(
        options,
        objective,
        arguments=parse_assignments("--arg", arg or []),
        directions=[d.value for d in direction or []] or objective.directions,
    )
    return run_plan(plan, as_json=options.json)


main = as_main(_command, name="run", about="your own objective")

if __name__ == "__main__":
    sys.exit(main(None))
