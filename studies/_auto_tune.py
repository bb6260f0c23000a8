"""The six cases of Auto-Tune (Jacobson & Gonzalez 2020), corrected, with hypergradients.

Three data sets and two networks, 350 steps on all points at once, from a learning rate of 1e-3;
see ``objectives.boundaries`` for what was corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
import json
import sys
from typing import Any
import warnings

from rich.console import Console
from rich.progress import track
from rich.table import Table
import torch
from torch.optim import Optimizer

from objectives.data import load
from objectives.nets import boundary_net
from objectives.runs import Run
from objectives.training import Recipe
from objectives.training import resolve_device
from optuna_ext import HypergradientAdam
from studies._errors import UserError
from studies._options import Options
from studies._pbt_quality import Case
from studies._pbt_quality import CASES
from studies._pbt_quality import STEPS


_SEEDS = 4
_GOAL = 0.99  # training accuracy, to which iterations are counted
_LOOK_EVERY = 10  # steps, as in the paper
_LR = 1e-3

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "Adam": partial(torch.optim.Adam, lr=_LR),
    "additive, as there": partial(HypergradientAdam, lr=_LR, rule="additive", hyper_lr=1e-3),
    "exponential": partial(HypergradientAdam, lr=_LR),
}


@dataclass(frozen=True)
class Result:
    """A training.

    Attributes:
        case: What was trained.
        optimizer: A key of ``OPTIMIZERS``.
        seed: Of the first weights.
        train: Final accuracy on the 8,000 training points.
        test: Final accuracy on the 2,000 test points.
        to_goal: Steps to 99% of the training points; None if it was not reached.
        last_rate: The last learning rate.
    """

    case: Case
    optimizer: str
    seed: int
    train: float
    test: float
    to_goal: int | None
    last_rate: float


def cases(options: Options, own: Mapping[str, Any]) -> int:
    """Train the six corrected cases of Auto-Tune from a learning rate of 1e-3, 4 seeds each."""
    del own
    try:
        device = resolve_device(options.device or "cpu")  # 13 weights are slower on a GPU
    except ValueError as error:
        raise UserError(str(error)) from error
    todo = [(c, o, s) for c in CASES for o in OPTIMIZERS for s in range(_SEEDS)]
    console = Console(stderr=True)
    results = [
        train_one(*what, device=device)
        for what in track(todo, "training", console=console, transient=True)
    ]
    if options.json:
        plain = [{**vars(result), "case": vars(result.case)} for result in results]
        sys.stdout.write(json.dumps(plain) + "\n")
    else:
        _print(results)
    return 0


def train_one(case: Case, optimizer: str, seed: int, *, device: torch.device) -> Result:
    """Train a network of one of the cases."""
    data = load(f"boundaries-{case.dataset}", device=device)
    recipe = Recipe(
        model=lambda _: boundary_net(case.net),
        optimizer=OPTIMIZERS[optimizer],
        batch_size=None,
        passes_per_epoch=_LOOK_EVERY,
    )
    run = Run(recipe, data, device=device, seed=seed)
    to_goal = 0 if run.evaluate("train").accuracy >= _GOAL else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The learning rate of .* is held at 0")
        for step in range(_LOOK_EVERY, STEPS + 1, _LOOK_EVERY):
            run.train_epoch()
            train = run.evaluate("train").accuracy
            if to_goal is None and train >= _GOAL:
                to_goal = step
    return Result(
        case=case,
        optimizer=optimizer,
        seed=seed,
        train=train,
        test=run.evaluate("test").accuracy,
        to_goal=to_goal,
        last_rate=run.optimizer.param_groups[0]["lr"],
    )


def _print(results: Sequence[Result]) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(
        f"[bold]{STEPS} steps, {_SEEDS} seeds: test accuracy, lowest to highest; steps to "
        f"{_GOAL:.0%} of the training points[/bold]\n"
        "Auto-Tune reports 100% in fewer than 25 steps for the additive rule, in every case."
    )
    shown = Table("data", "net", "optimizer", "accuracy", "steps", "last rate", box=None)
    for case in CASES:
        for name in OPTIMIZERS:
            some = [r for r in results if (r.case, r.optimizer) == (case, name)]
            tests, rates = [r.test for r in some], [r.last_rate for r in some]
            steps = [r.to_goal for r in some]
            shown.add_row(
                str(case.dataset),
                case.net,
                name,
                f"{min(tests):.4f} to {max(tests):.4f}",
                ", ".join("never" if n is None else str(n) for n in steps),
                f"{min(rates):.2g} to {max(rates):.2g}",
                end_section=name == [*OPTIMIZERS][-1],
            )
    console.print(shown)
