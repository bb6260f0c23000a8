"""What a learning rate that tunes itself costs: the time of a step over that of torch's own."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
import json
import statistics
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from objectives.nets import mlp
from objectives.nets import seeded
from objectives.training import resolve_device
from optuna_ext import HypergradientAdam
from optuna_ext import HypergradientAdamW
from optuna_ext import HypergradientSGD
from studies._errors import UserError
from studies._options import Options


_NETS: dict[str, tuple[int, ...]] = {"softmax regression": (), "784-1000-1000-10": (1000, 1000)}
_PAIRS: dict[str, tuple[Callable[..., Optimizer], Callable[..., Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, HypergradientSGD, {}),
    "SGD, momentum": (torch.optim.SGD, HypergradientSGD, {"momentum": 0.9}),
    "SGD, Nesterov": (torch.optim.SGD, HypergradientSGD, {"momentum": 0.9, "nesterov": True}),
    "Adam": (torch.optim.Adam, HypergradientAdam, {}),
    "AdamW": (torch.optim.AdamW, HypergradientAdamW, {}),
}
_BATCH, _PIXELS, _CLASSES = 128, 784, 10
_SECONDS = 0.1  # of a round
_ROUNDS = 15


@dataclass(frozen=True)
class StepTime:
    """Medians of ratios, each of two rounds that followed each other.

    Attributes:
        net: The network.
        name: The optimizer.
        step: A whole step with hypergradients over one without.
        update: The optimizer's part alone, likewise.
    """

    net: str
    name: str
    step: float
    update: float


def cost(options: Options, own: Mapping[str, Any]) -> int:
    """Measure what a training step costs with hypergradients, over torch's own optimizers."""
    del own
    torch.set_num_threads(1)
    try:
        device = resolve_device(options.device or "auto")
    except ValueError as error:
        raise UserError(str(error)) from error
    times = step_times(device)
    if options.json:
        sys.stdout.write(json.dumps([vars(each) for each in times]) + "\n")
        return 0
    clock = "CPU time" if device.type == "cpu" else "time"
    console = Console()
    console.print(
        f"[bold]{clock} over that of torch's own optimizer, foreach both; batches of {_BATCH}, "
        f"median of {_ROUNDS} rounds in turns[/bold]"
    )
    console.print(_table(times))
    return 0


def _table(times: Iterable[StepTime]) -> Table:
    shown = Table("net", "optimizer", "whole step", "update alone", box=None)
    for each in times:
        shown.add_row(each.net, each.name, f"x {each.step:.3f}", f"x {each.update:.2f}")
    return shown


def step_times(device: torch.device, *, rounds: int = _ROUNDS) -> list[StepTime]:
    """Measure, in turns: CPU time on a CPU, else the time until the device has finished."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_BATCH, _PIXELS, generator=generator).to(device)
    y = torch.randint(_CLASSES, (_BATCH,), generator=generator).to(device)
    found = []
    for net, hidden in _NETS.items():
        widths = (_PIXELS, *hidden, _CLASSES)
        for name, (make_base, make_ours, options) in _PAIRS.items():
            base = _Contestant(widths, partial(make_base, foreach=True, **options), x, y)
            # So small a step that both train alike: numbers near 0 take longer.
            ours = _Contestant(widths, partial(make_ours, hyper_lr=1e-9, **options), x, y)
            step = _ratio(ours.step, base.step, device, rounds)
            update = _ratio(ours.update, base.update, device, rounds)
            found.append(StepTime(net, name, step, update))
    return found


class _Contestant:
    """A network in training on one batch."""

    def __init__(
        self,
        widths: tuple[int, ...],
        build: Callable[..., Optimizer],
        x: torch.Tensor,
        y: torch.Tensor,
    ) -> None:
        with seeded(0):
            self.model: nn.Module = mlp(widths).to(x.device)
        self.optimizer = build(self.model.parameters(), lr=1e-4)
        self.x, self.y = x, y
        self.step()

    def step(self) -> None:
        """Make a whole step."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def update(self) -> None:
        """Make the optimizer's part of a step, with the gradients that are there."""
        self.optimizer.step()


def _ratio(
    ours: Callable[[], None], base: Callable[[], None], device: torch.device, rounds: int
) -> float:
    n = max(3, round(_SECONDS / max(_time(base, 3, device) / 3, 1e-6)))
    ratios = []
    for i in range(rounds):  # who is first changes
        times = {f: _time(f, n, device) for f in ((ours, base) if i % 2 else (base, ours))}
        ratios.append(times[ours] / times[base])
    return statistics.median(ratios)


def _time(function: Callable[[], None], n: int, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    _finish(device)
    start = clock()
    for _ in range(n):
        function()
    _finish(device)
    return clock() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
