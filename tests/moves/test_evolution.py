from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats

from optuna_ext.moves import History
from optuna_ext.moves.evolution import breed
from optuna_ext.moves.evolution import Breeding
from optuna_ext.moves.evolution import duels
from optuna_ext.moves.evolution import earlier_generations
from optuna_ext.moves.evolution import elitism
from optuna_ext.moves.selection import tournament
from optuna_ext.moves.selection import truncation
from optuna_ext.moves.variation import Mutation
from optuna_ext.moves.variation import Scale
from optuna_ext.moves.variation import uniform_crossover


N_LEVELS = 4
SCALE = Scale(0, N_LEVELS, log=False, nonnegative=False)
Values = list[float]
some_values = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf]), min_size=1, max_size=20)


def level(k: int) -> float:
    return (k + 0.5) / N_LEVELS


def snap(column: int, u: float) -> float:
    del column
    return level(math.floor(N_LEVELS * u))


def history(
    values: Values,
    rows: np.ndarray | None = None,
    *,
    numbers: list[int] | None = None,
    pending: np.ndarray | None = None,
) -> History:
    """Return a history in which column 0 has an order and the others have none."""
    if rows is None:
        rows = np.random.default_rng(0).integers(N_LEVELS, size=(len(values), 3)) / N_LEVELS
        rows += 0.5 / N_LEVELS
    d = rows.shape[1]
    if pending is None:
        pending = np.empty((0, d))
    return History(
        rows=rows,
        values=np.array(values),
        ties=np.zeros(len(values)),
        numbers=np.arange(len(values)) if numbers is None else np.array(numbers),
        pending=pending,
        pending_numbers=np.arange(len(pending)) + 1000,
        n_values=(N_LEVELS,) * d,
        ordered=(True,) + (False,) * (d - 1),
    )


def child_of(past: History, survivors: list[int], seed: int = 0, **changes: Any) -> np.ndarray:
    breeding: dict[str, Any] = {
        "selection": tournament,
        "crossover": uniform_crossover,
        "n_parents": 2,
        "crossover_prob": 1.0,
        "mutation": Mutation(),
        "mutation_prob": None,
    }
    return breed(
        past,
        np.array(survivors),
        breeding=Breeding(**{**breeding, **changes}),
        scales=tuple(SCALE if ordered else None for ordered in past.ordered),
        snap=snap,
        rng=np.random.default_rng(seed),
    )


@given(values=some_values, size=st.integers(2, 8), data=st.data())
def test_the_elites_and_the_youngest_survive(
    values: Values, size: int, data: st.DataObject
) -> None:
    n_elites = data.draw(st.integers(0, size))
    survivors = elitism(history(values), size, n_elites=n_elites).tolist()
    assert len(set(survivors)) == len(survivors) == min(size, len(values))
    assert [values[i] for i in survivors] == sorted(values[i] for i in survivors)
    by_value = sorted(range(len(values)), key=lambda i: (values[i], -i))
    elites, others = by_value[:n_elites], by_value[n_elites:]
    assert set(survivors) == {*elites, *sorted(others)[::-1][: size - n_elites]}


def test_full_generational_replacement_keeps_the_last_generation() -> None:
    survivors = elitism(history([0.0, 1.0, 2.0, 9.0, 8.0, 7.0]), 3, n_elites=0)
    assert survivors.tolist() == [5, 4, 3]


@given(values=some_values, size=st.integers(2, 8))
def test_duels_are_those_of_a_population_with_places(values: Values, size: int) -> None:
    places: dict[int, int] = {}
    for i, value in enumerate(values):
        holder = places.get(i % size)
        if holder is None or value <= values[holder]:
            places[i % size] = i
    survivors = duels(history(values), size).tolist()
    assert sorted(survivors) == sorted(places.values())
    assert [values[i] for i in survivors] == sorted(values[i] for i in survivors)


@pytest.mark.parametrize(
    ("number", "seen"),
    [(4, [0, 1, 3]), (7, [0, 1, 3]), (8, [0, 1, 3, 4, 6]), (2, [0, 1, 3, 4, 6])],
)
def test_a_generation_sees_the_earlier_ones(number: int, seen: list[int]) -> None:
    past = history([5.0, 4.0, 3.0, 2.0, 1.0], numbers=[0, 1, 3, 4, 6])
    visible = earlier_generations(past, number, 4)
    assert visible.numbers.tolist() == seen
    assert len(visible.rows) == len(visible.values) == len(visible.ties) == len(seen)


def test_without_mutation_every_gene_is_a_parents() -> None:
    past = history([float(i) for i in range(10)])
    for seed in range(50):
        child = child_of(past, [2, 5, 7], seed, mutation_prob=0.0)
        assert all(child[c] in past.rows[[2, 5, 7], c] for c in range(3))


@pytest.mark.parametrize("selection", [tournament, truncation])
def test_parents_are_drawn_as_the_selection_says(
    selection: Callable[[np.ndarray], np.ndarray],
) -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    rows = np.array([[level(i % 4), level(i // 4)] for i in range(5)])
    past = history(values, rows)
    drawn = [
        child_of(past, [0, 1, 2, 3, 4], seed, selection=selection, n_parents=1, mutation_prob=0.0)
        for seed in range(500)
    ]
    counts = np.array([sum((row == child).all() for child in drawn) for row in rows])
    expected = 500 * selection(np.array(values))
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    assert stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-3


def test_parents_differ() -> None:
    parents_seen = []

    def crossover(parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        del rng
        parents_seen.append(parents)
        first: np.ndarray = parents[0]
        return first

    past = history([float(i) for i in range(6)], np.array([[level(i % 4)] for i in range(6)]))
    for seed in range(30):
        child_of(past, [0, 1, 2], seed, crossover=crossover, n_parents=3)
    assert all(len(np.unique(parents)) == 3 for parents in parents_seen)
    # Only one can be selected, so it is both parents.
    child_of(past, [0, 1], crossover=crossover, selection=truncation)
    assert (parents_seen[-1] == past.rows[0]).all()


def test_one_coordinate_changes_on_average() -> None:
    past = history([0.0], np.full((1, 10), level(1)))
    changed = [(child_of(past, [0], seed) != past.rows[0]).sum() for seed in range(1000)]
    # A child equal to its parent is not returned: Binomial(10, 1/10) given at least one.
    assert np.mean(changed) == pytest.approx(1 / (1 - 0.9**10), rel=0.05)


def test_no_child_repeats_a_row() -> None:
    """The whole space of 64 rows is bred once, with some of them pending."""
    pending = np.array([[level(0), level(0), level(0)], [level(3), level(2), level(1)]])
    rows = np.array([[level(1), level(1), level(1)]])
    for seed in range(55):
        past = history(list(np.arange(len(rows), dtype=float)), rows, pending=pending)
        rows = np.vstack([rows, child_of(past, [0], seed)])
    assert len(np.unique(np.vstack([rows, pending]), axis=0)) == 58
    assert np.isin(rows, [level(k) for k in range(N_LEVELS)]).all()


def test_a_used_up_space_is_repeated() -> None:
    past = history([0.0, 1.0, 2.0, 3.0], np.array([[level(k)] for k in range(4)]))
    assert child_of(past, [0, 1]) in past.rows


def test_a_child_inherits_what_its_branch_needs() -> None:
    """Column 0 chooses the branch: 0 has column 1, and 1 has column 2."""
    nan = np.nan
    a, b = level(0), level(1)
    rows = np.array([[a, level(2), nan, nan], [b, nan, level(3), nan], [b, nan, level(1), nan]])
    past = history([0.0, 1.0, 2.0], rows)
    children = [child_of(past, [0], seed, mutation_prob=0.5) for seed in range(200)]
    for child in children:
        assert np.isnan(child[3])  # nobody has it
    switched = [child[2] for child in children if child[0] == b]
    assert switched
    assert level(3) not in switched  # the best that has it, which was evaluated
    stayed = [child[2] for child in children if child[0] != b]
    assert stayed.count(level(3)) == pytest.approx(len(stayed) / 2, abs=0.15 * len(stayed))
