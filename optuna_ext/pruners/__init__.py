from optuna_ext.pruners._hyperband import HyperbandPruner
from optuna_ext.pruners._successive_halving import SuccessiveHalvingPruner


__all__ = [
    "HyperbandPruner",
    "SuccessiveHalvingPruner",
]
