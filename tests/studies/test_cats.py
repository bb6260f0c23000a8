"""The whole grid of cat classifiers, small and real."""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import json
from pathlib import Path
import shutil
import signal
from typing import Any

import numpy as np
from numpy.typing import NDArray
import optuna
import pytest
import torch

from objectives import cat_grid
from objectives import cats
from objectives import data
from studies._problems import find_problem
from studies._problems import Settings
from studies.cats import main


FILE = Path("runs/cats-grid.npz")
RESULTS = ("test", "train", "testloss", "trainloss")
REAL_GRID = "cat_grid_f64_seed1.npz"


@pytest.fixture
def small_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the grid to two levels of five parameters, and the data to noise."""
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.random((21, 40))), torch.arange(21) % 3 == 0
    rows = data.Data(
        train_x=x[:15],
        train_y=y[:15].long(),
        valid_x=x[15:],
        valid_y=y[15:].long(),
        test_x=x[15:],
        test_y=y[15:].long(),
    )
    levels = {name: both[::3][:2] for name, both in cats.LEVELS.items()}
    monkeypatch.setattr(cats, "LEVELS", {**levels, "iterations": (100, 200), "lr": (0.3, 0.9)})
    monkeypatch.setattr(data, "load", lambda name, **settings: rows)
    monkeypatch.chdir(tmp_path)


def spy(monkeypatch: pytest.MonkeyPatch, *, interrupted_at: int | None = None) -> list[int]:
    """Remember how many networks train together; let Ctrl-C come in the midst of a training."""
    trained: list[int] = []
    train = cat_grid.train_together

    def train_together(
        networks: Sequence[cat_grid.Network], **settings: Any
    ) -> list[dict[int, cats.Result]]:
        trained.append(len(networks))
        if len(trained) == interrupted_at:
            signal.raise_signal(signal.SIGINT)
        return train(networks, **settings)

    monkeypatch.setattr(cat_grid, "train_together", train_together)
    return trained


def read(path: Path) -> dict[str, NDArray[np.float64]]:
    with np.load(path) as file:
        return dict(file)


@pytest.mark.usefixtures("small_grid")
def test_a_grid_has_the_result_of_every_point(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = spy(monkeypatch)
    assert main(["--grid", "--json"]) == 0
    assert trained == [4] * 4  # once for both levels of iterations
    summary = json.loads(capsys.readouterr().out)
    grid = read(FILE)
    for key, levels in zip(("ITR", "LR", "H1", "H2", "H3"), cats.LEVELS.values(), strict=True):
        assert tuple(grid[key]) == levels
    for cell in itertools.product(range(2), repeat=5):
        iterations, lr, h1, h2, h3 = (
            levels[i] for levels, i in zip(cats.LEVELS.values(), cell, strict=True)
        )
        result = cats.train_curve(
            lr=lr, h1=int(h1), h2=int(h2), h3=int(h3), iterations=int(iterations)
        )[int(iterations)]
        assert grid["test"][cell] == result.test.accuracy
        assert grid["train"][cell] == result.train.accuracy
        assert grid["testloss"][cell] == pytest.approx(result.test.loss, rel=1e-9)
        assert grid["trainloss"][cell] == pytest.approx(result.train.loss, rel=1e-9)
    assert summary["best"] == grid["test"].max()
    assert len(summary["best_cells"]) == (grid["test"] == summary["best"]).sum()
    assert summary["constant"] == pytest.approx(4 / 6)  # of the test images, 2 are of class 1
    assert summary["constant_cells"] == np.isclose(grid["test"], 4 / 6).sum()
    assert (summary["networks"], summary["trained"]) == (16, 16)


@pytest.mark.usefixtures("small_grid")
def test_ctrl_c_keeps_what_is_trained_and_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--grid", "--storage", "whole.npz"]) == 0
    trained = spy(monkeypatch, interrupted_at=3)
    assert main(["--grid"]) == 130
    assert "12 of 16 networks" in capsys.readouterr().out
    assert np.isnan(read(FILE)["test"]).sum() == 2 * 4
    assert main(["--grid"]) == 0
    assert trained == [4] * 4
    assert "16 networks" in capsys.readouterr().out
    for name in RESULTS:
        np.testing.assert_array_equal(read(FILE)[name], read(Path("whole.npz"))[name])
    assert main(["--grid"]) == 0  # says what came out
    assert trained == [4] * 4
    assert [path.name for path in FILE.parent.iterdir()] == [FILE.name]


@pytest.mark.usefixtures("small_grid")
def test_what_is_trained_survives_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def train_together(
        networks: Sequence[cat_grid.Network], **settings: Any
    ) -> list[dict[int, cats.Result]]:
        if networks[0].hidden[1] != cats.LEVELS["h2"][0]:
            raise RuntimeError("the machine breaks down")
        return train(networks, **settings)

    train = cat_grid.train_together
    monkeypatch.setattr(cat_grid, "train_together", train_together)
    with pytest.raises(RuntimeError, match="breaks down"):
        main(["--grid"])
    assert np.isfinite(read(FILE)["test"]).sum() == 4 * 2  # levels of iterations


@pytest.mark.usefixtures("small_grid")
def test_seeds_and_layers_have_files_of_their_own() -> None:
    assert main(["--grid"]) == 0
    assert main(["--grid", "--seed", "2"]) == 0
    assert main(["--grid", "--hidden-layers", "2"]) == 0
    grids = {1: read(FILE), 2: read(Path("runs/cats-grid-seed2.npz"))}
    losses = {
        seed: cats.train_curve(lr=0.3, h1=10, h2=3, h3=5, iterations=200, seed=seed)[
            200
        ].train.loss
        for seed in grids
    }
    assert losses[1] != losses[2]
    for seed, grid in grids.items():
        assert grid["trainloss"][1, 0, 0, 0, 1] == pytest.approx(losses[seed], rel=1e-9)
    shallow = read(Path("runs/cats-grid-2-layers.npz"))
    assert shallow["test"].shape == (2, 2, 2, 2)
    assert "H3" not in shallow
    curve = cats.train_curve(lr=0.9, h1=10, h2=3, h3=None, iterations=200)
    loss = curve[200].train.loss
    assert shallow["trainloss"][1, 1, 0, 0] == pytest.approx(loss, rel=1e-9)


@pytest.mark.usefixtures("small_grid")
def test_samplers_are_compared_on_a_trained_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    spy(monkeypatch, interrupted_at=1)
    assert main(["--grid", "--hidden-layers", "2", "--storage", "own.npz"]) == 130
    path = Path("own.npz").resolve()
    with pytest.raises(Exception, match="is not yet trained"):
        find_problem("cats-grid", Settings(data_dir=path))
    assert main(["--grid", "--hidden-layers", "2", "--storage", "own.npz"]) == 0
    problem = find_problem("cats-grid", Settings(data_dir=path))
    accuracy = read(path)["test"]
    cell = {"ITR": 1, "LR": 0, "H1": 1, "H2": 0}
    assert problem.space is not None
    assert list(problem.space) == list(cell)
    value = problem.instance(0)(optuna.trial.FixedTrial(cell))
    assert value == pytest.approx(100 * accuracy[tuple(cell.values())])


@pytest.mark.usefixtures("small_grid")
def test_mistakes_are_one_sentence_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, sentence in {
        ("--sampler", "tpe"): "--sampler is for studies, not for --grid",
        ("--no-figure",): "--no-figure is for studies",
        ("--fidelity",): "--fidelity is for studies",
        ("--hidden-layers", "4"): "--hidden-layers must be 2 or 3, not 4",
        ("--device", "cuda:99"): "cuda:99",
        ("--storage", "grid.db"): "must be an .npz file, not 'grid.db'",
        ("--storage", "no/such/folder.npz"): "cannot write 'no/such/folder.npz'",
    }.items():
        assert main(["--grid", *flags]) == 2
        err = capsys.readouterr().err
        assert sentence in err
        assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    Path("other.npz").write_text("text")
    assert main(["--grid", "--storage", "other.npz"]) == 2
    assert "is not a grid" in capsys.readouterr().err
    assert main(["--grid", "--storage", "one.npz"]) == 0
    assert main(["--grid", "--storage", "one.npz", "--seed", "2"]) == 2
    assert "'one.npz' is a grid with seed=1, not 2" in capsys.readouterr().err


def test_missing_data_are_noticed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--grid", "--data-dir", "."]) == 2
    assert "OPTUNA_EXT_DATA" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.data
@pytest.mark.slow
def test_two_processes_train_a_slab_of_the_real_grid_exactly(
    real_data: Path, tmp_path: Path
) -> None:
    """The oracle was trained by independent code.

    Gradient descent is chaotic here: of all 3125 losses, one of 700 iterations grows the last bit
    to 8e-6; it is not in this slab.
    """
    oracle = read(real_data / REAL_GRID)
    slab = np.s_[:, 3, :, 2, :]
    unfinished = {name: oracle[name].copy() for name in RESULTS}
    for values in unfinished.values():
        values[slab] = np.nan
    path = tmp_path / "grid.npz"
    np.savez(path, seed=1, seconds=0.0, **unfinished)  # type: ignore[arg-type]
    command = ["--grid", "--workers", "2", "--data-dir", str(real_data), "--storage", str(path)]
    assert main(command) == 0
    grid = read(path)
    np.testing.assert_allclose(grid["test"], oracle["test"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(grid["train"], oracle["train"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(grid["testloss"], oracle["testloss"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(grid["trainloss"], oracle["trainloss"], rtol=0, atol=1e-9)
    shutil.copy(path, tmp_path / REAL_GRID)
    assert find_problem("cats-grid", Settings(data_dir=tmp_path)).space is not None
