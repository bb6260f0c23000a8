"""What every process of a study must know, and the study it leads to."""

from __future__ import annotations

from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from functools import partial
import json
import os
from pathlib import Path
import re
import sqlite3
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy.pool import NullPool

from optuna_ext import open_storage
from optuna_ext.storage import parse_storage
from studies._catalog import make_pair
from studies._catalog import make_pruner
from studies._catalog import make_sampler
from studies._catalog import PAIRS
from studies._catalog import parse_assignments
from studies._errors import UserError
from studies._objective import find_objective
from studies._objective import Objective


RUNS = Path("runs")  # where studies are kept by default


@dataclass(frozen=True, kw_only=True)
class Job:
    """A study to run; made of nothing but texts and numbers, so that it can travel as JSON.

    Args:
        objective: ``module:function`` or ``file.py:function``.
        arguments: Its keyword arguments.
        directions: One per value of the objective.
        storage: Path or URL.
        study: Name of the study.
        sampler: Short name, also of a pair of sampler and pruner, or ``module:Class``.
        sampler_arg: ``key=value`` texts.
        pruner: Short name or ``module:Class``.
        pruner_arg: ``key=value`` texts.
        trials: How many finished trials the study shall have.
        design_size: Points of a finite design; stays what it was when the study grows.
        seed: Seed of the sampler.
        retries: How often a trial is repeated that was cut short and got no further.
        stream: Tells apart the random numbers of processes with the same seed.
        deadline: Unix time from which on no trial starts.
    """

    objective: str
    arguments: dict[str, Any] = field(default_factory=dict)
    directions: list[str]
    storage: str
    study: str
    sampler: str
    sampler_arg: list[str] = field(default_factory=list)
    pruner: str = "none"
    pruner_arg: list[str] = field(default_factory=list)
    trials: int
    design_size: int
    seed: int | None = None
    retries: int = 0
    stream: int = 0
    deadline: float | None = None

    def to_json(self) -> str:
        """Return the job in one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Return the job that ``to_json`` wrote."""
        return cls(**json.loads(text))

    def sampler_and_pruner(
        self, objective: Objective
    ) -> tuple[optuna.samplers.BaseSampler, optuna.pruners.BasePruner]:
        """Build both.

        Raises:
            UserError: If a name or an argument of them is wrong.
        """
        about: dict[str, Any] = {
            "arguments": parse_assignments("--sampler-arg", self.sampler_arg),
            "seed": self.seed,
            "stream": self.stream,
            "n_trials": self.design_size,
            "search_space": objective.space,
        }
        pruner_arguments = parse_assignments("--pruner-arg", self.pruner_arg)
        if self.sampler in PAIRS:
            if self.pruner != "none":
                raise UserError(
                    f"sampler {self.sampler!r} brings its own pruner: leave out --pruner"
                )
            return make_pair(self.sampler, **about)
        sampler = make_sampler(self.sampler, **about)
        return sampler, make_pruner(self.pruner, arguments=pruner_arguments)

    def load(self, storage: BaseStorage) -> tuple[Study, Objective]:
        """Return the study, ready to go on, and its objective."""
        objective = find_objective(self.objective)
        sampler, pruner = self.sampler_and_pruner(objective)
        study = optuna.load_study(
            study_name=self.study, storage=storage, sampler=sampler, pruner=pruner
        )
        return study, objective


def connect(storage: str) -> BaseStorage:
    """Open a storage.

    Raises:
        UserError: If that is not possible.
    """
    try:
        return open_storage(storage)
    except (ValueError, OSError, ImportError) as error:
        raise UserError(f"--storage: {error}") from error


def connect_to_read(storage: str) -> BaseStorage:
    """Open a storage that exists, without the changes that ``connect`` makes to an SQLite file.

    Raises:
        UserError: If that is not possible.
    """
    kind, _ = parse_storage(storage)
    file = storage_file(storage)
    if kind != "sqlite" or file is None or not os.access(file, os.W_OK):
        return connect(storage)
    # Not mode=ro, which leaves -wal and -shm files behind.
    uri = f"{file.resolve().as_uri()}?mode=rw"
    creator = partial(sqlite3.connect, uri, uri=True, check_same_thread=False)
    engine_kwargs = {"creator": creator, "poolclass": NullPool}
    try:
        return RDBStorage("sqlite://", engine_kwargs=engine_kwargs, skip_table_creation=True)
    except (StorageInternalError, RuntimeError):  # not a file of this version of Optuna
        return connect(storage)


def storage_file(storage: str) -> Path | None:
    """Return the file of a storage, or ``None`` for a server.

    Raises:
        UserError: If it is not a storage that outlives the process.
    """
    try:
        kind, target = parse_storage(storage)
    except ValueError as error:
        raise UserError(f"--storage: {error}") from error
    if kind == "memory":
        raise UserError(f"--storage {storage} would be forgotten with the process: name a file")
    return Path(target).expanduser() if kind in ("sqlite", "journal") else None


def checkpoints_beside(storage: str, study: str) -> Path:
    """Return where a study keeps the checkpoints of its trials by default.

    Raises:
        UserError: If it is not a storage that outlives the process.
    """
    return file_beside(storage, f"{study}-checkpoints")


def file_beside(storage: str, name: str) -> Path:
    """Return where a file of this name lies beside the storage, or in ``runs`` for a server.

    Args:
        storage: Path or URL.
        name: Begins with a study's, in which anything may stand.

    Raises:
        UserError: If it is not a storage that outlives the process.
    """
    file = storage_file(storage)
    return (RUNS if file is None else file.parent) / re.sub(r"[^\w.-]+", "-", name)
