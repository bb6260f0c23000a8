from __future__ import annotations

from collections import Counter
from fractions import Fraction
import itertools
import math

from hypothesis import given
from hypothesis import strategies as st
import pytest

from optuna_ext.rungs import Bracket
from optuna_ext.rungs import bracket_of
from optuna_ext.rungs import hyperband
from optuna_ext.rungs import n_reductions
from optuna_ext.rungs import plan
from optuna_ext.rungs import ranking
from optuna_ext.rungs import score_at
from optuna_ext.rungs import successive_halving
from optuna_ext.rungs import survivors


NAN = math.nan


@pytest.mark.parametrize(
    ("low", "high", "factor", "n"),
    [
        (1, 1000, 10, 3),  # int(log(1000) / log(10)) is 2
        (1, 243, 3, 5),  # int(log(243) / log(3)) is 4
        (1, 81, 3, 4),
        (1, 80, 3, 3),
        (2, 10, 2, 2),
        (7, 7, 2, 0),
        (1, 3**30 - 1, 3, 29),
        (1, 3**30, 3, 30),
    ],
)
def test_the_number_of_reductions_is_exact(low: int, high: int, factor: int, n: int) -> None:
    assert n_reductions(low, high, factor) == n


@given(st.integers(1, 10**6), st.integers(0, 10**9), st.integers(2, 12))
def test_the_number_of_reductions_is_the_largest(low: int, more: int, factor: int) -> None:
    n = n_reductions(low, low + more, factor)
    assert low * factor**n <= low + more < low * factor ** (n + 1)


def test_the_bracket_of_dive_into_deep_learning() -> None:
    bracket = successive_halving(2, 10, reduction_factor=2)
    assert bracket.rungs == (2, 4, 8, 10)
    assert bracket.sizes == (8, 4, 2, 1)
    assert sum(bracket.sizes) == 15
    assert (bracket.cost(), bracket.cost(resume=False)) == (34, 58)


@pytest.mark.parametrize("max_resource", [1, 2, 5, 10, 16, 27, 81, 100, 1000])
@pytest.mark.parametrize("factor", [2, 3, 4, 7, 20])
@pytest.mark.parametrize("keep", [9, 16])
def test_the_default_rungs_keep_one_trial_in_so_many(
    max_resource: int, factor: int, keep: int
) -> None:
    bracket = successive_halving(None, max_resource, reduction_factor=factor, keep=keep)
    n_cuts = len(bracket.rungs) - 1
    assert bracket.rungs[-1] == max_resource
    assert list(bracket.rungs) == sorted(set(bracket.rungs))
    assert n_cuts <= 1 or factor**n_cuts <= keep
    assert abs(bracket.rungs[0] - max(Fraction(1), Fraction(max_resource, 16))) <= Fraction(1, 2)
    if max_resource >= 16:
        wanted = {2: 3, 3: 2} if keep == 9 else {2: 4, 3: 2, 4: 2}
        assert n_cuts == wanted.get(factor, 1)


def test_the_number_of_cuts_can_be_chosen() -> None:
    assert successive_halving(1, 81, reduction_factor=3, n_cuts=2).rungs == (1, 3, 81)
    assert successive_halving(None, 81, reduction_factor=3, n_cuts=1).rungs == (5, 81)
    assert successive_halving(1, 9, reduction_factor=3, n_cuts=99).rungs == (1, 3, 9)


def test_the_number_of_trials_can_be_chosen() -> None:
    bracket = successive_halving(1, 9, reduction_factor=3, n_trials=20)
    assert bracket.sizes == (20, 6, 2)


def test_the_brackets_of_hyperband() -> None:
    brackets = hyperband(1, 81, reduction_factor=3)
    assert [bracket.sizes for bracket in brackets] == [
        (81, 27, 9, 3, 1),
        (34, 11, 3, 1),
        (15, 5, 1),
        (8, 2),
        (5,),
    ]  # table 1 of Li et al. 2018
    assert [bracket.rungs[0] for bracket in brackets] == [1, 3, 9, 27, 81]
    assert all(bracket.rungs[-1] == 81 for bracket in brackets)
    assert len(hyperband(1, 243, reduction_factor=3)) == 6


@pytest.mark.parametrize("resource", [5, 9, 81])
def test_every_bracket_gets_its_share_at_any_time(resource: int) -> None:
    brackets = hyperband(1, resource, reduction_factor=3)
    total = sum(bracket.n_trials for bracket in brackets)
    counts: Counter[int] = Counter()
    for number in range(2 * total):
        counts[bracket_of(number, brackets)] += 1
        for index, bracket in enumerate(brackets):
            due = (number + 1) * bracket.n_trials / total
            assert abs(counts[index] - due) < 1.5
    assert [counts[i] for i in range(len(brackets))] == [2 * b.n_trials for b in brackets]


def test_the_plan_adds_up() -> None:
    table = plan(*hyperband(1, 27, reduction_factor=3))
    rows = table.rows()
    assert sum(row["trials"] for row in rows) == table.n_trials
    assert sum(row["steps"] for row in rows) == table.cost()
    assert sum(row["from scratch"] for row in rows) == table.cost(resume=False)
    assert str(table).splitlines()[-1].split() == [
        "total",
        str(table.n_trials),
        str(table.cost()),
        str(table.cost(resume=False)),
    ]


@given(
    st.lists(st.floats(allow_infinity=True, allow_nan=True), min_size=1, max_size=40),
    st.integers(2, 5),
)
def test_exactly_the_best_survive(values: list[float], factor: int) -> None:
    scores = {number: (value, value) for number, value in enumerate(values)}
    chosen = survivors(scores, factor)
    wanted = max(1, len(values) // factor)
    assert len(chosen) == min(wanted, sum(not math.isnan(v) for v in values))
    rest = [v for n, v in enumerate(values) if n not in chosen and not math.isnan(v)]
    assert all(values[a] <= b for a, b in itertools.product(chosen, rest))


def test_the_order_of_a_rung_is_never_open() -> None:
    scores = {5: (NAN, NAN), 4: (0.2, 0.3), 3: (0.2, 0.2), 2: (0.2, 0.2), 1: (NAN, NAN)}
    assert ranking(scores) == [2, 3, 4, 1, 5]
    assert survivors({0: (NAN, NAN)}, 2) == []


@pytest.mark.parametrize(
    ("reports", "rung", "best", "last"),
    [
        ({1: 0.5, 2: 0.3, 3: 0.4}, 3, 0.3, 0.4),
        ({5: 0.3, 10: 0.1}, 3, 0.3, 0.3),  # reported every five epochs
        ({1: NAN, 2: 0.3}, 2, 0.3, 0.3),
        ({1: 0.1, 2: NAN}, 2, NAN, NAN),  # it has diverged
    ],
)
def test_what_a_trial_had_at_a_rung(
    reports: dict[int, float], rung: int, best: float, last: float
) -> None:
    assert score_at(reports, rung, best_so_far=True) == pytest.approx((best, last), nan_ok=True)
    assert score_at(reports, rung, best_so_far=False) == pytest.approx((last, last), nan_ok=True)
    flipped = {step: -value for step, value in reports.items()}
    assert score_at(flipped, rung, best_so_far=True, maximize=True) == pytest.approx(
        (best, last), nan_ok=True
    )


def test_a_rung_not_reached() -> None:
    assert score_at({1: 0.5}, 2, best_so_far=True) is None
    assert score_at({}, 1, best_so_far=True) is None


def test_where_a_bracket_goes_on() -> None:
    bracket = Bracket(rungs=(2, 4, 8), reduction_factor=2, n_trials=4)
    assert [bracket.last_cut(step) for step in (1, 2, 3, 4, 7, 8)] == [None, 2, 2, 4, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_resource": 0}, "`min_resource` must be at least 1, but got 0."),
        ({"min_resource": 10}, "`max_resource` must be at least 10, but got 9."),
        ({"max_resource": 0}, "`max_resource` must be at least 1, but got 0."),
        ({"reduction_factor": 1}, "`reduction_factor` must be at least 2, but got 1."),
        ({"n_cuts": 0}, "`n_cuts` must be at least 1, but got 0."),
        ({"n_trials": 0}, "`n_trials` must be at least 1, but got 0."),
    ],
)
def test_what_is_out_of_range(arguments: dict[str, int], message: str) -> None:
    given = {"min_resource": 1, "max_resource": 9, "reduction_factor": 3, **arguments}
    with pytest.raises(ValueError, match=message):
        successive_halving(**given)


def test_resources_are_whole_numbers() -> None:
    with pytest.raises(TypeError, match="`max_resource` must be an integer, but got 2.5"):
        hyperband(1, 2.5, reduction_factor=3)  # type: ignore[arg-type]
