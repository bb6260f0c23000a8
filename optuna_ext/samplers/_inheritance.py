"""Parameters that one trial has from another."""

from __future__ import annotations

from collections.abc import Collection
import math
from typing import Any
from typing import TYPE_CHECKING

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_ext.moves.population import explore
from optuna_ext.samplers._slots import last_value
from optuna_ext.samplers._snap import scale_of
from optuna_ext.samplers._trial_table import encode
from optuna_ext.samplers._trial_table import is_ordered
from optuna_ext.space import from_unit
from optuna_ext.space import to_unit
from optuna_ext.space import UnitSpace


if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from optuna_ext.moves.variation import Mutation


def perturbed(
    parent: FrozenTrial,
    *,
    kept: Collection[str],
    resample_probability: float,
    mutation: Mutation,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return the parameters of a trial, changed a little, all but those in ``kept``."""
    space = UnitSpace(
        {
            name: distribution
            for name, distribution in sorted(parent.distributions.items())
            if name not in kept
        }
    )
    distributions = [space.distributions[name] for name in space.names]
    row = explore(
        encode(space, parent.params),
        resample_probability=resample_probability,
        scales=tuple(scale_of(d) if is_ordered(d) else None for d in distributions),
        snap=lambda i, u: to_unit(distributions[i], from_unit(distributions[i], u)),
        mutation=mutation,
        rng=rng,
    )
    return space.to_params(row)


def fitted(name: str, value: Any, distribution: BaseDistribution) -> Any | None:
    """Return the value, or the nearest one that the distribution has; None if there is none."""
    value = value.item() if isinstance(value, np.generic) else value
    try:
        to_unit(distribution, value)
    except ValueError:
        try:
            (u,) = encode(UnitSpace({name: distribution}), {name: value})
        except TypeError:  # a word where there are numbers now
            return None
        return None if math.isnan(u) else from_unit(distribution, float(u))
    return distribution.to_external_repr(distribution.to_internal_repr(value))


def best_params(study: Study, n: int) -> list[dict[str, Any]]:
    """Return the different parameters of the best trials of a study, best first."""
    if len(study.directions) > 1:
        raise ValueError(
            "`initial_population` must be a study with one objective, but this one has "
            f"{len(study.directions)}."
        )
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = [t for t in study.get_trials(states=states) if math.isfinite(last_value(t))]
    found: list[dict[str, Any]] = []
    for trial in sorted(trials, key=lambda t: sign * last_value(t)):
        if trial.params not in found:
            found.append(trial.params)
    return found[:n]
