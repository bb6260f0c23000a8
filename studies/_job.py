"""What every process of a study must know, and the study it leads to."""

from __future__ import annotations

from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
import json
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study

from optuna_ext import open_storage
from studies._catalog import make_pruner
from studies._catalog import make_sampler
from studies._catalog import parse_assignments
from studies._errors import UserError
from studies._objective import find_objective
from studies._objective import Objective


_HEARTBEAT = 60  # seconds; only servers need it, whose workers may be on other machines


@dataclass(frozen=True, kw_only=True)
class Job:
    """A study to run; made of nothing but texts and numbers, so that it can travel as JSON.

    Args:
        objective: ``module:function`` or ``file.py:function``.
        arguments: Its keyword arguments.
        directions: One per value of the objective.
        storage: Path or URL.
        study: Name of the study.
        sampler: Short name or ``module:Class``.
        sampler_arg: ``key=value`` texts.
        pruner: Short name or ``module:Class``.
        pruner_arg: ``key=value`` texts.
        trials: How many finished trials the study shall have.
        design_size: Points of a finite design; stays what it was when the study grows.
        seed: Seed of the sampler.
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
        sampler = make_sampler(
            self.sampler,
            arguments=parse_assignments("--sampler-arg", self.sampler_arg),
            seed=self.seed,
            stream=self.stream,
            n_trials=self.design_size,
            search_space=objective.space,
        )
        pruner_arguments = parse_assignments("--pruner-arg", self.pruner_arg)
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
    on_server = storage.startswith(("postgresql", "mysql"))
    try:
        return open_storage(storage, heartbeat=_HEARTBEAT if on_server else None)
    except (ValueError, OSError, ImportError) as error:
        raise UserError(f"--storage: {error}") from error


def storage_file(storage: str) -> Path | None:
    """Return the file of a storage, or ``None`` for a server and for memory."""
    for prefix in ("sqlite:///", "journal:"):
        if storage.startswith(prefix):
            return Path(storage.removeprefix(prefix)).expanduser()
    if "://" in storage or storage == ":memory:":
        return None
    return Path(storage).expanduser()
