"""The few things that every design does with its arguments."""

from __future__ import annotations

import numpy as np

from optuna_ext._checks import check_int


MAX_ROWS = 2**30  # as many different points as scipy's Sobol engine has with its default 30 bits
LAST = np.nextafter(1.0, 0.0)  # the largest coordinate


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """Return the random generator of one part of one design.

    Parts with different keys are independent, because the key goes through numpy's own hash.
    """
    check_int("seed", seed)
    numbers = [int.from_bytes(k.encode()) if isinstance(k, str) else k for k in key]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))
