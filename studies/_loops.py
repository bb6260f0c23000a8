"""Workloads of the benchmark of fused training, and how one trains them one by one."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
import itertools
import math
import time

import optuna
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from objectives.nets import boundary_net
from objectives.nets import BOUNDARY_WIDTHS
from objectives.nets import lenet
from objectives.nets import mlp
from objectives.nets import seeded
from optuna_ext.fused import Member
from optuna_ext.fused import Population
from optuna_ext.fused import Problem


N_ROWS, BATCH, EPOCHS = 10_000, 256, 10


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Networks of one kind, to take steps with.

    Args:
        name: What it is called.
        model: Builds a network.
        adam: Whether to train by Adam, else by SGD with momentum.
        x: Inputs.
        y: Classes.
        batch: Rows per step.
        slots: How many networks train together.
    """

    name: str
    model: Callable[[], nn.Module]
    adam: bool
    x: Tensor
    y: Tensor
    batch: int
    slots: int

    def optimizer(self, parameters: Iterable[nn.Parameter], *, fused: bool) -> Optimizer:
        """Build the optimizer, by torch's fused kernels or as torch does by default."""
        how = True if fused else None
        if self.adam:
            return torch.optim.Adam(parameters, lr=1e-3, fused=how)
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, fused=how)

    def seconds_of_loader(self, steps: int) -> float:
        """Train one network with a DataLoader; return the CPU seconds per step."""
        net, optimizer = self._start(fused=False)
        device = self.x.device
        # From the memory of the CPU, as one does: one by one from a GPU is far slower.
        rows = TensorDataset(self.x.cpu(), self.y.cpu())
        loader = DataLoader(rows, batch_size=self.batch, shuffle=True)
        batches = itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps)
        moved = ((x.to(device), y.to(device)) for x, y in batches)
        return self._train(net, optimizer, moved, steps)

    def seconds_of_loop(self, steps: int, *, fused: bool) -> float:
        """Train one network by slices of the tensors; return the CPU seconds per step."""
        net, optimizer = self._start(fused=fused)
        n, device = len(self.x), self.x.device
        orders = (torch.randperm(n, device=device) for _ in itertools.count())
        rows = (torch.split(order, self.batch) for order in orders)
        chosen = itertools.islice(itertools.chain.from_iterable(rows), steps)
        return self._train(net, optimizer, ((self.x[r], self.y[r]) for r in chosen), steps)

    def _start(self, *, fused: bool) -> tuple[nn.Module, Optimizer]:
        with seeded(0):
            net = self.model().to(self.x.device)
        return net, self.optimizer(net.parameters(), fused=fused)

    def _train(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        batches: Iterable[tuple[Tensor, Tensor]],
        steps: int,
    ) -> float:
        started = clock(self.x.device)
        for x, y in batches:
            optimizer.zero_grad()
            losses(net(x), y).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return (clock(self.x.device) - started) / steps

    def population(self, *, engine: str) -> Population:
        """Fill a population, to be trained by an engine or by what is best ``"compiled"``."""
        members = []
        for seed in range(self.slots):
            with seeded(seed):
                net = self.model()
            optimizer = self.optimizer(net.parameters(), fused=False)
            members.append(
                Member(model=net, optimizer=optimizer, batch_size=self.batch, seed=seed)
            )
        population = Population(
            members[0],
            slots=self.slots,
            loss=losses,
            device=self.x.device,
            engine="auto" if engine == "compiled" else engine,
            compile=engine == "compiled",
        )
        for slot, member in enumerate(members):
            population.admit(slot, member)
        return population

    def seconds_together(self, population: Population) -> float:
        """Train a population for an epoch; return the CPU seconds per step and network."""
        started = clock(self.x.device)
        population.train_epoch(self.x, self.y)
        steps = -(-len(self.x) // self.batch)
        return (clock(self.x.device) - started) / steps / self.slots


def workloads(device: torch.device) -> list[Workload]:
    """Return what the benchmark takes steps with."""

    def of(
        name: str, model: Callable[[], nn.Module], inputs: int, *, adam: bool, slots: int
    ) -> Workload:
        batch = BATCH if inputs == 2 else 32 if name.startswith("small") else 64
        n = 16 * batch if inputs == 2 else 8 * batch
        x, y = points(n, inputs=inputs, classes=2 if inputs == 2 else 10)
        return Workload(
            name=name,
            model=model,
            adam=adam,
            x=x.to(device),
            y=y.to(device),
            batch=batch,
            slots=slots,
        )

    return [
        of("2-5-5-1", lambda: boundary_net("three-layer"), 2, adam=False, slots=1024),
        of("MLP 64-64-64-10", lambda: mlp((64, 64, 64, 10)), 64, adam=True, slots=32),
        of("MLP 64-128-128-10", lambda: mlp((64, 128, 128, 10)), 64, adam=True, slots=32),
        of("small CNN 8x8", _small_cnn, 64, adam=True, slots=32),
        of("MLP 784-1000-1000-10", lambda: mlp((784, 1000, 1000, 10)), 784, adam=True, slots=32),
        of("LeNet 28x28", lenet, 784, adam=True, slots=32),
    ]


def seconds_one_by_one(name: str, device: str, steps: int) -> tuple[float, float, float]:
    """Return the seconds per step of one network on one thread.

    Args:
        name: Of the workload.
        device: Where.
        steps: How many to take.

    Returns:
        With a DataLoader, by the loop with torch's default optimizer, and with its fused one.
    """
    torch.set_num_threads(1)
    (workload,) = (w for w in workloads(torch.device(device)) if w.name == name)

    def measure(steps: int) -> tuple[float, float, float]:
        return (
            workload.seconds_of_loader(steps),
            workload.seconds_of_loop(steps, fused=False),
            workload.seconds_of_loop(steps, fused=True),
        )

    measure(2)  # what is done once: a GPU loads each kernel at its first use
    return measure(steps)


def _small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def points(n: int, *, inputs: int = 2, classes: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw rows whose class depends on the product of the first two inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator)
    product = torch.special.ndtr(x[:, 0] * x[:, 1])
    return x, (product * classes).long().clamp(max=classes - 1)


def losses(outputs: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of each row."""
    if outputs.shape[1] == 1:
        targets = y.to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")
    return F.cross_entropy(outputs, y, reduction="none")


def clock(device: torch.device) -> float:
    """Return CPU seconds of this process, which others' work does not touch; wall on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def suggest(trial: optuna.trial.BaseTrial) -> dict[str, float | str]:
    """Ask for one of the three networks of Auto-Tune and how to train it."""
    return {
        "net": trial.suggest_categorical("net", [*BOUNDARY_WIDTHS]),
        "lr": trial.suggest_float("lr", 1e-3, 1.0, log=True),
        "momentum": trial.suggest_float("momentum", 0.0, 0.95),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
    }


def search(device: torch.device, *, epochs: int = EPOCHS) -> Problem:
    """Return the search that the headline measures."""
    return Problem(
        suggest=suggest,
        model=lambda hyperparameters: boundary_net(hyperparameters["net"]),
        loss=losses,
        train=points(N_ROWS),
        valid=points(N_ROWS // 5, seed=1),
        optimizer="sgd",
        epochs=epochs,
        batch_size=BATCH,
        seed=lambda trial: trial.number,
    )


def objective(trial: optuna.Trial, *, device: torch.device, epochs: int = EPOCHS) -> float:
    """Train for the same search as one does: a DataLoader, a report per epoch."""
    given = suggest(trial)
    with seeded(trial.number):
        net = boundary_net(str(given.pop("net"))).to(device)
    optimizer = torch.optim.SGD(net.parameters(), **given)  # type: ignore[arg-type]
    loader = DataLoader(TensorDataset(*points(N_ROWS)), batch_size=BATCH, shuffle=True)
    valid_x, valid_y = (part.to(device) for part in points(N_ROWS // 5, seed=1))
    value = math.nan
    for epoch in range(1, epochs + 1):
        for x, y in loader:
            optimizer.zero_grad()
            losses(net(x.to(device)), y.to(device)).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            value = losses(net(valid_x), valid_y).mean().item()
        trial.report(value, epoch)
        if epoch < epochs and trial.should_prune():
            raise optuna.TrialPruned
    return value
