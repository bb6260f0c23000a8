"""Optuna for people who train PyTorch models.

Public names are loaded when they are first used: ``import optuna_ext`` imports neither torch nor
scipy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from optuna_ext._replay import replay as replay
    from optuna_ext.checkpoints import CheckpointError as CheckpointError
    from optuna_ext.checkpoints import CheckpointStore as CheckpointStore
    from optuna_ext.halving import Hyperband as Hyperband
    from optuna_ext.halving import SuccessiveHalving as SuccessiveHalving
    from optuna_ext.online.hypergradient import HypergradientAdam as HypergradientAdam
    from optuna_ext.online.hypergradient import HypergradientAdamW as HypergradientAdamW
    from optuna_ext.online.hypergradient import HypergradientSGD as HypergradientSGD
    from optuna_ext.online.t1t2 import T1T2 as T1T2
    from optuna_ext.pruners import HyperbandPruner as HyperbandPruner
    from optuna_ext.pruners import SuccessiveHalvingPruner as SuccessiveHalvingPruner
    from optuna_ext.recovery import Heartbeat as Heartbeat
    from optuna_ext.samplers import ApproximateGradientSampler as ApproximateGradientSampler
    from optuna_ext.samplers import EvolutionarySampler as EvolutionarySampler
    from optuna_ext.samplers import HaltonSampler as HaltonSampler
    from optuna_ext.samplers import HammersleySampler as HammersleySampler
    from optuna_ext.samplers import LatinHypercubeSampler as LatinHypercubeSampler
    from optuna_ext.samplers import NelderMeadSampler as NelderMeadSampler
    from optuna_ext.samplers import ParticleSwarmSampler as ParticleSwarmSampler
    from optuna_ext.samplers import PoissonDiskSampler as PoissonDiskSampler
    from optuna_ext.samplers import (
        PopulationBasedTrainingSampler as PopulationBasedTrainingSampler,
    )
    from optuna_ext.samplers import SobolSampler as SobolSampler
    from optuna_ext.samplers import WarmupSampler as WarmupSampler
    from optuna_ext.schedule import Schedule as Schedule
    from optuna_ext.space import UnitSpace as UnitSpace
    from optuna_ext.storage import bulk_storage as bulk_storage
    from optuna_ext.storage import open_storage as open_storage
    from optuna_ext.storage import sqlite as sqlite

__version__ = "0.1.0"

_HOMES = {
    "ApproximateGradientSampler": "optuna_ext.samplers",
    "CheckpointError": "optuna_ext.checkpoints",
    "CheckpointStore": "optuna_ext.checkpoints",
    "EvolutionarySampler": "optuna_ext.samplers",
    "HaltonSampler": "optuna_ext.samplers",
    "HammersleySampler": "optuna_ext.samplers",
    "Heartbeat": "optuna_ext.recovery",
    "Hyperband": "optuna_ext.halving",
    "HyperbandPruner": "optuna_ext.pruners",
    "HypergradientAdam": "optuna_ext.online.hypergradient",
    "HypergradientAdamW": "optuna_ext.online.hypergradient",
    "HypergradientSGD": "optuna_ext.online.hypergradient",
    "LatinHypercubeSampler": "optuna_ext.samplers",
    "NelderMeadSampler": "optuna_ext.samplers",
    "ParticleSwarmSampler": "optuna_ext.samplers",
    "PoissonDiskSampler": "optuna_ext.samplers",
    "PopulationBasedTrainingSampler": "optuna_ext.samplers",
    "Schedule": "optuna_ext.schedule",
    "SobolSampler": "optuna_ext.samplers",
    "SuccessiveHalving": "optuna_ext.halving",
    "SuccessiveHalvingPruner": "optuna_ext.pruners",
    "T1T2": "optuna_ext.online.t1t2",
    "UnitSpace": "optuna_ext.space",
    "WarmupSampler": "optuna_ext.samplers",
    "bulk_storage": "optuna_ext.storage",
    "open_storage": "optuna_ext.storage",
    "replay": "optuna_ext._replay",
    "sqlite": "optuna_ext.storage",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
