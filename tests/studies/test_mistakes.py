"""What studies refuse: in one sentence, before anything is written."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
import sqlite3
from typing import TYPE_CHECKING

import optuna
import pytest

from studies import run


if TYPE_CHECKING:
    from tests.studies.conftest import Toy


def _main(toy: Toy, *arguments: object, function: str = "objective") -> int:
    return run.main(toy.arguments(*arguments, function=function))


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        ("", "must end in .html, not '.'"),
        ("folder.html", "'folder.html' is a folder"),
        ("figure.svg", "must end in .html, not 'figure.svg'"),
        (f"{'x' * 300}.html", "File name too long"),
        ("toy.py/figure.html", "Not a directory"),
    ],
)
def test_a_figure_that_cannot_be_written_is_refused_before_the_first_trial(
    toy: Toy, capsys: pytest.CaptureFixture[str], figure: str, sentence: str
) -> None:
    Path("folder.html").mkdir()
    before = sorted(toy.folder.iterdir())
    assert run.main(["toy.py:objective", "--storage", "toy.db", "--figure", figure]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert sorted(toy.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sampler", "sobl"], "did you mean 'sobol'?"),
        (["--sampler-arg", "sed=1"], "did you mean 'seed'?"),
        (["--sampler-arg", "seed"], "--sampler-arg must look like name=value, not 'seed'"),
        (["--pruner", "meidan"], "did you mean 'median'?"),
        (["--pruner", "median", "--pruner-arg", "n_startup_trials=-1"], "pruner 'median': "),
        (["--trials", "0"], "--trials"),
        (["--seed", str(2**32)], "--seed"),
        (["--workers", "0"], "--workers"),
        (["--trials", "many"], "--trials"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--param", "y=1"], "unknown --param 'y'"),
        (["--param", "x=2"], "--param x must be a number from 0.0 to 1.0, not 2"),
        (["--param", "kind=round"], "--param kind must be one of flat, steep, not 'round'"),
        (["--param", "n=1.5"], "--param n must be an integer from 1 to 4, not 1.5"),
        (["--arg", "spead=1"], "unknown argument 'spead' of objective 'toy'"),
        (["--arg", "shape={1, 2}"], "--arg shape must be a number, a text, a bool, None, or"),
        (["--arg", "shape=(1, 2)"], "dict of them, not (1, 2)"),
        (["--device", "cpu"], "objective 'toy' has no argument 'device'"),
        (["--data-dir", "here"], "objective 'toy' has no argument 'data_dir'"),
        (["--direction", "up"], "--direction"),
        (["--storage", "nowhere/toy.db"], "nowhere"),
        (["--storage", "ftp://host/db"], "--storage: "),
        (["--storage", ":memory:"], "name a file"),
        (["--storage", "sqlite:///:memory:"], "name a file"),
        (["--storage", "sqlite://"], "name a file"),
        (["--storage", "sqlite:///toy.db?x=1"], "must be sqlite:///PATH without options"),
        (["--storage", ""], "--storage must not be empty"),
        (["--study", " "], "--study must not be empty"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    toy: Toy, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    before = sorted(toy.folder.iterdir())
    assert _main(toy, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1
    assert sorted(toy.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("toy.py:objectiv", "did you mean 'objective'?"),
        ("other.py:objective", "there is no file 'other.py'"),
        ("folder.py:objective", "there is no file 'folder.py'"),
        ("toy.py", "must be module:function or path/to/file.py:function"),
        ("no_such_module:objective", "cannot import 'no_such_module'"),
        ("broken.py:objective", "cannot import 'broken.py': SyntaxError"),
        ("script.py:objective", "cannot import 'script.py': SystemExit: 3"),
        ("toy.py:Model", "'toy.py:Model' must be a function whose first argument is the trial"),
        ("toy.py:sqrt", "must be a function whose first argument is the trial"),
        ("toy.py:waits", "must be a function whose first argument is the trial"),
        ("toy.py:nothing", "must be a function whose first argument is the trial"),
        ("toy.py:needs_two", "must be a function whose first argument is the trial"),
    ],
)
def test_an_objective_that_is_not_there(
    toy: Toy, capsys: pytest.CaptureFixture[str], target: str, sentence: str
) -> None:
    (toy.folder / "broken.py").write_text("def objective(trial:\n")
    (toy.folder / "folder.py").mkdir()
    (toy.folder / "script.py").write_text("raise SystemExit(3)\n")
    assert run.main([target]) == 2
    assert sentence in capsys.readouterr().err
    assert not (toy.folder / "runs").exists()


@pytest.mark.parametrize(
    ("published", "sentence"),
    [
        (
            "DIRECTION = 'up'",
            "must be 'minimize' or 'maximize', or one of them per value, not 'up'",
        ),
        ("DIRECTION = []", "not []"),
        ("DIRECTION = 1", "not 1"),
        ("DEFAULTS = {'x': 2.0}", "DEFAULTS x must be a number from 0.0 to 1.0, not 2.0"),
        ("DEFAULTS = {'z': 2.0}", "unknown DEFAULTS 'z'"),
    ],
)
def test_what_a_module_publishes_is_checked(
    toy: Toy, capsys: pytest.CaptureFixture[str], published: str, sentence: str
) -> None:
    file = toy.folder / "toy.py"
    file.write_text(f"{file.read_text()}\n{published}\n")
    before = sorted(toy.folder.iterdir())
    assert _main(toy, "--defaults") == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert sorted(toy.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seed", "2"], "was made with seed=1, not 2"),
        ([], "was made with seed=1, not 0"),
        (["--seed", "1", "--amp"], "was made with amp=False, not True"),
    ],
)
def test_what_changes_a_training_is_another_study(
    toy: Toy, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert _main(toy, "--trials", 1, "--seed", 1, function="noisy") == 0
    assert _main(toy, "--trials", 2, *arguments, function="noisy") == 2
    assert sentence in capsys.readouterr().err
    assert _main(toy, "--trials", 2, "--seed", 1, function="noisy") == 0
    assert toy.states() == {"COMPLETE": 2}


def test_another_study_is_not_touched(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    _main(toy, "--trials", 2)
    before = toy.trials()
    for arguments, function, sentence in (
        (["--direction", "minimize"], "objective", "has direction maximize, not minimize"),
        (["--epochs", "5"], "objective", "was made with epochs=2, not 5"),
        (["--arg", "shape=hill"], "objective", "was made with shape='plane', not 'hill'"),
        ([], "talks", "is of objective 'toy', not 'toy-talks'"),
    ):
        capsys.readouterr()
        assert _main(toy, *arguments, "--trials", 4, function=function) == 2
        err = capsys.readouterr().err
        assert sentence in err
        assert len(err.splitlines()) == 1
        assert toy.trials() == before


@pytest.mark.parametrize(
    "objective",
    [
        lambda trial: trial.suggest_float("z", 0.0, 1.0),
        lambda trial: float(trial.suggest_int("x", 0, 1)),
    ],
    ids=["other name", "other kind"],
)
def test_a_study_of_another_program_with_another_space_is_not_touched(
    toy: Toy,
    capsys: pytest.CaptureFixture[str],
    objective: optuna.study.study.ObjectiveFuncType,
) -> None:
    study = optuna.create_study(
        study_name="toy", storage=f"sqlite:///{toy.database}", direction="maximize"
    )
    study.optimize(objective, n_trials=1)
    before = toy.database.read_bytes(), sorted(toy.folder.iterdir())
    assert _main(toy, "--trials", 4) == 2
    assert "has a parameter" in capsys.readouterr().err
    assert (toy.database.read_bytes(), sorted(toy.folder.iterdir())) == before
    assert len(toy.trials()) == 1


@pytest.mark.parametrize("content", [b"hello" * 1000, None], ids=["text", "newer Optuna"])
def test_a_file_that_is_no_storage_is_refused_before_it_is_locked(
    toy: Toy, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    if content is None:
        optuna.storages.RDBStorage(f"sqlite:///{toy.database}")
        with closing(sqlite3.connect(toy.database)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = 'v9'")
            connection.commit()
    else:
        toy.database.write_bytes(content)
    assert _main(toy, "--trials", 4) == 2
    assert capsys.readouterr().err.startswith("error: --storage: ")
    assert not Path("toy.db-lock").exists()
