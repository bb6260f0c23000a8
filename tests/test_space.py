from __future__ import annotations

from collections import Counter
from fractions import Fraction
import itertools
import math
import timeit
from typing import Any
import warnings

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
import pytest

from optuna_ext.points import sobol
from optuna_ext.space import from_unit
from optuna_ext.space import n_values
from optuna_ext.space import to_unit
from optuna_ext.space import UnitSpace


LAST = math.nextafter(1.0, 0.0)

units = st.one_of(
    st.sampled_from([0.0, 5e-324, 2.0**-53, 0.5, LAST]),
    st.floats(0.0, 1.0, exclude_max=True),
)


@st.composite
def floats(draw: st.DrawFn) -> FloatDistribution:
    ends = st.floats(-1e308, 1e308)
    low, high = sorted([draw(ends), draw(ends)])
    return FloatDistribution(low, high)


@st.composite
def log_floats(draw: st.DrawFn) -> FloatDistribution:
    ends = st.floats(1e-300, 1e300)
    low, high = sorted([draw(ends), draw(ends)])
    return FloatDistribution(low, high, log=True)


@st.composite
def float_steps(draw: st.DrawFn) -> FloatDistribution:
    step = draw(st.sampled_from([1e-6, 0.01, 0.05, 0.1, 0.25, 1 / 3, 0.7, 1.0, 1e3]))
    low = draw(st.integers(-1000, 1000)) * draw(st.sampled_from([0.0, 0.1, 0.25, 1.0, 7.0]))
    high = low + draw(st.floats(0.0, 5000.0)) * step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna says that it lowers `high` onto the grid
        return FloatDistribution(low, high, step=step)


@st.composite
def ints(draw: st.DrawFn) -> IntDistribution:
    ends = st.one_of(st.integers(-20, 20), st.integers(-(2**52), 2**52 - 1))
    low, high = sorted([draw(ends), draw(ends)])
    step = draw(st.one_of(st.just(1), st.integers(1, 9), st.integers(1, 2**40)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return IntDistribution(low, high, step=step)


@st.composite
def log_ints(draw: st.DrawFn) -> IntDistribution:
    ends = st.one_of(st.integers(1, 100), st.integers(1, 2**44), st.integers(2**44 - 99, 2**44))
    low, high = sorted([draw(ends), draw(ends)])
    return IntDistribution(low, high, log=True)


choices = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
categoricals = st.lists(choices, min_size=1, max_size=9).map(CategoricalDistribution)
discrete = st.one_of(float_steps(), ints(), log_ints(), categoricals)
continuous = st.one_of(floats(), log_floats())
numeric = st.one_of(floats(), log_floats(), float_steps(), ints(), log_ints())
any_kind = st.one_of(numeric, categoricals)


def same(a: object, b: object) -> bool:
    return a == b or (a != a and b != b)  # NaN is a choice too


@settings(deadline=None, max_examples=500)
@given(any_kind, units)
def test_values_are_inside_and_of_python_types(distribution: BaseDistribution, u: float) -> None:
    value = from_unit(distribution, np.float64(u))
    internal = distribution.to_internal_repr(value)
    if isinstance(distribution, CategoricalDistribution):
        assert any(value is choice for choice in distribution.choices)
        return
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    assert type(value) is (int if isinstance(distribution, IntDistribution) else float)
    assert distribution.low <= internal <= distribution.high
    assert distribution.to_external_repr(internal) == value  # survives Optuna's storage
    if isinstance(distribution, IntDistribution):
        assert (value - distribution.low) % distribution.step == 0


@settings(deadline=None, max_examples=1000)
@given(discrete, units)
def test_round_trip_of_discrete_values_is_exact(distribution: BaseDistribution, u: float) -> None:
    value = from_unit(distribution, u)
    center = to_unit(distribution, value)
    assert type(center) is float
    assert 0.0 <= center < 1.0
    assert same(from_unit(distribution, center), value)
    assert to_unit(distribution, from_unit(distribution, center)) == center


@settings(deadline=None, max_examples=500)
@given(continuous, units)
def test_round_trip_of_continuous_values(distribution: FloatDistribution, u: float) -> None:
    value = from_unit(distribution, u)
    back = to_unit(distribution, value)
    assert 0.0 <= back < 1.0
    again = from_unit(distribution, back)
    if distribution.log:
        assert math.isclose(again, value, rel_tol=1e-12)
    else:
        scale = max(abs(distribution.low), abs(distribution.high))
        assert abs(again / 2 - value / 2) <= 4e-16 * scale


@settings(deadline=None, max_examples=500)
@given(any_kind, units, units)
def test_monotone(distribution: BaseDistribution, u: float, v: float) -> None:
    low, high = (from_unit(distribution, x) for x in sorted([u, v]))
    if not isinstance(distribution, CategoricalDistribution):
        assert low <= high
        assert to_unit(distribution, low) <= to_unit(distribution, high)


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (IntDistribution(-2, 4), list(range(-2, 5))),
        (IntDistribution(0, 30, step=3), list(range(0, 31, 3))),
        (FloatDistribution(-0.5, 0.75, step=0.25), [-0.5, -0.25, 0.0, 0.25, 0.5, 0.75]),
        (CategoricalDistribution([None, True, 2, 0.5, "a"]), [None, True, 2, 0.5, "a"]),
        (CategoricalDistribution([True, 1, 1.0]), [True, 1, 1.0]),
    ],
)
def test_bins_are_equally_wide_and_half_open(
    distribution: BaseDistribution, values: list[Any]
) -> None:
    n = len(values)
    assert n_values(distribution) == n
    got = [from_unit(distribution, (i + 0.5) / (10 * n)) for i in range(10 * n)]
    assert got == list(itertools.chain.from_iterable([value] * 10 for value in values))
    assert [type(value) for value in got[::10]] == [type(value) for value in values]
    assert got[0] == from_unit(distribution, 0.0)
    assert got[-1] == from_unit(distribution, LAST)
    # The exact edges, where they are doubles.
    assert from_unit(IntDistribution(0, 3), 0.25) == 1
    assert from_unit(IntDistribution(0, 3), math.nextafter(0.25, 0.0)) == 0


@pytest.mark.parametrize("n", [2**50, 2**50 + 1, 2**52 + 1, 2**53 - 1, 2**53])
def test_large_int_ranges_are_exact(n: int) -> None:
    distribution = IntDistribution(0, n - 1)
    for u in np.random.default_rng(0).random(200).tolist() + [0.0, LAST]:
        assert from_unit(distribution, u) == math.floor(Fraction(u) * n)
    for value in [0, 1, n // 3, n // 2, *range(n - 200, n)]:
        assert from_unit(distribution, to_unit(distribution, value)) == value


def test_log_int_bins() -> None:
    distribution = IntDistribution(1, 100, log=True)
    width = math.log(100.5) - math.log(0.5)
    grid = [from_unit(distribution, (i + 0.5) / 100_000) for i in range(100_000)]
    counts = np.bincount(grid, minlength=101)[1:]
    expected = [(math.log(v + 0.5) - math.log(v - 0.5)) / width * 1e5 for v in range(1, 101)]
    np.testing.assert_allclose(counts, expected, atol=1.0)  # a bin's two edges


def test_extreme_ranges() -> None:
    wide = FloatDistribution(-1e308, 1e308)
    assert [from_unit(wide, u) for u in (0.0, 0.25, 0.5)] == [-1e308, -5e307, 0.0]
    assert to_unit(wide, -5e307) == 0.25
    assert to_unit(wide, 1e308) == LAST
    log = FloatDistribution(1e-300, 1e300, log=True)
    assert from_unit(log, 0.0) == pytest.approx(1e-300, rel=1e-12)
    assert from_unit(log, 0.5) == pytest.approx(1.0, rel=1e-12)
    assert from_unit(log, LAST) == pytest.approx(1e300, rel=1e-12)
    assert to_unit(log, 1e150) == pytest.approx(0.75)
    for high in (1e10, 1.0):  # neighbors, which have the same logarithm when they are large
        near = FloatDistribution(high, math.nextafter(high, math.inf), log=True)
        assert from_unit(near, to_unit(near, high)) in (near.low, near.high)


def test_step_that_does_not_divide_the_range() -> None:
    with pytest.warns(UserWarning, match="not divisible"):
        floats = FloatDistribution(0.0, 1.0, step=0.3)
    assert [from_unit(floats, u) for u in (0.0, 0.25, 0.5, LAST)] == [0.0, 0.3, 0.6, 3 * 0.3]
    with pytest.warns(UserWarning, match="not divisible"):
        ints = IntDistribution(1, 10, step=4)
    assert [from_unit(ints, u) for u in (0.0, 0.34, LAST)] == [1, 5, 9]


def test_values_typed_by_hand_are_found_on_a_float_grid() -> None:
    distribution = FloatDistribution(0.0, 1.0, step=0.1)
    assert 3 * 0.1 != 0.3
    assert to_unit(distribution, 0.3) == to_unit(distribution, 3 * 0.1) == 3.5 / 11


@pytest.mark.parametrize(
    ("distribution", "value"),
    [
        (FloatDistribution(0.0, 1.0), 1.5),
        (FloatDistribution(0.0, 1.0), math.nan),
        (FloatDistribution(0.0, 1.0, step=0.25), 0.3),
        (FloatDistribution(1.0, 2.0, log=True), -1.0),
        (IntDistribution(0, 10, step=2), 3),
        (IntDistribution(0, 10), 2.5),
        (IntDistribution(1, 10, log=True), 2.5),
        (IntDistribution(0, 10), -1),
        (IntDistribution(0, 10), "ten"),
        (CategoricalDistribution(["a", "b"]), "c"),
    ],
)
def test_values_outside_are_refused(distribution: BaseDistribution, value: object) -> None:
    with pytest.raises(ValueError, match=str(value)):
        to_unit(distribution, value)
    with pytest.raises(ValueError, match=f"^Parameter `x`: .*{value}"):
        UnitSpace({"x": distribution}).to_row({"x": value})


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        (IntDistribution(0, 2**53 + 1), r"2\*\*53"),
        (IntDistribution(-(2**53) - 1, 0), r"2\*\*53"),
        (IntDistribution(-(2**53), 2**53), r"2\*\*53"),
        (IntDistribution(2**60, 2**60 + 5), r"2\*\*53"),
        (IntDistribution(1, 2**44 + 1, log=True), r"2\*\*44"),
        (FloatDistribution(0.0, 1.0, step=1e-16), r"2\*\*50"),
        (FloatDistribution(-1e308, 1e308, step=1e300), r"2\*\*50"),
        (FloatDistribution(0.0, math.inf), "finite"),
        (FloatDistribution(-math.inf, 0.0), "finite"),
        (FloatDistribution(1.0, math.inf, log=True), "finite"),
    ],
)
def test_ranges_that_cannot_be_resolved_are_refused(
    distribution: FloatDistribution | IntDistribution, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_unit(distribution, 0.5)
    with pytest.raises(ValueError, match=message):
        to_unit(distribution, distribution.low)
    with pytest.raises(ValueError, match=f"^Parameter `x`: .*{message}"):
        UnitSpace({"x": distribution})


@pytest.mark.parametrize("u", [-0.1, 1.0, math.nan, math.inf])
def test_coordinates_outside_are_refused(u: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        from_unit(FloatDistribution(0.0, 1.0), u)
    with pytest.raises(ValueError, match=r"^Parameter `x`: `u`"):
        UnitSpace({"x": FloatDistribution(0.0, 1.0)}).to_params([u])


def test_unknown_distribution_is_refused() -> None:
    class Other(BaseDistribution):
        def to_internal_repr(self, value: Any) -> float:
            return float(value)

        def single(self) -> bool:
            return False

        def _contains(self, value: float) -> bool:
            return True

    for call in (lambda: from_unit(Other(), 0.5), lambda: to_unit(Other(), 0.5)):
        with pytest.raises(TypeError, match="FloatDistribution, IntDistribution or Categorical"):
            call()
    with pytest.raises(TypeError, match="^Parameter `x`: "):
        UnitSpace({"x": Other()})


def mixed_space() -> UnitSpace:
    return UnitSpace(
        {
            "layers": IntDistribution(1, 4),
            "fixed": FloatDistribution(0.5, 0.5),
            "lr": FloatDistribution(1e-5, 1.0, log=True),
            "only": CategoricalDistribution(["sgd"]),
            "momentum": FloatDistribution(0.0, 0.75, step=0.25),
            "activation": CategoricalDistribution(["relu", None]),
            "seven": IntDistribution(7, 7, log=True),
        }
    )


def test_single_valued_parameters_take_no_column() -> None:
    space = mixed_space()
    assert space.names == ("layers", "lr", "momentum", "activation")
    assert space.n_dims == len(space) == 4
    assert space.n_values == (4, None, 4, 2)
    params = space.to_params(np.array([0.99, 0.0, 0.5, 0.6]))
    assert list(params) == list(space.distributions)
    assert params == {
        "layers": 4,
        "fixed": 0.5,
        "lr": pytest.approx(1e-5),
        "only": "sgd",
        "momentum": 0.5,
        "activation": None,
        "seven": 7,
    }
    assert [type(value) for value in params.values()][:3] == [int, float, float]
    row = space.to_row(params)
    np.testing.assert_allclose(row, [0.875, 0.0, 0.625, 0.75], atol=1e-15)
    params.clear()
    assert len(space.to_params(row)) == 7  # every call returns a dict of its own


def test_space_without_columns() -> None:
    for space in (UnitSpace({}), UnitSpace({"only": CategoricalDistribution(["sgd"])})):
        assert space.names == ()
        assert space.to_row({}).shape == (0,)
        assert space.to_params([]) == {name: "sgd" for name in space.distributions}


def test_wrong_rows_and_params_are_refused() -> None:
    space = mixed_space()
    with pytest.raises(ValueError, match="must have 4 coordinates.*but got 3"):
        space.to_params([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="`lr`"):
        space.to_row({"layers": 1})


def test_later_changes_of_the_mapping_do_not_matter() -> None:
    distributions: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
    space = UnitSpace(distributions)
    distributions["y"] = FloatDistribution(0.0, 1.0)
    assert space.to_params([0.5]) == {"x": 0.5}


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.text(max_size=3), any_kind, max_size=6), st.data())
def test_space_round_trip(distributions: dict[str, BaseDistribution], data: st.DataObject) -> None:
    space = UnitSpace(distributions)
    for name, distribution in distributions.items():
        assert (name in space.names) == (not distribution.single())
    params = space.to_params([data.draw(units) for _ in space.names])
    again = space.to_params(space.to_row(params))
    assert list(params) == list(distributions)
    for name, distribution in distributions.items():
        if n_values(distribution) is not None:
            assert same(again[name], params[name])


@pytest.mark.parametrize("scramble", [False, True])
def test_sobol_rows_are_balanced_over_mixed_parameters(scramble: bool) -> None:
    space = UnitSpace(
        {
            "int": IntDistribution(1, 8),
            "category": CategoricalDistribution(["a", "b", None, 1]),
            "step": FloatDistribution(0.0, 1.5, step=0.1),
        }
    )
    params = [space.to_params(row) for row in sobol(32, 3, seed=1, scramble=scramble)]
    for name, n in zip(space.names, space.n_values, strict=True):
        assert n is not None
        counts = Counter(p[name] for p in params)
        assert list(counts.values()) == [32 // n] * n
    pairs = {(p["int"], p["category"]) for p in params}
    assert len(pairs) == 32  # each pair of the first two columns once


def test_from_unit_is_fast() -> None:
    distribution = FloatDistribution(1e-5, 1.0, log=True)
    seconds = min(timeit.repeat(lambda: from_unit(distribution, 0.3), number=1000, repeat=5))
    assert seconds / 1000 < 20e-6  # 0.4 microseconds on an idle core
