from __future__ import annotations

import sys
from typing import Any
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler
import pytest

from studies import run
from studies._catalog import make_pair
from studies._catalog import make_pruner
from studies._catalog import make_sampler
from studies._catalog import PAIRS
from studies._catalog import parse_assignments
from studies._catalog import PRUNERS
from studies._catalog import SAMPLERS
from studies._errors import UserError


if TYPE_CHECKING:
    from tests.studies.conftest import Toy

SPACE: dict[str, BaseDistribution] = {
    "x": FloatDistribution(0.0, 1.0, step=0.25),
    "n": IntDistribution(1, 7, step=3),
    "c": CategoricalDistribution(("a", "b")),
}
NEEDED: dict[str, dict[str, Any]] = {
    "warmup": {"first": "sobol", "n": 2, "then": "tpe"},
    "partial-fixed": {"fixed_params": {"x": 0.5}, "base_sampler": "random"},
    "percentile": {"percentile": 25.0},
    "patient": {"wrapped_pruner": "median", "patience": 1},
    "threshold": {"lower": 0.0},
}


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_named_sampler_runs(name: str) -> None:
    sampler = make_sampler(
        name, arguments=NEEDED.get(name), seed=1, n_trials=4, search_space=SPACE
    )
    study = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0, step=0.25)
        n = trial.suggest_int("n", 1, 7, step=3)
        return x + n + (trial.suggest_categorical("c", ("a", "b")) == "a")

    study.optimize(objective, n_trials=4)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 4


class Pair:
    """A sampler and a pruner that belong together."""

    def __init__(self, *, base_sampler: BaseSampler, seed: int | None = None) -> None:
        self.sampler = base_sampler
        self.pruner = MedianPruner(n_startup_trials=seed or 0)


def test_a_pair_comes_by_one_name_and_refuses_another_pruner(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PAIRS, "pair", f"{Pair.__module__}:Pair")
    monkeypatch.setitem(sys.modules, Pair.__module__, sys.modules[__name__])
    arguments = {"base_sampler": "tpe"}
    sampler, pruner = make_pair("pair", arguments=arguments, seed=3)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert isinstance(pruner, MedianPruner)
    shown = toy.arguments("--sampler", "pair", "--sampler-arg", "base_sampler=tpe", "--trials", 2)
    assert run.main(shown) == 0
    assert toy.states() == {"COMPLETE": 2}
    assert run.main([*shown, "--pruner", "median"]) == 2
    assert "sampler 'pair' brings its own pruner: leave out --pruner" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_every_named_pruner_decides(name: str) -> None:
    study = optuna.create_study(pruner=make_pruner(name, arguments=NEEDED.get(name)))
    trial = study.ask()
    trial.report(0.0, 0)
    assert trial.should_prune() in (True, False)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("sobl", {}, "unknown sampler 'sobl': did you mean 'sobol'?"),
        ("xxxxxxxx", {}, "unknown sampler 'xxxxxxxx': choose from approximate-gradient, "),
        ("tpe", {"n_startup_trial": 5}, "did you mean 'n_startup_trials'?"),
        ("tpe", {"n_startup_trials": "five"}, "n_startup_trials of 'tpe' must be int, not 'five'"),
        ("tpe", {"n_startup_trials": True}, "must be int, not True"),
        ("partial-fixed", {}, "needs --sampler-arg fixed_params=... and base_sampler=..."),
        ("no.such.module:Class", {}, "cannot import sampler 'no.such.module:Class'"),
        ("optuna.samplers:NoSampler", {}, "has no class 'NoSampler'"),
        ("optuna.pruners:NopPruner", {}, "must be a subclass of optuna's BaseSampler"),
        ("hammersley", {"n_points": 0}, "sampler 'hammersley': "),
        ("grid", {}, "needs --sampler-arg search_space=..."),
    ],
)
def test_what_is_wrong_with_a_sampler_is_said(
    name: str, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        make_sampler(name, arguments=arguments)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["grid", "brute-force"])
def test_a_grid_of_a_continuous_space_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="parameter 'lr' of the objective is continuous"):
        make_sampler(name, search_space={"lr": FloatDistribution(0.0, 1.0)})


def test_a_grid_holds_every_value_of_the_space() -> None:
    study = optuna.create_study(sampler=make_sampler("grid", search_space=SPACE))
    study.optimize(lambda t: _value(t), n_trials=100)
    points = {tuple(t.params.items()) for t in study.trials}
    assert len(points) == len(study.trials) == 5 * 3 * 2


def _value(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0.0, 1.0, step=0.25)
    trial.suggest_categorical("c", ("a", "b"))
    return x + trial.suggest_int("n", 1, 7, step=3)


def _first_point(name: str, seed: int, stream: int) -> float:
    study = optuna.create_study(
        study_name="s", sampler=make_sampler(name, seed=seed, stream=stream)
    )
    return study.ask().suggest_float("x", 0.0, 1.0)


def test_streams_draw_different_random_numbers_but_the_same_design() -> None:
    assert _first_point("random", 1, 0) != _first_point("random", 1, 1)
    assert _first_point("random", 1, 2) == _first_point("random", 1, 2)
    assert _first_point("sobol", 1, 0) == _first_point("sobol", 1, 7)


def test_the_first_stream_is_the_seed_itself() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    assert _first_point("random", 3, 0) == study.ask().suggest_float("x", 0.0, 1.0)


def test_a_finite_design_gets_its_size_unless_the_user_gave_one() -> None:
    for arguments, n in (({}, 4), ({"n_points": 3}, 3)):
        sampler = make_sampler("hammersley", arguments=arguments, seed=0, n_trials=4)
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda t: t.suggest_float("x", 0.0, 1.0), n_trials=n - 1)
        assert not sampler.is_exhausted(study)  # type: ignore[attr-defined]
        study.optimize(lambda t: t.suggest_float("x", 0.0, 1.0), n_trials=1)
        assert sampler.is_exhausted(study)  # type: ignore[attr-defined]


def test_values_are_python_literals_or_else_texts() -> None:
    texts = ["a=1", "b=1e-3", "c=True", "d=relu", "e={'x': [1, 2]}", "f=x=y", "g="]
    assert parse_assignments("--param", texts) == {
        "a": 1,
        "b": 1e-3,
        "c": True,
        "d": "relu",
        "e": {"x": [1, 2]},
        "f": "x=y",
        "g": "",
    }


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a=1", "a=2"]])
def test_bad_assignments_are_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match="--param"):
        parse_assignments("--param", texts)


def test_workers_that_promote_draw_different_numbers() -> None:
    points = set()
    for stream in (0, 1, 2):
        sampler, pruner = make_pair(
            "halving", arguments={"max_resource": 9}, seed=0, stream=stream
        )
        study = optuna.create_study(sampler=sampler, pruner=pruner)
        points.add(study.ask().suggest_float("x", 0, 1))
    assert len(points) == 3
