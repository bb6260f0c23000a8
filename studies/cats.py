"""Cat or not: the tabular landscape of Mahto & Chauhan, trained again for every trial.

The two files of the course go to ``catvnoncat`` in ``--data-dir``. Without its faults, by
cross-validation on the training images::

    python -m studies.cats --data-dir path/to/data

As the paper measures, on the test images::

    python -m studies.cats --data-dir path/to/data --protocol document --sampler tpe --trials 100

The size for a quick look, a few seconds on a CPU::

    python -m studies.cats --data-dir path/to/data --study quick --trials 4 --epochs 1
"""

from __future__ import annotations

import sys

from objectives import cats
from studies._command import study_command


main = study_command(cats, data=lambda arguments: "cats")

if __name__ == "__main__":
    sys.exit(main(None))
