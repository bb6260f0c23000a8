"""The whole grid of cat classifiers of Mahto & Chauhan, trained and kept in a file.

They trained each of the 3125 points by itself, in 12 hours. A training of 700 iterations passes by
all five levels of ``iterations``, so 625 trainings are enough; and 25 of them make one program
(see ``objectives.cat_grid``), which takes the time of some two.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import as_completed
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from dataclasses import fields
import functools
import multiprocessing
import os
from pathlib import Path
import signal
import sys
import threading
import time
from typing import Any
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.progress import TimeRemainingColumn

from objectives import cats
from studies._errors import UserError
from studies._interrupt import ending_signals
from studies._interrupt import Interrupt
from studies._options import Options
from studies._report import to_json


if TYPE_CHECKING:
    from objectives.cat_grid import Network

Cell = tuple[int, ...]  # positions in the lists of levels
Curve = dict[int, cats.Result]
Train = Callable[..., list[Curve]]

_AXES = dict(zip(("ITR", "LR", "H1", "H2", "H3"), cats.LEVELS, strict=True))  # names in the file
_RESULTS = ("test", "train", "testloss", "trainloss")
_SEED = 1  # the paper's
_RUNS = Path("runs")
_FLAGS = {"seed", "workers", "device", "storage", "data_dir", "json"}  # those that mean something
_SAVE_EVERY = 5.0  # seconds
_LINE_EVERY = 30.0  # seconds between two lines where there is no terminal
_N_BEST = 10  # printed


@dataclass(kw_only=True)
class Grid:
    """What came out of every point, as far as it is trained.

    Args:
        seed: Fixes the first weights.
        seconds: Spent on it so far.
        test: Accuracy on the test images, shape ``(5, 5, 5, 5, 5)`` in the order of
            ``cats.LEVELS``, or ``(5, 5, 5, 5)`` without ``h3``; NaN where not trained yet.
        train: Accuracy on the training images, same shape.
        testloss: Mean cross-entropy of the test images in nats, same shape.
        trainloss: Mean cross-entropy of the training images in nats, same shape.
    """

    seed: int
    seconds: float
    test: NDArray[np.float64]
    train: NDArray[np.float64]
    testloss: NDArray[np.float64]
    trainloss: NDArray[np.float64]

    @classmethod
    def empty(cls, *, seed: int, hidden_layers: int) -> Grid:
        """Return a grid of which nothing is trained."""
        shape = [len(levels) for levels in cats.LEVELS.values()][: 2 + hidden_layers]
        return cls(seed=seed, seconds=0.0, **{name: np.full(shape, np.nan) for name in _RESULTS})

    @classmethod
    def read(cls, path: Path) -> Grid:
        """Read what ``write`` wrote.

        Raises:
            UserError: If the file is something else.
        """
        try:
            with np.load(path) as file:
                results = {name: file[name] for name in _RESULTS}
                return cls(seed=int(file["seed"]), seconds=float(file["seconds"]), **results)
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise UserError(f"{str(path)!r} is not a grid of this command: {error}") from error

    def write(self, path: Path) -> None:
        """Write the grid and its levels to an ``.npz`` file, at once or not at all.

        Raises:
            UserError: If that is not possible.
        """
        contents: dict[str, Any] = {axis: np.array(cats.LEVELS[name]) for axis, name in self._axes}
        contents |= vars(self)
        new = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            with new.open("wb") as file:
                np.savez(file, **contents)
            new.replace(path)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {str(path)!r}: {reason}") from error
        finally:
            new.unlink(missing_ok=True)

    @property
    def hidden_layers(self) -> int:
        """2 or 3."""
        return self.test.ndim - 2

    @property
    def n_networks(self) -> int:
        """How many networks there are to train, each once for all levels of ``iterations``."""
        return int(self.test[0].size)

    def missing(self) -> list[Cell]:
        """Return the networks not trained yet: their positions on all axes but the first."""
        return [tuple(cell) for cell in np.argwhere(np.isnan(self.test[0])).tolist()]

    def put(self, network: Cell, curve: Curve) -> None:
        """Note what came out of a network."""
        for i, iterations in enumerate(cats.LEVELS["iterations"]):
            result = curve[int(iterations)]
            self.test[i, *network] = result.test.accuracy
            self.train[i, *network] = result.train.accuracy
            self.testloss[i, *network] = result.test.loss
            self.trainloss[i, *network] = result.train.loss

    def point(self, cell: Cell) -> dict[str, float]:
        """Return the parameters of a cell."""
        return {name: cats.LEVELS[name][i] for (_, name), i in zip(self._axes, cell, strict=True)}

    @property
    def _axes(self) -> list[tuple[str, str]]:
        return list(_AXES.items())[: self.test.ndim]


def train_grid(options: Options, arguments: Mapping[str, Any]) -> int:
    """Train all points of the paper's grid, as the paper does, into runs/cats-grid.npz."""
    _refuse_what_is_for_studies(options, arguments)
    grid, path = _open(options, hidden_layers=arguments["hidden_layers"])
    constant = _share_of_others(options)
    train = _trainer(options, seed=grid.seed)
    console = Console(stderr=True)
    interrupt = Interrupt()
    workers = options.workers or 1
    if path.parent == _RUNS:
        _RUNS.mkdir(exist_ok=True)
    grid.write(path)  # or fail before the work
    with interrupt.listening():
        try:
            _train(grid, path, train, workers=workers, interrupt=interrupt, console=console)
        except BrokenProcessPool:
            sys.stderr.write("error: a worker died; the same command goes on\n")
            return 1
        finally:
            grid.write(path)
    summary = _summarize(grid, path, constant=constant)
    if options.json:
        sys.stdout.write(to_json(summary) + "\n")
    else:
        _print_summary(summary, Console())
    return interrupt.exit_code


def _refuse_what_is_for_studies(options: Options, arguments: Mapping[str, Any]) -> None:
    given = [
        field.name
        for field in fields(options)
        if field.name not in _FLAGS and getattr(options, field.name) != field.default
    ]
    given += ["fidelity"] if arguments["fidelity"] else []
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} is for studies, not for --grid")


def _open(options: Options, *, hidden_layers: int) -> tuple[Grid, Path]:
    """Return the grid to go on with, or a new one, and its file."""
    if hidden_layers not in (2, 3):
        raise UserError(f"--hidden-layers must be 2 or 3, not {hidden_layers}")
    seed = _SEED if options.seed is None else options.seed
    if options.storage is None:
        layers = "" if hidden_layers == 3 else "-2-layers"
        path = Path(_RUNS, f"cats-grid{layers}{'' if seed == _SEED else f'-seed{seed}'}.npz")
    else:
        path = Path(options.storage)
        if path.suffix != ".npz":
            raise UserError(f"--storage of a grid must be an .npz file, not {options.storage!r}")
    if not path.exists():
        return Grid.empty(seed=seed, hidden_layers=hidden_layers), path
    grid = Grid.read(path)
    for name, asked in (("seed", seed), ("hidden_layers", hidden_layers)):
        if getattr(grid, name) != asked:
            raise UserError(
                f"{str(path)!r} is a grid with {name}={getattr(grid, name)}, not {asked}: choose "
                "another file with --storage"
            )
    return grid, path


def _share_of_others(options: Options) -> float:
    """Load the data; return the accuracy of a network that calls no test image a cat."""
    from objectives.data import load

    try:
        return float((load("cats", data_dir=options.data_dir).test_y == 0).double().mean())
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def _trainer(options: Options, *, seed: int) -> Train:
    """Return what trains networks together."""
    from objectives import cat_grid
    from objectives.training import resolve_device

    device = options.device or "cpu"  # the networks are too small for anything else
    try:
        resolve_device(device)
    except ValueError as error:
        raise UserError(f"--device: {error}") from error
    return functools.partial(
        cat_grid.train_together,
        iterations=int(max(cats.LEVELS["iterations"])),
        device=device,
        data_dir=options.data_dir,
        seed=seed,
    )


def _train(
    grid: Grid,
    path: Path,
    train: Train,
    *,
    workers: int,
    interrupt: Interrupt,
    console: Console,
) -> None:
    """Train what is missing, until a signal comes, and save it every few seconds."""
    missing = grid.missing()
    n_before, s_before = grid.n_networks - len(missing), grid.seconds
    started = saved = said = time.monotonic()
    columns = (
        TextColumn("networks"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("best {task.fields[best]:.0%}  passed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        closing(_results(grid, missing, train, workers=workers)) as results,
    ):
        task = bar.add_task("", total=grid.n_networks, completed=n_before, best=0.0)
        for curves in results:
            for network, curve in curves.items():
                grid.put(network, curve)
            n = grid.n_networks - len(grid.missing())
            now = time.monotonic()
            grid.seconds = s_before + now - started
            bar.update(task, completed=n, best=np.nanmax(grid.test))
            if now > saved + _SAVE_EVERY:
                grid.write(path)
                saved = now
            if not console.is_terminal and now > said + _LINE_EVERY:
                console.print(f"{n}/{grid.n_networks} networks", highlight=False)
                said = now
            if interrupt.signum is not None:
                return


def _results(
    grid: Grid, networks: list[Cell], train: Train, *, workers: int
) -> Generator[dict[Cell, Curve], None, None]:
    """Yield what came out of networks, program by program, from ``workers`` processes."""
    chunks: dict[Cell, list[Cell]] = {}
    for network in networks:
        chunks.setdefault(network[1:-1], []).append(network)  # of equal layers but for the last
    if workers == 1:
        for cells in chunks.values():
            yield dict(zip(cells, train(_points(grid, cells)), strict=True))
        return
    # Processes share the cores: one thread in each, set before they import numpy or torch.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_become_worker) as pool:
        futures = {pool.submit(train, _points(grid, c)): c for c in chunks.values()}
        try:
            for future in as_completed(futures):
                yield dict(zip(futures[future], future.result(), strict=True))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _points(grid: Grid, networks: Sequence[Cell]) -> list[Network]:
    from objectives.cat_grid import Network

    points = []
    for network in networks:
        _, lr, *hidden = grid.point((0, *network)).values()
        points.append(Network(lr=lr, hidden=tuple(int(units) for units in hidden)))
    return points


def _become_worker() -> None:
    # The parent has the signal, too, and lets the networks that have begun end.
    for signum in ending_signals():
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _summarize(grid: Grid, path: Path, *, constant: float) -> dict[str, Any]:
    n_missing = len(grid.missing())
    best = float(np.nanmax(grid.test)) if n_missing < grid.n_networks else np.nan
    return {
        "grid": str(path),
        "seed": grid.seed,
        "hidden_layers": grid.hidden_layers,
        "networks": grid.n_networks,
        "trained": grid.n_networks - n_missing,
        "seconds": round(grid.seconds, 1),
        "best": best,
        "best_cells": [grid.point(tuple(c)) for c in np.argwhere(grid.test == best).tolist()],
        "constant": constant,
        "constant_cells": int(np.isclose(grid.test, constant).sum()),
    }


def _print_summary(summary: dict[str, Any], console: Console) -> None:
    n, trained = summary["networks"], summary["trained"]
    networks = f"{n} networks" if trained == n else f"{trained} of {n} networks"
    lines = [f"{networks}, {summary['seconds'] / 60:.1f} minutes: {summary['grid']}"]
    if trained:
        cells = summary["best_cells"]
        n_cells = len(cells)
        lines.append(f"Cells with the best test accuracy, {summary['best']:.0%}: {n_cells}")
        for cell in cells[:_N_BEST]:
            lines.append("  " + ", ".join(f"{name}={level}" for name, level in cell.items()))
        lines += ["  ..."] if n_cells > _N_BEST else []
        constant, n_constant = summary["constant"], summary["constant_cells"]
        lines.append(f"Cells that call no image a cat, {constant:.0%}: {n_constant}")
    if trained == n:
        compare = "python -m studies.compare --on cats-grid --data-dir"
        lines.append(f"Samplers on it: {compare} {summary['grid']}")
    else:
        lines.append("The same command goes on with it.")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
