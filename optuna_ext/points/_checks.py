"""The few things that every design does with its arguments."""

from __future__ import annotations

import operator

import numpy as np


MAX_ROWS = 2**30  # as many different points as scipy's Sobol engine has with its default 30 bits
LAST = np.nextafter(1.0, 0.0)  # the largest coordinate


def check_int(name: str, value: int, *, low: int = 0, high: int | None = None) -> int:
    """Return ``value`` as a Python int in ``low..high``, or say in one sentence why not."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, but got {value!r}.") from None
    if number < low:
        raise ValueError(f"`{name}` must be at least {low}, but got {number}.")
    if high is not None and number > high:
        raise ValueError(f"`{name}` must be at most {high}, but got {number}.")
    return number


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """Return the random generator of one part of one design.

    Parts with different keys are independent, because the key goes through numpy's own hash.
    """
    check_int("seed", seed)
    numbers = [int.from_bytes(k.encode()) if isinstance(k, str) else k for k in key]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))
