"""What all designs have in common."""

from __future__ import annotations

from collections.abc import Callable
import functools
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import qmc

import optuna_ext.points
from optuna_ext.points import centered_l2
from optuna_ext.points import halton
from optuna_ext.points import hammersley
from optuna_ext.points import latin_hypercube
from optuna_ext.points import poisson_disk
from optuna_ext.points import sobol


def poisson_disk_of_number(n: int, d: int, *, seed: int) -> np.ndarray:
    return poisson_disk(d, n=n, seed=seed)


Design = Callable[..., np.ndarray]
DESIGNS: dict[str, Design] = {
    "sobol": sobol,
    "halton": halton,
    "hammersley": hammersley,
    "latin hypercube": latin_hypercube,
    "centered": functools.partial(latin_hypercube, kind="centered"),
    "random-cd": functools.partial(latin_hypercube, kind="random-cd"),
    "poisson disk": poisson_disk_of_number,
}
SEQUENCES: dict[str, Design] = {"sobol": sobol, "halton": halton}
ENGINES = {"sobol": qmc.Sobol, "halton": qmc.Halton}

each_design = pytest.mark.parametrize("name", DESIGNS)
each_sequence = pytest.mark.parametrize("name", SEQUENCES)


@functools.cache
def random_discrepancy(n: int, d: int) -> float:
    rng = np.random.default_rng(0)
    return float(np.median([centered_l2(rng.random((n, d))) for _ in range(100)]))


@each_design
@pytest.mark.parametrize("n", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("d", [0, 1, 2, 9])
def test_shape_type_and_range(name: str, n: int, d: int) -> None:
    rows = DESIGNS[name](n, d, seed=1)
    assert rows.shape == (n, d)
    assert rows.dtype == np.float64
    assert ((rows >= 0.0) & (rows < 1.0)).all()
    rows[:] = 0.0  # the caller's own array


@each_design
@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**200])
def test_rows_depend_on_the_seed_and_nothing_else(name: str, seed: int) -> None:
    rows = DESIGNS[name](12, 3, seed=seed)
    np.testing.assert_array_equal(rows, DESIGNS[name](12, 3, seed=seed))
    assert not np.array_equal(rows, DESIGNS[name](12, 3, seed=seed + 1))


@each_design
def test_wrong_arguments(name: str) -> None:
    design = DESIGNS[name]
    for n, d, seed, message in (
        (-1, 2, 0, "`n` must be at least 0, but got -1"),
        (2**30 + 1, 2, 0, "`n` must be at most"),
        (2, -1, 0, "`d` must be at least 0, but got -1"),
        (2, 2, -1, "`seed` must be at least 0, but got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            design(n, d, seed=seed)
    for arguments, wrong in (((2.5, 2), "n"), ((2, "3"), "d")):
        with pytest.raises(TypeError, match=f"`{wrong}` must be an integer, but got"):
            design(*arguments, seed=0)
    with pytest.raises(TypeError, match="`seed` must be an integer, but got None"):
        design(2, 2, seed=None)


@each_design
@pytest.mark.parametrize("d", [2, 5, 8])
def test_discrepancy_is_below_random(name: str, d: int) -> None:
    n_seeds = {"random-cd": 1, "poisson disk": 5}.get(name, 40)
    for n in (16, 32, 64, 128, 256):
        sets = (DESIGNS[name](n, d, seed=seed) for seed in range(n_seeds))
        assert np.median([centered_l2(rows) for rows in sets]) < random_discrepancy(n, d)


@pytest.mark.parametrize(("n", "d"), [(25, 2), (25, 5), (49, 8), (121, 5), (121, 8)])
def test_discrepancy_of_strength_2_is_below_random(n: int, d: int) -> None:
    sets = (latin_hypercube(n, d, seed=seed, kind="strength-2") for seed in range(20))
    assert np.median([centered_l2(rows) for rows in sets]) < random_discrepancy(n, d)


@each_sequence
@pytest.mark.parametrize("d", [2, 5, 8, 12])
@pytest.mark.parametrize("n", [16, 64, 256])
def test_as_even_as_the_engine_of_scipy(name: str, n: int, d: int) -> None:
    seeds = range(600 if d == 2 else 150)  # two columns vary most
    ours = np.median([centered_l2(SEQUENCES[name](n, d, seed=s)) for s in seeds])
    theirs = np.median([centered_l2(ENGINES[name](d, rng=s).random(n)) for s in seeds])
    assert 0.9 < ours / theirs < 1.1


@each_sequence
@pytest.mark.parametrize("scramble", [True, False])
def test_longer_and_wider_rows_contain_the_others(name: str, scramble: bool) -> None:
    rows = functools.partial(SEQUENCES[name], seed=3, scramble=scramble)
    whole = rows(100, 40)
    for d in (1, 2, 7, 8, 9, 16, 17, 33):
        np.testing.assert_array_equal(rows(100, d), whole[:, :d])
    for start in (0, 1, 2, 31, 32, 99, 100):
        np.testing.assert_array_equal(rows(100 - start, 40, start=start), whole[start:])


@each_sequence
def test_rows_far_out(name: str) -> None:
    rows = SEQUENCES[name]
    np.testing.assert_array_equal(
        rows(3, 2, seed=0, start=70_000), rows(70_003, 2, seed=0)[70_000:]
    )
    with pytest.raises(ValueError, match="`start` must be at least 0, but got -1"):
        rows(3, 2, seed=0, start=-1)


def test_exported_names() -> None:
    assert sorted(optuna_ext.points.__all__) == optuna_ext.points.__all__
    for name in optuna_ext.points.__all__:
        assert getattr(optuna_ext.points, name) is not None


def test_import_loads_neither_optuna_nor_torch_nor_scipy() -> None:
    code = (
        "import sys, optuna_ext.points; "
        "print(*{'optuna', 'scipy', 'torch'} & {name.split('.')[0] for name in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
