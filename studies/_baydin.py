"""Baydin et al. (2018) on MNIST once more, and what the exponential rule makes of any start.

Softmax regression for 10 epochs of batches of 128, weight decay 1e-4, Nesterov momentum 0.9 where
there is one, from a learning rate of 1e-3, and seed 1. The loss is that of the 10,000 test images,
as there. On a CPU first weights and batches are the authors', too.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
import json
import statistics
import sys
from typing import Annotated
from typing import Any
import warnings

import plotly.graph_objects as go
from rich.console import Console
from rich.progress import track
from rich.table import Table
import torch
from torch import nn
from torch.optim import Optimizer
import typer

from objectives.data import Data
from objectives.data import load
from objectives.nets import mlp
from objectives.runs import Run
from objectives.training import Recipe
from objectives.training import resolve_device
from optuna_ext import HypergradientAdam
from optuna_ext import HypergradientSGD
from studies._errors import UserError
from studies._figures import check_figure_path
from studies._figures import write_figure
from studies._options import Options


_EPOCHS = 10
_BATCH = 128
_DECAY = 1e-4
_LR = 1e-3
_MEAN, _STD = 0.1307, 0.3081  # of the pixels
_SEED = 1
_STARTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_FIXED = tuple(float(f"{m}e{e}") for e in range(-6, -1) for m in (1, 3)) + (1e-1,)

Build = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Row:
    """A training.

    Attributes:
        name: Of the optimizer as in the paper, or of Adam's rate: ``"fixed"``, ``"tuned"``.
        seed: Of the first weights and of the order of the images.
        start: The first learning rate.
        loss: The final validation loss.
        lowest: Lowest learning rate of all steps.
        highest: Highest one.
        last: That of the last step.
    """

    name: str
    seed: int
    start: float
    loss: float
    lowest: float
    highest: float
    last: float


def published() -> dict[str, tuple[float, Build]]:
    """Return the paper's optimizers, each with the loss that the authors' repository reports."""
    sgd, adam = partial(torch.optim.SGD, lr=_LR), partial(torch.optim.Adam, lr=_LR)
    # The default steps of the additive rule are the paper's 1e-3 for SGD and 1e-7 for Adam.
    sgd_hd = partial(HypergradientSGD, lr=_LR, rule="additive")
    adam_hd = partial(HypergradientAdam, lr=_LR, rule="additive")
    return {
        "SGD": (0.37375, sgd),
        "SGD-HD": (0.28778, sgd_hd),
        "SGDN": (0.28455, partial(sgd, momentum=0.9, nesterov=True)),
        "SGDN-HD": (0.27186, partial(sgd_hd, momentum=0.9, nesterov=True)),
        "Adam": (0.27187, adam),
        "Adam-HD": (0.27233, adam_hd),
    }


def table(
    options: Options,
    own: Mapping[str, Any],
    *,
    seeds: Annotated[int, typer.Option(help="How many seeds --table averages over.", min=1)] = 1,
) -> int:
    """Reproduce the results of Baydin et al. (2018) on MNIST, and compare starts."""
    del own
    torch.set_num_threads(1)
    if options.figure is not None:
        check_figure_path(options.figure)
    try:
        device = resolve_device(options.device or "auto")
        data = images(options, device)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    seed = _SEED if options.seed is None else options.seed
    epochs = options.epochs or _EPOCHS
    runs = [*_runs(data, device=device, epochs=epochs, seeds=range(seed, seed + seeds))]
    console = Console(stderr=True)
    rows = [run() for run in track(runs, "training", console=console, transient=True)]
    if options.figure is not None:
        write_figure(starts_figure(rows, epochs=epochs), options.figure)
    if options.json:
        sys.stdout.write(json.dumps([vars(row) for row in rows]) + "\n")
        return 0
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(f"[bold]MNIST, softmax regression, {epochs} epochs: validation loss[/bold]")
    console.print(_published_table(rows, seed=seed))
    console.print("\n[bold]Adam from any start[/bold]")
    console.print(_starts_table(rows))
    return 0


def images(options: Options, device: torch.device) -> Data:
    """Return MNIST as in the paper: 60,000 images to train, 10,000 to validate, whitened."""
    mnist = load("mnist", device=device, data_dir=options.data_dir)
    x = torch.cat([mnist.train_x, mnist.valid_x]).sub_(_MEAN).div_(_STD)
    y = torch.cat([mnist.train_y, mnist.valid_y])
    test_x = (mnist.test_x - _MEAN) / _STD
    return Data(
        train_x=x,
        train_y=y,
        valid_x=test_x,
        valid_y=mnist.test_y,
        test_x=test_x,
        test_y=mnist.test_y,
    )


def _runs(
    data: Data, *, device: torch.device, epochs: int, seeds: Iterable[int]
) -> Iterator[Callable[[], Row]]:
    for seed in seeds:
        train = partial(train_one, data, device=device, epochs=epochs, seed=seed)
        for name, (_, build) in published().items():
            yield partial(train, build, name=name)
        for lr in _STARTS:
            yield partial(train, partial(HypergradientAdam, lr=lr), name="tuned")
        for lr in _FIXED:
            yield partial(train, partial(torch.optim.Adam, lr=lr), name="fixed")


def train_one(
    data: Data,
    build: Callable[..., Optimizer],
    *,
    name: str,
    device: torch.device,
    epochs: int,
    seed: int,
) -> Row:
    """Train softmax regression; an additive rate that is held at 0 is no news here."""

    def model(generator: torch.Generator) -> nn.Module:
        net = mlp((data.train_x.shape[1], 10))
        # The authors drew weights and orders from one generator, after the weights an order to
        # look at the loss of one batch.
        if device.type == "cpu":
            generator.set_state(torch.get_rng_state())
            torch.randperm(len(data.train_x), generator=generator)
        return net

    recipe = Recipe(
        model=model,
        optimizer=lambda weights: build(weights, weight_decay=_DECAY),
        batch_size=_BATCH,
        recorded=True,
    )
    run = Run(recipe, data, device=device, seed=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The learning rate of .* is held at 0")
        for _ in range(epochs):
            run.train_epoch()
    rates = [values["lr"] for _, values in run.recorder.schedule] if run.recorder else []
    return Row(
        name=name,
        seed=seed,
        start=rates[0],
        loss=run.evaluate("valid").loss,
        lowest=min(rates),
        highest=max(rates),
        last=rates[-1],
    )


def starts_figure(rows: Sequence[Row], *, epochs: int) -> go.Figure:
    """Draw the loss over the first learning rate, of a tuned rate and of a fixed one."""
    figure = go.Figure()
    for name, title, color in (
        ("fixed", "fixed", "#D55E00"),
        ("tuned", "tunes itself", "#0072B2"),
    ):
        losses = mean_losses(rows, name)
        figure.add_scatter(
            x=[*losses], y=[*losses.values()], name=title, line_color=color, mode="lines+markers"
        )
    figure.update_xaxes(title="first learning rate", type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title=f"validation loss after {epochs} epochs", type="log")
    return figure.update_layout(
        template="plotly_white", title="Adam on MNIST, softmax regression: where to begin"
    )


def _published_table(rows: Iterable[Row], *, seed: int) -> Table:
    heads = ("published", f"seed {seed}", "difference", "mean", "standard deviation", "rates")
    shown = Table("", *heads, box=None)
    for name, (loss, _) in published().items():
        some = [row for row in rows if row.name == name]
        losses = [row.loss for row in some]
        shown.add_row(
            name,
            f"{loss:.4f}",
            f"{losses[0]:.4f}",
            f"{losses[0] - loss:+.4f}",
            f"{statistics.mean(losses):.4f}",
            f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else "",
            f"{min(row.lowest for row in some):.2g} to {max(row.highest for row in some):.2g}",
        )
    return shown


def _starts_table(rows: Sequence[Row]) -> Table:
    fixed = mean_losses(rows, "fixed")
    best = min(fixed, key=lambda start: fixed[start])
    to_best = f"to the best fixed ({best:g}: {fixed[best]:.4f})"
    shown = Table("from", "fixed", "tunes itself", to_best, "lowest", "last", box=None)
    for start, loss in mean_losses(rows, "tuned").items():
        some = [row for row in rows if (row.name, row.start) == ("tuned", start)]
        shown.add_row(
            f"{start:g}",
            f"{fixed[start]:.4f}",
            f"{loss:.4f}",
            f"{loss / fixed[best] - 1:+.1%}",
            f"{min(row.lowest for row in some):.2g}",
            f"{statistics.mean(row.last for row in some):.2g}",
        )
    return shown


def mean_losses(rows: Iterable[Row], name: str) -> dict[float, float]:
    """Return the loss from each start, mean over the seeds."""
    losses: dict[float, list[float]] = {}
    for row in rows:
        if row.name == name:
            losses.setdefault(row.start, []).append(row.loss)
    return {start: statistics.mean(some) for start, some in losses.items()}
