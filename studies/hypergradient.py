"""Hypergradient descent on MNIST: how much does the first learning rate matter?

A study of starting rates and step sizes, and one of rates that stay, to compare with::

    python -m studies.hypergradient --data-dir path/to/data
    python -m studies.hypergradient --data-dir path/to/data --no-tuned --study fixed

The published numbers of Baydin et al. (2018) beside ours; starts from 1e-6 to 1e-1; the six cases
of Auto-Tune (Jacobson & Gonzalez 2020); the cost of a step::

    python -m studies.hypergradient --data-dir path/to/data --published
    python -m studies.hypergradient --data-dir path/to/data --starts
    python -m studies.hypergradient --cases
    python -m studies.hypergradient --cost

The size for a quick look::

    python -m studies.hypergradient --data-dir path/to/data --study quick --trials 4 --epochs 1
"""

from __future__ import annotations

import sys

from objectives import hypergradient
from studies._command import study_command
from studies._online_tables import cases
from studies._online_tables import cost
from studies._online_tables import published
from studies._online_tables import starts


main = study_command(
    hypergradient,
    data=lambda arguments: "mnist",
    instead={"published": published, "starts": starts, "cases": cases, "cost": cost},
)

if __name__ == "__main__":
    sys.exit(main(None))
