"""Learning curves of many configurations, as a file, and as something to search in."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace
import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import distribution_to_json
from optuna.distributions import json_to_distribution
from optuna.study import Study
from optuna.study import StudyDirection
from optuna.trial import Trial

from objectives.space import suggest
from optuna_ext.space import to_unit
from studies._errors import UserError


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveTable:
    """What every configuration had after every epoch.

    Args:
        name: What was trained.
        maximize: Whether large values are good.
        space: All parameters that can occur.
        params: The configurations; a conditional parameter may be missing.
        curves: The values, shape ``(configurations, epochs)``; NaN after a training failed.
    """

    name: str
    maximize: bool
    space: Mapping[str, BaseDistribution]
    params: list[dict[str, Any]]
    curves: Floats

    @property
    def n_epochs(self) -> int:
        """How long every configuration was trained."""
        return int(self.curves.shape[1])

    def losses(self) -> Floats:
        """Return the curves such that small is good and a failed training the worst."""
        losses = -self.curves if self.maximize else self.curves
        return np.where(np.isnan(losses), np.inf, losses)

    def foreseen(self) -> CurveTable:
        """Return a table that tells after every epoch what a configuration ends with."""
        return replace(self, curves=np.repeat(self.curves[:, -1:], self.n_epochs, axis=1))

    def save(self, path: Path) -> None:
        """Write the table, compressed; single precision is more than the values have."""
        about = {
            "name": self.name,
            "maximize": self.maximize,
            "space": {n: distribution_to_json(d) for n, d in self.space.items()},
            "params": self.params,
        }
        with path.open("wb") as file:
            np.savez_compressed(
                file, about=np.array(json.dumps(about)), curves=self.curves.astype(np.float32)
            )

    @classmethod
    def load(cls, path: Path) -> CurveTable:
        """Read what ``save`` wrote.

        Raises:
            UserError: If the file cannot be read or is something else.
        """
        try:
            with path.open("rb") as opened, np.load(opened) as file:
                about = json.loads(str(file["about"]))
                curves = file["curves"].astype(np.float64)
            space = {n: json_to_distribution(text) for n, text in about.pop("space").items()}
            return cls(space=space, curves=curves, **about)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        except (BadZipFile, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not a table of learning curves as studies.curves writes them"
            ) from error

    @classmethod
    def of(cls, study: Study, *, name: str, n_epochs: int) -> CurveTable:
        """Read the finished trials of a study that reported epochs ``1..n_epochs``."""
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        curves = np.full((len(trials), n_epochs), np.nan)
        space: dict[str, BaseDistribution] = {}
        for row, trial in zip(curves, trials, strict=True):
            space |= trial.distributions
            for epoch, value in trial.intermediate_values.items():
                row[epoch - 1] = value
        return cls(
            name=name,
            maximize=study.direction == StudyDirection.MAXIMIZE,
            space=space,
            params=[trial.params for trial in trials],
            curves=curves,
        )


class Pool:
    """The configurations of a table that nobody has tried yet.

    A search asks for parameters that the table does not have; it gets the nearest that are left.
    Those in the corners, where many are bad, remain to the end; so a random search does not ask
    but draws, which makes every order as likely as any other.

    Args:
        table: The table.
        seed: Of the order in which to draw; None to give the nearest.
    """

    def __init__(self, table: CurveTable, *, seed: int | None = None) -> None:
        self._space = dict(table.space)
        self._rows = np.array([self._row(params) for params in table.params])
        self._is_choice = np.array(
            [isinstance(d, CategoricalDistribution) for d in self._space.values()]
        )
        self._is_left = np.ones(len(self._rows), bool)
        self._drawn: Iterator[int] | None = None
        if seed is not None:
            self._drawn = iter(np.random.default_rng(seed).permutation(len(self._rows)).tolist())

    def __len__(self) -> int:
        return int(self._is_left.sum())

    def take(self, trial: Trial) -> int:
        """Let a trial ask for every parameter, or draw; return the configuration it gets."""
        index = self._nearest(trial) if self._drawn is None else next(self._drawn)
        self._is_left[index] = False
        return index

    def _nearest(self, trial: Trial) -> int:
        wanted = self._row({name: suggest(trial, self._space, name) for name in self._space})
        gap = np.abs(self._rows - wanted)
        gap = np.where(self._is_choice, gap > 0, gap)
        # A parameter that a configuration does not have cannot be wrong.
        distance = np.where(np.isnan(self._rows), 0.0, gap).sum(axis=1)
        return int(np.argmin(np.where(self._is_left, distance, np.inf)))

    def _row(self, params: Mapping[str, Any]) -> Floats:
        return np.array(
            [
                to_unit(d, params[name]) if name in params else np.nan
                for name, d in self._space.items()
            ]
        )
