"""Searches over tables of learning curves, in virtual time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
import pytest
from typer.testing import CliRunner

from optuna_ext import SuccessiveHalving
from studies import compare_pruners
from studies import curves
from studies._curve_table import CurveTable
from studies._curve_table import Pool
from studies._errors import UserError
from studies._virtual_time import search


SPACE: dict[str, BaseDistribution] = {
    "x": FloatDistribution(0.0, 1.0),
    "kind": CategoricalDistribution(("a", "b")),
    "y": FloatDistribution(0.0, 1.0),  # of kind b
}


def table(n: int = 27, epochs: int = 9, *, maximize: bool = False) -> CurveTable:
    """Curves that fall to their ends in parallel, so that early ranks are the final ones."""
    params = [{"x": (i + 0.5) / n, "kind": "a"} for i in range(n)]
    ends = np.random.default_rng(0).permutation(n) / n
    values = ends[:, None] + 1 / np.arange(1, epochs + 1)
    return CurveTable(
        name="test",
        maximize=maximize,
        space=SPACE,
        params=[*params[:-1], {"x": 0.5, "kind": "b", "y": 0.25}],
        curves=-values if maximize else values,
    )


@pytest.mark.parametrize("maximize", [False, True])
def test_a_table_is_kept(maximize: bool, tmp_path: Path) -> None:
    original = table(maximize=maximize)
    original.curves[3, 5:] = np.nan
    original.save(tmp_path / "t.npz")
    loaded = CurveTable.load(tmp_path / "t.npz")
    assert (loaded.name, loaded.maximize, loaded.params) == ("test", maximize, original.params)
    assert loaded.space == original.space
    np.testing.assert_allclose(loaded.curves, original.curves, rtol=1e-6)
    assert np.isinf(loaded.losses()[3, -1])
    assert loaded.losses()[0, -1] == pytest.approx(table().curves[0, -1])


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "other.npz", curves=np.zeros((2, 2)))
    for name in ("text", "cut", "other"):
        with pytest.raises(UserError, match=f"{name}.npz is not a table of learning curves"):
            CurveTable.load(tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match=r"missing.npz cannot be read: No such file"):
        CurveTable.load(tmp_path / "missing.npz")


def test_every_configuration_is_taken_once_the_nearest_first() -> None:
    whole = table()
    pool = Pool(whole)
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.5, "kind": "b", "y": 0.9})
    study.enqueue_trial({"x": 0.0, "kind": "a", "y": 0.0})
    study.enqueue_trial({"x": 0.0, "kind": "a", "y": 0.0})
    assert [pool.take(study.ask()) for _ in range(3)] == [26, 0, 1]
    rest = [pool.take(study.ask()) for _ in range(24)]
    assert sorted([26, 0, 1, *rest]) == list(range(27))
    assert not len(pool)


def test_a_random_search_draws_every_configuration_once() -> None:
    whole = table()
    trial = optuna.create_study().ask()

    def order(seed: int) -> list[int]:
        pool = Pool(whole, seed=seed)
        return [pool.take(trial) for _ in range(27)]

    orders = np.array([order(seed) for seed in range(400)])
    assert order(0) == orders[0].tolist()
    assert (np.sort(orders, axis=1) == np.arange(27)).all()
    # Every place of an order is a uniform draw: the mean of 400 has a standard error of .39.
    np.testing.assert_allclose(orders.mean(axis=0), 13, atol=4 * 0.39)
    assert not trial.params
    found = search(whole, RandomSampler(seed=0), NopPruner(), workers=1, seed=0)
    assert found.config.tolist() == order(0)


def test_an_oracle_knows_the_end() -> None:
    original = table()
    original.curves[3, 5:] = np.nan
    foreseen = original.foreseen()
    np.testing.assert_array_equal(foreseen.curves, np.tile(original.curves[:, -1:], 9))
    assert foreseen.params == original.params


@pytest.mark.parametrize("workers", [1, 4])
def test_nothing_is_pruned(workers: int) -> None:
    found = search(table(), RandomSampler(seed=0), NopPruner(), workers=workers)
    assert sorted(found.config) == list(range(27))
    assert (found.n_started, found.n_epochs) == (27, 27 * 9)
    assert found.time.max() == math.ceil(27 / workers) * 9
    assert found.epochs.max() == 27 * 9


def test_promotions_go_on_where_they_were_paused() -> None:
    halving = SuccessiveHalving(
        min_resource=1,
        max_resource=9,
        reduction_factor=3,
        base_sampler=RandomSampler(seed=0),
        synchronous=True,
    )
    whole = table()
    found = search(whole, halving.sampler, halving.pruner, workers=1)
    assert found.n_epochs == 3 * halving.plan.cost()  # three rounds of nine
    assert len(found.config) == 3
    assert int(np.argmin(whole.losses()[:, -1])) in found.config


def test_an_end_by_budget() -> None:
    found = search(table(), RandomSampler(seed=0), NopPruner(), workers=2, max_epochs=30)
    assert 30 <= found.n_epochs < 30 + 2 * 9
    assert found.n_started < 27


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_comparison(folder: Path) -> None:
    table().save(folder / "t.npz")
    methods = [m for name in ("optuna-sha", "halving-all-rungs") for m in ("--method", name)]
    arguments = ["t.npz", *methods, "--seeds", "2", "--workers", "1"]
    done = CliRunner().invoke(compare_pruners.app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    none, sha, halving = json.loads(done.stdout)["t.npz"]
    assert [row["method"] for row in (none, sha, halving)] == [
        "none",
        "optuna-sha",
        "halving-all-rungs",
    ]
    assert (none["lost"], none["epochs_per_config"]) == (0, 9)
    assert halving["epochs_per_config"] < none["epochs_per_config"] / 2
    assert halving["lost"] == 0  # the best one of these curves is the best from the start
    assert halving["epochs"][0] < none["epochs"][0]
    assert halving["as_random"][0] > none["as_random"][0]
    assert all(row["epochs_to_sha"] <= none["epochs_to_sha"] for row in (sha, halving))
    done = CliRunner().invoke(compare_pruners.app, [*arguments, "--oracle"])
    assert done.exit_code == 0, done.output
    assert "t.npz: 1 workers, 2 seeds, oracle" in done.stdout
    assert "halving-all-rungs" in done.stdout
    assert "x 1.0" in done.stdout
    assert (folder / "runs" / "compare-pruners.html").exists()


def test_syne_tune_is_not_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_pruners, "is_installed", lambda: False)
    table(n=12, epochs=4).save(folder / "t.npz")
    done = CliRunner().invoke(compare_pruners.app, ["t.npz", "--method", "syne-tune-asha"])
    assert done.exit_code == 2
    assert "--method syne-tune-asha needs Syne Tune: pip install" in done.stderr
    assert compare_pruners._installed_methods() == [*compare_pruners.METHODS][:-1]


def test_syne_tune_takes_part() -> None:
    """Its rungs are 1, 3 and 9, and of curves in parallel the best one is never lost."""
    pytest.importorskip("syne_tune")
    pair = compare_pruners.METHODS["syne-tune-asha"](RandomSampler(seed=0), 9)
    whole = table()
    found = search(whole, *pair, workers=1)
    assert int(np.argmin(whole.losses()[:, -1])) in found.config
    assert found.n_epochs < 27 * 9 * 2 / 3


def test_every_method_works_on_a_table() -> None:
    whole = table(n=20)
    for name, make in compare_pruners.METHODS.items():
        if name == "syne-tune-asha":
            continue  # which not everybody has
        found = search(whole, *make(RandomSampler(seed=0), 9), workers=3)
        assert found.n_started == 20, name
        assert len(found.config), name


def test_curves_of_digits(folder: Path) -> None:
    arguments = ["digits", "--configs", "3", "--epochs", "2", "--seed", "1"]
    done = CliRunner().invoke(curves.app, arguments)
    assert done.exit_code == 0, done.output
    made = CurveTable.load(folder / "runs" / "curves-digits.npz")
    assert made.curves.shape == (3, 2)
    assert made.maximize
    assert ((made.curves > 0) & (made.curves <= 1)).all()
    assert {"lr", "n_layers", "units_0"} <= made.space.keys()


@pytest.mark.data
def test_curves_of_a_part_of_fashion(folder: Path, real_data: Path) -> None:
    arguments = ["small-fashion", "--configs", "2", "--epochs", "1", "--data-dir", str(real_data)]
    done = CliRunner().invoke(curves.app, [*arguments, "--out", "f.npz"])
    assert done.exit_code == 0, done.output
    assert CurveTable.load(folder / "f.npz").curves.shape == (2, 1)


def test_unknown_method(folder: Path) -> None:
    table().save(folder / "t.npz")
    done = CliRunner().invoke(compare_pruners.app, ["t.npz", "--method", "shaa"])
    assert done.exit_code != 0
    assert "shaa" in done.output
