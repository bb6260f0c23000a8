"""Cat or not: the tabular landscape of Mahto & Chauhan, trained again for every trial.

The two files of the course go to ``catvnoncat`` in ``--data-dir``. Without its faults, by
cross-validation on the training images::

    python -m studies.cats --data-dir path/to/data

As the paper measures, on the test images::

    python -m studies.cats --data-dir path/to/data --protocol document --sampler tpe --trials 100

A training of 700 iterations passes by all levels of ``iterations``, so they need not be searched::

    python -m studies.cats --data-dir path/to/data --fidelity --sampler tpe --pruner median

The whole grid of the paper, which took 12 hours there, in 625 trainings of a quarter of a second,
and samplers on it::

    python -m studies.cats --data-dir path/to/data --grid --workers 2
    python -m studies.compare --on cats-grid --data-dir runs/cats-grid.npz --sampler tpe

The size for a quick look, a few seconds on a CPU::

    python -m studies.cats --data-dir path/to/data --study quick --trials 4 --epochs 1
"""

from __future__ import annotations

import sys

from objectives import cats
from studies._cat_grid import train_grid
from studies._command import study_command
from studies._fused import fused_study


main = study_command(
    cats, data=lambda arguments: "cats", instead={"grid": train_grid, "fused": fused_study(cats)}
)

if __name__ == "__main__":
    sys.exit(main(None))
