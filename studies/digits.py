"""Handwritten digits: Sobol points in the conditional space of a multilayer perceptron.

The main study, about a minute on two CPU cores; the digits come with scikit-learn::

    python -m studies.digits

The same command goes on where the study stands, and more trials are ``--trials 64`` in total.
Other searches, and two processes::

    python -m studies.digits --study tpe --sampler tpe --pruner median --workers 2

The size for a quick look, a few seconds on a CPU::

    python -m studies.digits --study quick --trials 8 --epochs 3
"""

from __future__ import annotations

import sys

from objectives import digits
from studies._command import study_command
from studies._fused import fused_study


main = study_command(digits, instead={"fused": fused_study(digits)})

if __name__ == "__main__":
    sys.exit(main(None))
