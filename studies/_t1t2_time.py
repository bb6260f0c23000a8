"""What T1-T2 costs: the time of a step over that of the same step with fixed values."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
import json
import statistics
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F

from objectives import t1t2
from objectives.nets import mlp
from objectives.nets import seeded
from objectives.training import resolve_device
from optuna_ext import T1T2
from optuna_ext.online.t1t2 import Hyperparameter
from optuna_ext.online.t1t2 import InputNoise
from optuna_ext.online.t1t2 import L2
from studies._errors import UserError
from studies._options import Options


_BATCH = 100
_T2_BATCHES = (100, 50)
_EVERY = (10, 20)
_L2, _NOISE = 1e-4, 0.3
_ROUNDS = 9
_SECONDS = 0.5  # of a round, at least
_NETS = ("small", "medium")


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Time of a step with T1-T2 over that of a step without, minus 1.

    Attributes:
        net: The network.
        tuned: ``"L2"`` or ``"L2 + noise"``.
        amp: Whether what only tuning needs is computed in bfloat16.
        every: Steps between two moves.
        t2_batch: Rows of T2 for a move.
        median: Of ratios, each of two rounds that followed each other.
        low: The first quartile.
        high: The third quartile.
    """

    net: str
    tuned: str
    amp: bool
    every: int
    t2_batch: int
    median: float
    low: float
    high: float


def overhead(options: Options, own: Mapping[str, Any]) -> int:
    """Measure the time of a step with T1-T2 over that of the same step without, in turns."""
    torch.set_num_threads(1)
    try:
        device = resolve_device(options.device or "auto")
        nets = {net: t1t2.hidden_units(net, own["width"]) for net in _NETS}
    except ValueError as error:
        raise UserError(str(error)) from error
    console = Console(stderr=True)
    cases = [
        (net, hidden, with_noise, amp)
        for net, hidden in nets.items()
        for with_noise in (False, True)
        for amp in (False, True)
    ]
    found = [
        row
        for net, hidden, with_noise, amp in track(cases, "measuring", console=console)
        for row in overheads(net, hidden, with_noise=with_noise, amp=amp, device=device)
    ]
    if options.json:
        sys.stdout.write(json.dumps([asdict(row) for row in found]) + "\n")
        return 0
    title = f"time of a step with T1-T2 over one without, batches of {_BATCH}, on {device}"
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    console.print(_table(found, title=title))
    return 0


def overheads(
    net: str,
    hidden: Sequence[int],
    *,
    with_noise: bool,
    amp: bool,
    device: torch.device,
    seconds: float = _SECONDS,
    rounds: int = _ROUNDS,
) -> Iterator[Overhead]:
    """Measure a network: CPU time on a CPU, else the time until the device has finished.

    Args:
        net: Its name.
        hidden: Its hidden units.
        with_noise: Whether input noise is tuned beside L2.
        amp: As for :class:`T1T2`.
        device: Where to measure.
        seconds: Length of a round, at least.
        rounds: How many.
    """
    plain = _fixed(hidden, with_noise=with_noise, device=device)
    n = max(_EVERY) * max(1, round(seconds / max(_EVERY) / _time(plain, 5, device) * 5))
    for every in _EVERY:
        for t2_batch in _T2_BATCHES:
            tuned = _tuned(
                hidden,
                with_noise=with_noise,
                amp=amp,
                every=every,
                t2_batch=t2_batch,
                device=device,
            )
            _time(tuned, every, device)
            ratios = []
            for i in range(rounds):  # who is first changes
                pair = (plain, tuned) if i % 2 else (tuned, plain)
                times = {step: _time(step, n, device) for step in pair}
                ratios.append(times[tuned] / times[plain] - 1)
            low, median, high = statistics.quantiles(ratios, n=4)
            yield Overhead(
                net=net,
                tuned="L2 + noise" if with_noise else "L2",
                amp=amp,
                every=every,
                t2_batch=t2_batch,
                median=median,
                low=low,
                high=high,
            )


def _rows(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, 784, generator=generator)
    y = torch.randint(10, (n,), generator=generator)
    return x.to(device), y.to(device)


def _net(hidden: Sequence[int], device: torch.device) -> nn.Module:
    with seeded(0):
        return mlp((784, *hidden, 10)).to(device)


def _fixed(hidden: Sequence[int], *, with_noise: bool, device: torch.device) -> Callable[[], None]:
    """Return a step of the loop as one writes it without a tuner."""
    model = _net(hidden, device)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": _L2}, {"params": others}]
    optimizer = torch.optim.Adam(groups)
    x, y = _rows(_BATCH, device)

    def step() -> None:
        optimizer.zero_grad()
        noisy = x + _NOISE * torch.randn_like(x) if with_noise else x
        torch.autograd.backward(F.cross_entropy(model(noisy), y))
        optimizer.step()

    return step


def _tuned(
    hidden: Sequence[int],
    *,
    with_noise: bool,
    amp: bool,
    every: int,
    t2_batch: int,
    device: torch.device,
) -> Callable[[], None]:
    """Return a step of the loop with T1-T2."""
    model = _net(hidden, device)
    hyperparameters: list[Hyperparameter] = [L2(init=_L2)]
    if with_noise:
        hyperparameters.append(InputNoise(init=_NOISE))
    optimizer = torch.optim.Adam(model.parameters())
    tuner = T1T2(model, optimizer, hyperparameters, n_steps=10_000, every=every, amp=amp)
    batch, valid_batch = _rows(_BATCH, device), _rows(t2_batch, device)

    def step() -> None:
        tuner.step(batch, valid_batch)

    return step


def _time(step: Callable[[], None], n: int, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    _finish(device)
    start = clock()
    for _ in range(n):
        step()
    _finish(device)
    return clock() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _table(rows: Sequence[Overhead], *, title: str) -> Table:
    columns = [(every, t2_batch) for every in _EVERY for t2_batch in _T2_BATCHES]
    heads = [f"every {every}, T2 {t2_batch}" for every, t2_batch in columns]
    table = Table("net", "tuned", "tuning in", *heads, title=title)
    cells = {(r.net, r.tuned, r.amp, r.every, r.t2_batch): r for r in rows}
    for net, tuned, amp in dict.fromkeys((r.net, r.tuned, r.amp) for r in rows):
        found = [cells[net, tuned, amp, *column] for column in columns]
        shown = [f"{r.median:+.1%} ({r.low:+.1%} to {r.high:+.1%})" for r in found]
        table.add_row(net, tuned, "bfloat16" if amp else "float32", *shown)
    table.caption = "median and quartiles"
    return table
