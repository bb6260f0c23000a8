from __future__ import annotations

import numpy as np
import pytest

from studies._equivalents import random_equivalents


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_random_trainings_are_worth_themselves(k: int) -> None:
    losses = np.random.default_rng(0).lognormal(size=200)
    found = losses[np.random.default_rng(1).integers(200, size=(100_000, k))].min(axis=1)
    assert random_equivalents(losses, list(found)) == pytest.approx(k, rel=0.02)


def test_ranks_count() -> None:
    losses = np.arange(100.0)
    assert random_equivalents(losses, [49.5]) == pytest.approx(1)
    assert random_equivalents(losses, [9.5, 29.5]) == pytest.approx(4)
    assert random_equivalents(np.exp(losses), list(np.exp([9.5, 29.5]))) == pytest.approx(4)


def test_the_ends_of_the_scale() -> None:
    losses = np.array([1.0, 2.0, np.inf])  # the last training failed
    assert random_equivalents(losses, [np.inf]) == 0
    assert random_equivalents(losses, [1.0]) == pytest.approx(5)
