"""The whole grid of cat classifiers of Mahto & Chauhan, trained once and kept in a file.

They trained each of the 3125 points by itself, in 12 hours. A training of 700 iterations passes by
all five levels of ``iterations``, so 625 trainings are enough: about three minutes on one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import as_completed
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
import contextlib
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import fields
import functools
import json
import multiprocessing
import os
from pathlib import Path
import signal
import sys
import threading
import time
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeRemainingColumn

from objectives import cats
from studies._errors import UserError
from studies._interrupt import Interrupt
from studies._options import Options


Cell = tuple[int, ...]  # positions in the levels
Curve = dict[int, cats.Result]

AXES = dict(zip(("ITR", "LR", "H1", "H2", "H3"), cats.LEVELS, strict=True))
"""What the axes are called in the file, and the parameters they stand for."""

_SEED = 1  # the paper's
_FLAGS = {"seed", "workers", "device", "storage", "data_dir", "json"}  # that a grid knows
_SAVE_EVERY = 5.0  # seconds
_LINE_EVERY = 30.0  # seconds between two lines where there is no terminal


@dataclass(kw_only=True)
class Grid:
    """What came out of every point, as far as it has been trained.

    Args:
        seed: Fixes the first weights.
        seconds: Spent on it so far.
        test: Accuracy on the test images, shape ``(5, 5, 5, 5, 5)`` in the order of ``AXES``, or
            ``(5, 5, 5, 5)`` without the third hidden layer; NaN where not trained yet.
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
        names = ("test", "train", "testloss", "trainloss")
        return cls(seed=seed, seconds=0.0, **{name: np.full(shape, np.nan) for name in names})

    @classmethod
    def read(cls, path: Path) -> Grid:
        """Read what ``write`` wrote.

        Raises:
            UserError: If the file is something else.
        """
        try:
            with np.load(path) as file:
                values = {field.name: file[field.name] for field in fields(cls)}
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise UserError(f"{str(path)!r} is not a grid of this command: {error}") from error
        seed, seconds = int(values.pop("seed")), float(values.pop("seconds"))
        return cls(seed=seed, seconds=seconds, **values)

    def write(self, path: Path) -> None:
        """Write the grid and its levels to an ``.npz`` file, at once or not at all."""
        new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        levels = {axis: np.array(cats.LEVELS[name]) for axis, name in self._axes.items()}
        try:
            with new.open("wb") as file:
                np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)},
                         **levels)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    @property
    def hidden_layers(self) -> int:
        """The number of hidden layers, 2 or 3."""
        return self.test.ndim - 2

    @property
    def n_networks(self) -> int:
        """The number of networks, each trained once for all levels of ``iterations``."""
        return self.test[0].size

    def missing(self) -> list[Cell]:
        """Return the networks not trained yet, as positions on all axes but the first."""
        return [tuple(map(int, cell)) for cell in np.argwhere(np.isnan(self.test[0]))]

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
        names = self._axes.values()
        return {name: cats.LEVELS[name][i] for name, i in zip(names, cell, strict=True)}

    @property
    def _axes(self) -> dict[str, str]:
        return dict(list(AXES.items())[: self.test.ndim])


def train_grid(options: Options, arguments: Mapping[str, Any]) -> int:
    """Train the paper's whole grid, a network at a time, and keep all results in runs/.

    The same command goes on with a grid that was interrupted.
    """
    train = _trainer(options)
    grid, path = _open(options, hidden_layers=arguments["hidden_layers"])
    interrupt = Interrupt()
    try:
        with interrupt.listening(), _saving(grid, path):
            _train(grid, path, train, workers=options.workers or 1, interrupt=interrupt)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    ...


class _Trainer:
    ...
