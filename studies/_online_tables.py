"""What the studies of the online tuners measure instead of searching."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from functools import partial
import statistics
import time
from typing import Any

from rich.console import Console
from rich.table import Table
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim import Optimizer
from torch.optim import SGD

from objectives.data import load
from objectives.nets import boundary_net
from objectives.nets import lenet
from objectives.nets import mlp
from objectives.nets import seeded
from objectives.training import resolve_device
from optuna_ext import HypergradientAdam
from optuna_ext import HypergradientSGD
from studies._options import Options


Make = Callable[[Iterable[Tensor]], Optimizer]
_DECAY: dict[str, Any] = {"weight_decay": 1e-4}
_NESTEROV: dict[str, Any] = {"momentum": 0.9, "nesterov": True, **_DECAY}

# Final losses published by Baydin et al. (2018): logistic regression on MNIST, 10 epochs.
_PUBLISHED: dict[str, tuple[float, Make]] = {
    "SGD": (0.37375, lambda p: SGD(p, 1e-3, **_DECAY)),
    "SGD-HD": (0.28778, lambda p: HypergradientSGD(p, 1e-3, rule="additive", **_DECAY)),
    "SGDN": (0.28455, lambda p: SGD(p, 1e-3, **_NESTEROV)),
    "SGDN-HD": (0.27186, lambda p: HypergradientSGD(p, 1e-3, rule="additive", **_NESTEROV)),
    "Adam": (0.27187, lambda p: Adam(p, 1e-3, **_DECAY)),
    "Adam-HD": (0.27233, lambda p: HypergradientAdam(p, 1e-3, rule="additive", **_DECAY)),
}
_STARTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_AUTO_TUNE_STEPS = 350


def published(options: Options, own: Mapping[str, Any]) -> int:
    """Repeat the logistic regression of Baydin et al. and print it beside their numbers."""
    del own
    rows = _mnist(options)
    table = Table("optimizer", "published", "measured", "difference")
    for name, (loss, make) in _PUBLISHED.items():
        measured = _logistic_regression(rows, make, options)
        table.add_row(name, f"{loss:.4f}", f"{measured:.4f}", f"{measured - loss:+.4f}")
    _print("loss on MNIST's test images, logistic regression", table)
    return 0


def starts(options: Options, own: Mapping[str, Any]) -> int:
    """Start Adam from learning rates between 1e-6 and 1e-1, fixed and tuned."""
    del own
    rows = _mnist(options)
    table = Table("first rate", "fixed", "tuned")
    for lr in _STARTS:
        makers: tuple[Make, Make] = (
            partial(Adam, lr=lr, **_DECAY),
            partial(HypergradientAdam, lr=lr, **_DECAY),
        )
        fixed, tuned = (_logistic_regression(rows, make, options) for make in makers)
        table.add_row(f"{lr:.0e}", f"{fixed:.4f}", f"{tuned:.4f}")
    _print("loss on MNIST's test images, logistic regression", table)
    return 0


def cases(options: Options, own: Mapping[str, Any]) -> int:
    """Train the six cases of Auto-Tune from a rate of 1e-3 and print the test accuracies."""
    del own
    seeds = range(options.seed or 0, (options.seed or 0) + 10)
    makers: dict[str, Make] = {
        "Adam": lambda p: Adam(p, 1e-3),
        "additive": lambda p: HypergradientAdam(p, 1e-3, rule="additive", hyper_lr=1e-3),
        "exponential": lambda p: HypergradientAdam(p, 1e-3),
    }
    table = Table("data set", "network", *(f"{name}: median (least)" for name in makers))
    for dataset in (1, 2, 3):
        for net in ("simple", "three-layer"):
            cells = []
            for make in makers.values():
                found = [_boundary_accuracy(dataset, net, make, seed) for seed in seeds]
                cells.append(f"{statistics.median(found):.4f} ({min(found):.4f})")
            table.add_row(str(dataset), net, *cells)
    _print(
        f"accuracy on the test points after {_AUTO_TUNE_STEPS} steps, {len(seeds)} seeds", table
    )
    return 0


def cost(options: Options, own: Mapping[str, Any]) -> int:
    """Print the CPU time of a training step over that of torch's own optimizer."""
    del own
    torch.set_num_threads(1)
    nets: dict[str, Callable[[], nn.Module]] = {
        "784-10": lambda: mlp((784, 10)),
        "LeNet-5": lenet,
        "784-1000-1000-10": lambda: mlp((784, 1000, 1000, 10)),
    }
    kinds: dict[str, tuple[Make, Make]] = {
        "SGD, momentum": (
            lambda p: SGD(p, 1e-6, momentum=0.9, foreach=True),
            lambda p: HypergradientSGD(p, 1e-6, momentum=0.9),
        ),
        "Adam": (lambda p: Adam(p, 1e-6, foreach=True), lambda p: HypergradientAdam(p, 1e-6)),
    }
    table = Table("optimizer", *(f"{net}, batch {batch}" for net in nets for batch in (128, 512)))
    for name, pair in kinds.items():
        cells = [
            f"{_step_ratio(net, pair, batch=batch):.2f}"
            for net in nets.values()
            for batch in (128, 512)
        ]
        table.add_row(name, *cells)
    _print("time of a training step over torch's foreach optimizer's, median of 15 pairs", table)
    return 0


def _mnist(options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return all training images and the test images, standardized as published."""
    data = load(
        "mnist", device=resolve_device(options.device or "auto"), data_dir=options.data_dir
    )
    x, y = torch.cat([data.train_x, data.valid_x]), torch.cat([data.train_y, data.valid_y])
    return (x - 0.1307) / 0.3081, y, (data.test_x - 0.1307) / 0.3081, data.test_y


def _logistic_regression(
    rows: tuple[Tensor, Tensor, Tensor, Tensor], make: Make, options: Options
) -> float:
    x, y, test_x, test_y = rows
    seed = options.seed if options.seed is not None else 1
    with seeded(seed):  # weights and order from one stream, as published
        model = mlp((784, 10)).to(x.device)
        optimizer = make(model.parameters())
        for _ in range(options.epochs or 10):
            for part in torch.split(torch.randperm(len(x)).to(x.device), 128):
                _train_step(model, optimizer, x[part], y[part])
    with torch.no_grad():
        return F.cross_entropy(model(test_x), test_y).item()


def _train_step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(F.cross_entropy(model(x), y))
    optimizer.step()


def _boundary_accuracy(dataset: int, net: str, make: Make, seed: int) -> float:
    data = load(f"boundaries-{dataset}")
    with seeded(seed):
        model = boundary_net(net)
    optimizer = make(model.parameters())
    targets = data.train_y.float()
    for _ in range(_AUTO_TUNE_STEPS):
        optimizer.zero_grad()
        outputs = model(data.train_x)[:, 0]
        torch.autograd.backward(F.binary_cross_entropy_with_logits(outputs, targets))
        optimizer.step()
    with torch.no_grad():
        right = (model(data.test_x)[:, 0] > 0) == data.test_y
    return float(right.double().mean())


def _step_ratio(net: Callable[[], nn.Module], pair: tuple[Make, Make], *, batch: int) -> float:
    """Train both alternately, so that what else the machine does hits both."""
    x, y = torch.randn(batch, 784), torch.randint(10, (batch,))
    with seeded(0):
        models = [net() for _ in pair]
    optimizers = [make(model.parameters()) for make, model in zip(pair, models, strict=True)]
    ratios = []
    for _ in range(15):
        seconds = []
        for model, optimizer in zip(models, optimizers, strict=True):
            _train_step(model, optimizer, x, y)  # its weights are in the cache again
            started = time.process_time()
            for _ in range(3):
                _train_step(model, optimizer, x, y)
            seconds.append(time.process_time() - started)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def _print(title: str, table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(f"[bold]{title}[/bold]")
    console.print(table)
