"""What ``--on`` names: test functions, the table of cat classifiers, modules of ``objectives``."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
import functools
import os
from pathlib import Path
from typing import Any
from typing import cast
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.distributions import IntDistribution
from optuna.trial import BaseTrial

import objectives
from studies import _functions
from studies._errors import unknown
from studies._errors import UserError
from studies._objective import find_objective


Direction = Literal["minimize", "maximize"]
Objective = Callable[[BaseTrial], float]

CATS_GRID = "cats-grid"
_CATS_GRID_FILE = "cat_grid_f64_seed1.npz"
_CATS_GRID_SPACE = {name: IntDistribution(0, 4) for name in ("ITR", "LR", "H1", "H2", "H3")}


@dataclass(frozen=True)
class Settings:
    """What a problem may want to know besides its name; it takes what has a meaning for it."""

    dims: int = 5
    epochs: int | None = None
    device: str | None = None
    data_dir: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """Something to optimize, in as many instances as there are seeds.

    Attributes:
        direction: Whether smaller or larger values are better.
        instance: Gives the objective of a seed. Equal seeds give equal objectives, whichever
            sampler is tried on them.
        space: The parameters that can occur, if they are published.
        targets: Values whose reaching is of interest.
    """

    direction: Direction
    instance: Callable[[int], Objective]
    space: Mapping[str, BaseDistribution] | None
    targets: tuple[float, ...] = ()


def find_problem(name: str, settings: Settings) -> Problem:
    """Return the problem with a name, which is also a valid name in another process.

    Raises:
        UserError: If there is none, or it cannot be loaded.
    """
    if name in _functions.FUNCTIONS or name == CATS_GRID:
        for setting in ("epochs", "device", "arguments"):
            if getattr(settings, setting):
                flag = "arg" if setting == "arguments" else setting
                raise UserError(f"--{flag} is for objectives that train, not for {name!r}")
        return _cats_grid(settings.data_dir) if name == CATS_GRID else _function(name, settings)
    if name in objectives.__all__:
        return _objective(f"objectives.{name}:objective", settings)
    if ":" in name:
        return _objective(name, settings)
    raise unknown(
        "problem",
        name,
        [*_functions.FUNCTIONS, CATS_GRID, *objectives.__all__, "module:objective"],
    )


def _function(name: str, settings: Settings) -> Problem:
    dims = settings.dims
    return Problem(
        direction="minimize",
        instance=lambda seed: _functions.instance(name, dims=dims, seed=seed),
        space=_functions.instance(name, dims=dims, seed=0).space,
    )


def _cats_grid(data_dir: Path | None) -> Problem:
    """Mahto & Chauhan's grid of 5^5 cat classifiers, trained beforehand: a trial is a look-up.

    Parameters are positions in the paper's lists of levels, so that every sampler knows their
    order; the value is the test accuracy in percent, and the user attribute ``loss`` of a trial
    the test loss. ``data_dir`` may also be the file of another grid, with or without ``H3``.
    """
    path = _data_dir(data_dir)
    accuracy, loss = _load_cats_grid(path if path.is_file() else path / _CATS_GRID_FILE)
    space = dict(list(_CATS_GRID_SPACE.items())[: accuracy.ndim])

    def objective(trial: BaseTrial) -> float:
        cell = tuple(trial.suggest_int(name, 0, 4) for name in space)
        trial.set_user_attr("loss", float(loss[cell]))
        return float(accuracy[cell])

    return Problem(
        direction="maximize",
        instance=lambda seed: objective,
        space=space,
        targets=(80.0, 82.0, 84.0),
    )


@functools.cache
def _load_cats_grid(path: Path) -> tuple[_functions.Vector, _functions.Vector]:
    try:
        with np.load(path) as table:
            accuracy, loss = table["test"], table["testloss"]
    except FileNotFoundError as error:
        raise UserError(f"there is no trained grid {str(path)!r}") from error
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise UserError(f"{str(path)!r} is not a trained grid: {error}") from error
    if np.isnan(accuracy).any():
        raise UserError(f"{str(path)!r} is not yet trained: go on with studies.cats --grid")
    # 0.82 * 100 is not 82: undo the binary fractions, or no target is ever met.
    return np.round(accuracy * 100, 6), loss


def _data_dir(given: Path | None) -> Path:
    directory = given or os.environ.get("OPTUNA_EXT_DATA")
    if directory is None:
        raise UserError(
            f"{CATS_GRID!r} needs the folder with {_CATS_GRID_FILE}: give --data-dir or set "
            "OPTUNA_EXT_DATA"
        )
    return Path(directory)


_find_objective = functools.cache(find_objective)  # imported once for all runs of a process


def _objective(target: str, settings: Settings) -> Problem:
    objective = _find_objective(target)
    direction, *others = objective.directions
    if others:
        listed = ", ".join(map(str, objective.directions))
        raise UserError(
            f"DIRECTION of {target!r} must be 'minimize' or 'maximize', not {listed!r}"
        )
    arguments = dict(settings.arguments)
    for name in ("epochs", "device"):
        if getattr(settings, name) is not None:
            arguments[name] = getattr(settings, name)
    keywords = objective.keywords()
    if "data_dir" in keywords and settings.data_dir is not None:
        arguments["data_dir"] = settings.data_dir

    def instance(seed: int) -> Objective:
        seeded = {"seed": seed, **arguments} if "seed" in keywords else arguments
        objective.check_arguments(seeded)
        return functools.partial(objective.function, **seeded)

    instance(0)  # refuses wrong arguments before anything runs

    return Problem(direction=cast(Direction, direction), instance=instance, space=objective.space)
