from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
import sys
from typing import Any

import pytest
import torch
from torch import nn

from optuna_ext import Schedule


POINTS: dict[int, dict[str, Any]] = {
    1: {"lr": 0.1, "momentum": 0.9, "units": 8, "kind": "sgd"},
    4: {"lr": 0.001, "momentum": 0.9, "units": 8, "kind": "sgd"},
    9: {"lr": 0.1, "momentum": 0.5, "units": 16, "kind": "adam"},
}


@pytest.mark.parametrize("seed", range(30))
def test_at_every_step_are_the_values_last_recorded(seed: int) -> None:
    """However they are stored, copied or written down."""
    rng = random.Random(seed)
    choices = [0.1, 1, 10**30, math.inf, "a", "1", "", None, True, -0.0]
    made = [
        (rng.randint(1, 5), {name: rng.choice(choices) for name in rng.sample("abc", 2)})
        for _ in range(rng.randint(0, 20))
    ]
    schedule = Schedule()
    expected: list[dict[str, Any]] = []
    step = 0
    for gap, values in made:
        gap = 1 if not expected else gap  # the first point is that of step 1
        expected += [expected[-1]] * (gap - 1) + [values] if expected else [values]
        step += gap
        schedule.record(step, **values)
    assert schedule.last == len(expected)
    copies = [schedule, Schedule.from_dict(schedule.to_dict())]
    copies.append(Schedule.from_json(schedule.to_json()))
    for copy in copies:
        assert copy == schedule
        assert [copy.at(step + 1) for step in range(len(expected))] == expected
        assert [values for steps, values in copy for _ in steps] == expected
        assert [step for steps, _ in copy for step in steps] == [*range(1, len(expected) + 1)]


def test_only_changes_take_space() -> None:
    schedule = Schedule()
    for step in range(1, 1001):
        schedule.record(step, lr=0.1 if step < 500 else 0.2)
    assert schedule.to_dict() == {"points": {1: {"lr": 0.1}, 500: {"lr": 0.2}}, "last": 1000}
    assert repr(schedule) == "Schedule({1: {'lr': 0.1}, 500: {'lr': 0.2}}, last=1000)"
    assert eval(repr(schedule)) == schedule


@pytest.mark.parametrize("step", [0, -1, 13])
def test_no_step_outside(step: int) -> None:
    with pytest.raises(ValueError, match=f"`step` must be in 1..12, but got {step}"):
        Schedule(POINTS, last=12).at(step)
    with pytest.raises(ValueError, match="`step` must be in 1..0, but got"):
        Schedule().at(step)


def test_steps_are_recorded_in_order() -> None:
    schedule = Schedule(POINTS, last=12)
    for step in (9, 12):
        with pytest.raises(ValueError, match=f"`step` must be at least 13, but got {step}"):
            schedule.record(step, lr=0.1)
    with pytest.raises(ValueError, match="`last` must be at least 9, but got 8"):
        Schedule(POINTS, last=8)
    with pytest.raises(ValueError, match="`step` must be at least 1, but got 0"):
        Schedule({0: {}})


def test_as_a_table() -> None:
    pandas = pytest.importorskip("pandas")
    schedule = Schedule(POINTS, last=12)
    rows = [*csv.DictReader(io.StringIO(schedule.to_csv()))]
    assert rows[1] == {
        "first": "4", "last": "8", "lr": "0.001", "momentum": "0.9", "units": "8", "kind": "sgd"
    }  # fmt: skip
    frame = schedule.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["last"].tolist() == [3, 8, 12]
    assert frame["kind"].tolist() == ["sgd", "sgd", "adam"]
    assert frame.columns.tolist() == ["first", "last", *POINTS[1]]
    assert json.loads(schedule.to_json())["last"] == 12


def test_the_mean_of_several() -> None:
    one = Schedule(
        {1: {"lr": 0.1, "units": 4, "kind": "a"}, 3: {"lr": 0.3, "units": 4, "kind": "a"}}
    )
    two = Schedule({2: {"lr": 0.001, "units": 9, "kind": "a"}}, last=5)
    mean = Schedule.mean([one, two])
    assert (mean.last, [*mean][0][0].start) == (3, 2)
    for step in (2, 3):
        values = [schedule.at(step) for schedule in (one, two)]
        assert mean.at(step)["lr"] == pytest.approx(sum(v["lr"] for v in values) / 2)
        assert (mean.at(step)["units"], mean.at(step)["kind"]) == (6, "a")
    geometric = Schedule.mean([one, two], geometric=["lr"])
    assert geometric.at(2)["lr"] == pytest.approx(math.sqrt(0.1 * 0.001))
    assert Schedule.mean([one]) == one


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ([], "at least one, with a step that all hold"),
        ([Schedule(), Schedule(POINTS)], "at least one, with a step that all hold"),
        ([Schedule({1: {}}), Schedule({5: {}})], "at least one, with a step that all hold"),
        ([Schedule({1: {"a": 1}}), Schedule({1: {"b": 1}})], "must have the same hyperpar"),
        ([Schedule({1: {"a": "x"}}), Schedule({1: {"a": "y"}})], "must agree in 'a', of which"),
        ([Schedule({1: {"a": True}}), Schedule({1: {"a": False}})], "must agree in 'a', of"),
    ],
)
def test_there_is_no_mean(schedules: list[Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.mean(schedules)


def train(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> None:
    optimizer.zero_grad()
    weight.square().sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def test_an_optimizer_follows_like_one_set_by_hand() -> None:
    schedule = Schedule(
        {
            1: {"lr": 0.1, "beta1": 0.9, "weight_decay": 0.1, "units": 3},
            3: {"lr": 0.2, "beta1": 0.5, "weight_decay": 0.0, "units": 3},
        },
        last=5,
    )
    driven, by_hand = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, oracle = (torch.optim.Adam([weight]) for weight in (driven, by_hand))
    driver = schedule.drive(optimizer)
    for step in range(1, 8):
        first = step < 3
        group = oracle.param_groups[0]
        group["lr"], group["betas"] = (0.1, (0.9, 0.999)) if first else (0.2, (0.5, 0.999))
        group["weight_decay"] = 0.1 if first else 0.0
        assert driver.get_last_lr() == [group["lr"]]
        train(oracle, by_hand)
        train(optimizer, driven)
        driver.step()
        assert torch.equal(driven, by_hand)


def test_a_driver_goes_on_where_it_was() -> None:
    schedule = Schedule({1: {"rate": 0.1}, 4: {"rate": 0.2}}, last=9)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    driver = schedule.drive(optimizer, names={"rate": "lr"})
    for _ in range(3):
        driver.step()
    assert driver.get_last_lr() == [0.2]
    other = schedule.drive(optimizer, names={"rate": "lr"})
    assert other.get_last_lr() == [0.1]
    other.load_state_dict(driver.state_dict())
    assert other.get_last_lr() == [0.2]
    assert schedule.drive(optimizer, names={"rate": "lr"}, step=3).get_last_lr() == [0.2]


def test_a_learning_rate_in_a_tensor_is_changed_in_place() -> None:
    lr = torch.tensor(1.0)
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=lr)
    Schedule({1: {"lr": 0.25}}).drive(optimizer)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.25


def test_nothing_to_drive() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ValueError, match=r"the schedule has \['rate'\], but the optimizer's opt"):
        Schedule({1: {"rate": 0.1}}).drive(optimizer)


def test_a_figure_of_steps() -> None:
    figure = Schedule(POINTS, last=12).plot()
    drawn = {trace.name: trace for trace in figure.data}
    assert list(drawn) == ["lr", "momentum", "units"]  # numbers only
    assert list(drawn["lr"].x) == [1, 4, 9, 13]
    assert list(drawn["lr"].y) == [0.1, 0.001, 0.1, 0.1]
    assert drawn["lr"].line.shape == "hv"
    assert (figure.layout.yaxis.type, figure.layout.yaxis2.type) == ("log", "linear")
    assert figure.layout.yaxis.exponentformat == "power"  # 1e-6, not 1 micro
    assert not Schedule().plot().data


def test_an_empty_schedule() -> None:
    assert list(Schedule()) == []
    assert Schedule().to_csv() == "first,last\n"


def test_without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    with pytest.raises(ImportError, match="drawing a schedule needs plotly: pip install"):
        Schedule(POINTS).plot()


@pytest.mark.parametrize("n", [2, 7, 50])
@pytest.mark.parametrize("wide", [False, True])
def test_a_thinned_schedule_stays_close(n: int, wide: bool) -> None:
    rng = random.Random(n)
    x, points = 10.0, dict[int, Any]()
    for step in range(3, 400, 2):
        x += rng.gauss(0, 0.02) if step > 100 else 0.1
        points[step] = {"lr": math.exp(x) if wide else x, "kind": "ab"[step > 200]}
    schedule = Schedule(points, last=450)
    thinned = schedule.thinned(n)
    assert thinned.last == 450
    kept = {steps.start: values for steps, values in thinned}
    assert kept.items() <= points.items()
    assert {3, 399} <= kept.keys()
    assert len(kept) <= n
    scale = math.log if wide else float
    values = [scale(point["lr"]) for point in points.values()]
    way = sum(abs(b - a) for a, b in itertools.pairwise(values))
    for step in range(3, 451):  # steps, lr and kind have a share of 1/3 each
        error = abs(scale(thinned.at(step)["lr"]) - scale(schedule.at(step)["lr"]))
        assert error <= 3 * way / (n - 1) * (1 + 1e-9)


def test_a_short_schedule_is_not_thinned() -> None:
    for schedule in (Schedule(), Schedule(POINTS, last=12)):
        thinned = schedule.thinned(3)
        assert thinned == schedule
        thinned.record(20, lr=1.0)
        assert thinned != schedule  # a copy
    with pytest.raises(ValueError, match="`n` must be at least 2, but got 1"):
        Schedule(POINTS).thinned(1)
