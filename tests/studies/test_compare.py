from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
import re

import numpy as np
import optuna
import pytest
from typer.testing import CliRunner

from optuna_ext.points.discrepancy import centered_l2
from optuna_ext.points.discrepancy import min_distance
import studies
from studies._designs import designs_figure
from studies._designs import draw_designs
from studies._figures import curves_figure
from studies._figures import spans_decades
from studies._problems import find_problem
from studies._problems import Settings
from studies.compare import app


SMALL = ["--trials", "8", "--seeds", "3", "--dims", "2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _compare(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def _grid(folder: Path) -> np.ndarray:
    """Write a table like the trained grid: accuracies are fiftieths, worst at the first cell."""
    accuracy: np.ndarray = (34 + np.indices((5,) * 5).sum(axis=0) / 20 * 50) // 2 / 50
    np.savez(folder / "cat_grid_f64_seed1.npz", test=accuracy, testloss=1 - accuracy)
    return accuracy


def test_table_has_a_row_per_sampler_and_the_page_a_curve() -> None:
    output = _compare("--sampler", "random", "--sampler", "lhs:kind=centered", *SMALL)
    rows = [line.split() for line in output.splitlines() if line.startswith((" random", " lhs"))]
    assert [row[0] for row in rows] == ["random", "lhs:kind=centered"]
    for header in ("@2", "@4", "@8", "mean ± se", "rank", "beats"):
        assert header in output
    page = Path("runs/compare-sphere.html").read_text(encoding="utf-8")
    assert "lhs:kind=centered" in page
    assert "cdn.plot" not in re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert len(page) > 1_000_000  # plotly.js is inside


def test_json_and_csv_tell_the_same() -> None:
    document = json.loads(
        _compare("--sampler", "sobol", "--sampler", "tpe", "--json", "--csv", "c.csv", *SMALL)
    )
    assert (document["direction"], document["trials"], document["seeds"]) == (
        "minimize",
        8,
        [0, 1, 2],
    )
    with Path("c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 8
    for standing in document["samplers"]:
        own = [row for row in rows if row["sampler"] == standing["sampler"]]
        for seed in "012":
            best = [float(row["best"]) for row in own if row["seed"] == seed]
            values = [float(row["value"]) for row in own if row["seed"] == seed]
            assert best == [min(values[: i + 1]) for i in range(8)]
        finals = [float(row["best"]) for row in own if row["trial"] == "7"]
        assert standing["at"]["8"]["mean"] == pytest.approx(np.mean(finals))


def test_equal_commands_give_equal_values() -> None:
    for name in ("a.csv", "b.csv"):
        _compare("--on", "mixed", "--sampler", "random", "--csv", name, *SMALL)
    assert Path("a.csv").read_text() == Path("b.csv").read_text()


def test_a_sampler_without_a_plan_is_beaten_by_one_that_learns() -> None:
    document = json.loads(
        _compare("--sampler", "random", "--sampler", "tpe", "--json", "--seeds", "6")
    )
    random, tpe = document["samplers"]
    assert tpe["at"]["100"]["median"] < random["at"]["100"]["median"]
    assert tpe["wins"] == 1
    assert (tpe["rank"], random["rank"]) == (1, 2)


def test_cats_grid_is_looked_up_in_percent(tmp_path: Path) -> None:
    accuracy = _grid(tmp_path)
    problem = find_problem("cats-grid", Settings(data_dir=tmp_path))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(problem.instance(0), n_trials=20)
    for trial in study.trials:
        cell = tuple(trial.params.values())
        assert trial.value == round(100 * accuracy[cell])
        assert trial.user_attrs["loss"] == 1 - accuracy[cell]
    assert list(study.trials[0].params) == ["ITR", "LR", "H1", "H2", "H3"]


def test_cats_grid_counts_evaluations_to_its_targets(tmp_path: Path) -> None:
    _grid(tmp_path)
    output = _compare("--on", "cats-grid", "--data-dir", str(tmp_path), "--at", "1,2", *SMALL)
    assert "maximize cats-grid" in output
    assert re.search(r"sampler +80 +82 +84", output)
    assert ">8 (0%)" in output
    document = json.loads(
        _compare(
            *("--on", "cats-grid", "--data-dir", str(tmp_path), "--targets", "34,50", "--json"),
            *SMALL,
        )
    )
    first, _ = document["samplers"][0]["targets"]
    assert first == {"target": 34, "evaluations": 1, "share": 1}


@pytest.mark.data
def test_real_cats_grid_holds_the_published_rows(real_data: Path) -> None:
    objective = find_problem("cats-grid", Settings(data_dir=real_data)).instance(0)
    # Mahto & Chauhan, Table 2: 300 iterations, lr .0077, layers 15, 7 and 6; then 15, 5 and 6.
    start = {"ITR": 1, "LR": 3, "H1": 1, "H2": 2, "H3": 4}
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(start)
    study.enqueue_trial({**start, "H2": 1})
    study.optimize(objective, n_trials=2)
    assert [trial.value for trial in study.trials] == [78, 82]
    values = [
        objective(optuna.trial.FixedTrial(dict(zip(start, cell, strict=True))))
        for cell in np.ndindex((5,) * 5)
    ]
    assert max(values) == 84
    assert values.count(84) == 5


def test_own_objective_trains_with_the_arguments_given(tmp_path: Path) -> None:
    (tmp_path / "compare_objectives.py").write_text(
        "def loss(trial, *, epochs, scale=1.0):\n"
        "    return scale * epochs + 0 * trial.suggest_float('x', 0, 1)\n"
    )
    document = json.loads(
        _compare(
            *("--on", "compare_objectives.py:loss", "--epochs", "3", "--arg", "scale=2", "--json"),
            *("--trials", "2", "--seeds", "1"),
        )
    )
    assert document["samplers"][0]["at"]["2"]["mean"] == 6
    assert document["figure"] == os.path.join("runs", "compare-compare-objectives-py-loss.html")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sampler", "sobo"], "unknown sampler 'sobo': did you mean 'sobol'?"),
        (["--sampler", "sobol:scrambled=1"], "scramble"),
        (["--sampler", "tpe", "--sampler", "tpe"], "--sampler 'tpe' is given twice"),
        (
            ["--sampler", "scipy:powel"],
            "unknown sampler 'scipy:powel': did you mean 'scipy:powell'?",
        ),
        (["--sampler", "scipy:powell", "--on", "mixed"], "continuous, but 'x2' is not"),
        (["--sampler", "scipy:powell", "--parallel-trials", "4"], "takes no --parallel-trials 4"),
        (["--on", "spheer"], "unknown problem 'spheer': did you mean 'sphere'?"),
        (["--on", "nowhere:objective"], "cannot import 'nowhere'"),
        (["--epochs", "3"], "--epochs is for objectives that train, not for 'sphere'"),
        (["--arg", "a=1"], "--arg is for objectives that train"),
        (["--arg", "a"], "must look like name=value"),
        (["--at", "0"], "--at 0 must be from 1 to --trials 100"),
        (["--at", "1.5"], "--at must be whole numbers"),
        (["--targets", "high"], "--targets must be numbers"),
        (["--on", "cats-grid", "--data-dir", "nowhere"], "there is no trained grid"),
        (["--on", "cats-grid"], "give --data-dir or set OPTUNA_EXT_DATA"),
        (["--figure", "a.pdf"], "must end in .html, .svg or .png"),
        (["--figure", "no/a.html"], "folder that does not exist"),
        (["--csv", "no/a.csv"], "folder that does not exist"),
        (["--designs", "--figure", "a.pdf"], "must end in .html, .svg or .png"),
    ],
)
def test_a_mistake_costs_one_sentence_and_nothing_is_written(
    arguments: list[str],
    sentence: str,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPTUNA_EXT_DATA", raising=False)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout
    assert not [path for path in elsewhere.rglob("*") if path.is_file()]


def test_designs_are_drawn_with_what_was_measured() -> None:
    assert _compare("--designs", "--figure", "d.html") == "designs: d.html\n"
    page = Path("d.html").read_text(encoding="utf-8")
    points = draw_designs(0)
    figure = designs_figure(points)
    assert len(figure.data) == len(points) == 6
    for trace, title, rows in zip(
        figure.data, figure.layout.annotations, points.values(), strict=True
    ):
        assert len(trace.x) == len(trace.y) == 64
        assert rows.shape == (64, 2)
        assert f"discrepancy {centered_l2(rows):.5f}" in title.text
        assert f"min distance {min_distance(rows):.3f}" in title.text
        assert f"min distance {min_distance(rows):.3f}" in page


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_picture_without_kaleido_costs_one_sentence(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_image(*_: object) -> bytes:
        raise kind("Image export requires kaleido:\n\n    pip install kaleido\n")

    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", to_image)
    result = CliRunner().invoke(app, ["--designs", "--figure", "d.svg"])
    assert result.exit_code == 2
    assert "needs kaleido and a Chromium (or end it in .html)" in result.stderr
    assert result.stderr.count("\n") == 1


def test_committed_picture_shows_the_designs_as_they_are() -> None:
    picture = Path(studies.__file__).with_name("designs.svg").read_text(encoding="utf-8")
    assert len(picture) < 60_000
    assert picture.count("<circle") == 6 * 64
    for rows in draw_designs(0).values():
        measured = f"discrepancy {centered_l2(rows):.5f} · min distance {min_distance(rows):.3f}"
        assert f">{measured}<" in picture


def test_curves_are_means_with_a_band_of_one_standard_error() -> None:
    rng = np.random.default_rng(0)
    curve = np.sort(rng.random((5, 20)))[:, ::-1]
    curve[0, :3] = math.nan  # a run that began with failures: no mean before trial 4
    band, line = curves_figure({"a": curve}, title="", log=False).data
    kept = curve[:, 3:]
    assert np.asarray(line.x).tolist() == list(range(4, 21))
    assert np.allclose(line.y, kept.mean(axis=0))
    assert np.allclose(band.y[:17] - line.y, kept.std(axis=0, ddof=1) / np.sqrt(5))
    _, line = curves_figure({"a": kept}, title="", log=True).data
    assert np.allclose(line.y, np.exp(np.log(kept).mean(axis=0)))


@pytest.mark.parametrize(
    ("values", "log"),
    [([100.0, 0.5], True), ([100.0, 2.0], False), ([100.0, 0.0], False), ([math.nan], False)],
)
def test_axis_is_logarithmic_over_decades(values: list[float], log: bool) -> None:
    assert spans_decades({"a": np.array([values])}) is log


def test_ctrl_c_leaves_the_seeds_that_are_finished(tmp_path: Path) -> None:
    (tmp_path / "interrupted_objectives.py").write_text(
        "def objective(trial, *, seed):\n"
        "    if seed == 2:\n"
        "        raise KeyboardInterrupt\n"
        "    return trial.suggest_float('x', 0, 1)\n"
    )
    result = CliRunner().invoke(
        app, ["--on", "interrupted_objectives.py:objective", "--json", "--trials", "2"]
    )
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted\n"
    document = json.loads(result.stdout)
    assert document["seeds"] == [0, 1]
    assert len(document["samplers"]) == 3
