"""The main study, small, on real data and real networks."""

from __future__ import annotations

import json
from pathlib import Path
import subprocess
import sys

import optuna
import pytest

from studies import boundaries
from studies import cats
from studies import digits
from studies import fashion
from studies import mnist


def test_a_small_study_of_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert digits.main(["--trials", "3", "--epochs", "2", "--device", "cpu", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["study"] == "digits"
    assert summary["directions"] == ["maximize"]
    assert summary["trials"]["complete"] == 3
    assert 0.1 < summary["best"]["values"][0] <= 1.0
    assert summary["best"]["user_attrs"]["device"] == "cpu"
    assert Path(summary["figure"]) == Path("runs/digits.html")
    assert Path("runs/digits.html").exists()
    assert summary["dashboard"].endswith("optuna-dashboard sqlite:///runs/digits.db")


def test_a_device_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert digits.main(["--device", "cuda:99"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --device: ")
    assert "cuda:99" in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("s3://bucket/x", "--checkpoints: s3:// needs a client: pip install 'optuna-ext[s3]'"),
        ("ftp://host/x", "--checkpoints: `place` must be a directory, s3://BUCKET/PREFIX, gs://"),
        ("", "--checkpoints: `place` must be a directory"),
        (":memory:", "--checkpoints :memory: would be forgotten with the process"),
        ("/dev/null", "--checkpoints: /dev/null must be a directory"),
        ("/proc/checkpoints", "--checkpoints: /proc/checkpoints cannot be made a directory: "),
        ("/proc/self", "--checkpoints: nothing can be kept in /proc/self: "),
    ],
)
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs directories nobody can write")
def test_a_bad_place_for_checkpoints_is_noticed_before_a_study_is_created(
    place: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(*_: object) -> None:
        raise ImportError("No module named 'boto3'")

    monkeypatch.setattr(optuna.artifacts, "Boto3ArtifactStore", missing)
    monkeypatch.chdir(tmp_path)
    assert digits.main(["--checkpoints", place]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_data_are_noticed_before_a_study_is_created(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cats.main(["--data-dir", "."]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "OPTUNA_EXT_DATA" in err
    assert list(tmp_path.iterdir()) == []


def test_the_objectives_own_arguments_are_flags_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert boundaries.main(["--dataset", "7"]) == 2
    assert "7" in capsys.readouterr().err
    assert boundaries.main(["--net", "other"]) == 2
    assert "three-layer" in capsys.readouterr().err
    assert cats.main(["--protocol", "other"]) == 2
    assert "--protocol" in capsys.readouterr().err
    assert cats.main(["--amp"]) == 2
    assert "amp must be False" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_study_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for study in (boundaries, cats, digits, fashion, mnist):
        assert study.main(["--help"]) == 0
        assert "--trials" in capsys.readouterr().out


def test_the_list_of_studies_names_them_all() -> None:
    root = Path(str(digits.__file__)).parents[1]
    shown = subprocess.run(
        [sys.executable, "-m", "studies"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    for name in ("boundaries", "cats", "compare", "digits", "fashion", "mnist", "run"):
        assert f"python -m studies.{name} " in shown


def test_reading_the_help_loads_no_torch() -> None:
    code = "import sys; import studies.digits; sys.exit('torch' in sys.modules)"
    root = Path(str(digits.__file__)).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
