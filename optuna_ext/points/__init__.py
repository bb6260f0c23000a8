"""Designs without history: points that fill the unit cube evenly.

Each function returns float64 rows in ``[0, 1)`` from a number of rows ``n``, a number of columns
``d`` and a seed, and gives the same rows for the same arguments on every machine. Sequences can
be continued; sets are made whole and shuffled.
"""

from optuna_ext.points._sequence import PointSequence
from optuna_ext.points._sequence import SequenceKind
from optuna_ext.points.discrepancy import centered_l2
from optuna_ext.points.discrepancy import max_gap_1d
from optuna_ext.points.discrepancy import min_distance
from optuna_ext.points.halton import halton
from optuna_ext.points.hammersley import hammersley
from optuna_ext.points.latin_hypercube import latin_hypercube
from optuna_ext.points.latin_hypercube import LatinHypercubeKind
from optuna_ext.points.poisson_disk import poisson_disk
from optuna_ext.points.sobol import sobol


__all__ = [
    "LatinHypercubeKind",
    "PointSequence",
    "SequenceKind",
    "centered_l2",
    "halton",
    "hammersley",
    "latin_hypercube",
    "max_gap_1d",
    "min_distance",
    "poisson_disk",
    "sobol",
]
