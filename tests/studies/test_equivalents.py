from __future__ import annotations

import numpy as np
import pytest

from studies._equivalents import random_equivalents


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_random_trainings_are_worth_themselves(k: int) -> None:
    losses = np.random.default_rng(0).lognormal(size=200)
    found = losses[np.random.default_rng(1).integers(200, size=(200_000, k))].min(axis=1)
    assert random_equivalents(losses, list(found)) == pytest.approx(k, rel=0.03)


def test_the_mean_loss_counts() -> None:
    losses = np.array([1.0, 3.0])  # one training finds 2, two find 1.5
    assert random_equivalents(losses, [1.0, 3.0]) == pytest.approx(1)
    assert random_equivalents(losses, [1.0, 1.0, 2.5]) == pytest.approx(2, rel=0.01)


def test_the_ends_of_the_scale() -> None:
    losses = np.array([1.0, 2.0, np.inf])  # a failed training is as bad as the worst
    assert random_equivalents(losses, [np.inf]) == pytest.approx(1)
    assert random_equivalents(losses, [2.0]) == pytest.approx(1)
    assert 50 < random_equivalents(losses, [1.0]) <= 300
