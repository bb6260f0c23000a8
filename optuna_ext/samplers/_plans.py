"""What a trial of a population is to do: whose weights it goes on with, and its parameters."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import TYPE_CHECKING

import numpy as np
from optuna.samplers import BaseSampler

from optuna_ext.moves.population import PERTURB
from optuna_ext.moves.variation import Mutation
from optuna_ext.samplers._inheritance import perturbed


if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Explore = Callable[[dict[str, Any], np.random.Generator], Mapping[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What a trial is to do.

    Attributes:
        params: Its parameters, as far as they are inherited.
        others: Gives the other ones.
        is_relative: Whether ``others`` gives them together, not one by one.
    """

    params: Mapping[str, Any]
    others: BaseSampler
    is_relative: bool


class Planner:
    """Makes plans; the same ones whenever it is asked.

    Args:
        initial: Sampler of newborns, and of parameters that no ancestor had.
        founders: Parameters of the first newborns.
        explore: What becomes of parameters when they are copied; None for the usual.
        resample_probability: Of each parameter to be drawn anew then.
        architecture: Names of the parameters that stay with the weights.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``resample_probability`` is out of its range.
    """

    def __init__(
        self,
        *,
        initial: BaseSampler,
        founders: Sequence[Mapping[str, Any]],
        explore: Mutation | Explore | BaseSampler | None,
        resample_probability: float,
        architecture: Collection[str],
    ) -> None:
        if not 0.0 <= resample_probability <= 1.0:
            raise ValueError(
                f"`resample_probability` must be in [0, 1], but got {resample_probability}."
            )
        self._initial = initial
        self._founders = founders
        self._explore = _explore(explore)
        self._resample_probability = resample_probability
        self._architecture = _names("architecture", architecture)

    def samplers(self) -> list[BaseSampler]:
        """Return the samplers that plans may name."""
        explore = self._explore
        return [self._initial, *([explore] if isinstance(explore, BaseSampler) else [])]

    def newborn(self, slot: int | None) -> Plan:
        """Let a trial begin anew, a founder with the parameters given to it."""
        founder = {} if slot is None or slot >= len(self._founders) else self._founders[slot]
        return Plan(founder, self._initial, is_relative=True)

    def as_before(self, parent: FrozenTrial) -> Plan:
        """Let a member go on with what it has."""
        return Plan(parent.params, self._initial, is_relative=False)

    def takeover(self, parent: FrozenTrial, rng: np.random.Generator) -> Plan:
        """Let a member go on with another one's weights, and explore."""
        kept = {n: v for n, v in parent.params.items() if n in self._architecture}
        if isinstance(self._explore, BaseSampler):
            return Plan(kept, self._explore, is_relative=True)
        params: Mapping[str, Any]
        if isinstance(self._explore, Mutation):
            params = perturbed(
                parent,
                kept=self._architecture,
                resample_probability=self._resample_probability,
                mutation=self._explore,
                rng=rng,
            )
        else:
            params = self._explore(dict(parent.params), rng)
        return Plan({**parent.params, **params, **kept}, self._initial, is_relative=False)


def _explore(explore: Mutation | Explore | BaseSampler | None) -> Mutation | Explore | BaseSampler:
    if explore is None:
        return PERTURB
    if not isinstance(explore, Mutation | BaseSampler) and not callable(explore):
        raise TypeError(
            f"`explore` must be a Mutation, an Optuna sampler or a function, but got {explore!r}."
        )
    return explore


def _names(argument: str, names: Collection[str]) -> frozenset[str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`{argument}` must be a collection of names, but got {names!r}.")
    return frozenset(names)
