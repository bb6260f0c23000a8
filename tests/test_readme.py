"""Every code block of the README is run; shell commands in a smaller size."""

from __future__ import annotations

import os
from pathlib import Path
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request

import pytest


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MEASURED = (ROOT / "studies" / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
COMMANDS = [
    line.split("#")[0].strip()
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.splitlines()
    if line.strip()
]
SMALLER = {
    "--trials": "2",
    "--epochs": "1",
    "--seeds": "2",
    "--workers": "1",
    "--rounds": "1",
    "--population": "3",
    "--interval": "1",
    "--generations": "2",
}
MENTIONED = sorted(
    {" ".join(c.split()) for c in re.findall(r"`(python -m studies\.[^`]*)`", README + MEASURED)}
)
WITHOUT_TRIALS = ("bench", "--designs", "pbt")
WITH_EPOCHS = ("boundaries", "cats", "digits", "hypergradient")


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_only_known_kinds_of_blocks() -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "sh", "text"}


@pytest.mark.parametrize("text", PYTHON, ids=range(len(PYTHON)))
def test_python(text: str, tmp_path: Path) -> None:
    done = run(sys.executable, "-c", text, cwd=tmp_path)
    shown = re.search(
        re.escape(f"```python\n{text}```\n") + r"\n```text\n(.*?)```", README, re.DOTALL
    )
    assert done.stdout == (shown[1] if shown else "")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make(command: str) -> None:
    """Not for real: it is what runs these tests."""
    done = run(*shlex.split(command), "--dry-run", "--always-make", cwd=ROOT)
    assert ".venv" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m studies")])
def test_study(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    if "--data-dir" in words:
        data = os.environ.get("OPTUNA_EXT_DATA")
        if not data:
            pytest.skip("needs the real data sets in OPTUNA_EXT_DATA")
        words[words.index("--data-dir") + 1] = data
    for option, value in SMALLER.items():
        if option in words:
            words[words.index(option) + 1] = value
        elif (option == "--trials" and not any(word in command for word in WITHOUT_TRIALS)) or (
            option == "--epochs" and any(f"studies.{name}" in command for name in WITH_EPOCHS)
        ):
            words += [option, value]
    (tmp_path / "my_training.py").write_text(
        "def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n"
    )
    run(sys.executable, *words[1:], cwd=tmp_path)


@pytest.mark.parametrize("command", MENTIONED)
def test_mentioned(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands within the text take too long: their options exist."""
    _, _, module, *words = command.split()
    subcommand = [word for word in words[:1] if not word.startswith("-")]
    monkeypatch.setattr(sys, "argv", [module, *subcommand, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delitem(sys.modules, module, raising=False)  # to be run anew
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert not [word for word in words if word.startswith("--") and f"{word} " not in shown]


def test_links() -> None:
    """Links between the two files, and within each, lead to a heading."""
    for text, folder in ((README, ROOT), (MEASURED, ROOT / "studies")):
        for target in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
            path, _, anchor = target.partition("#")
            there = (folder / path).read_text() if path else text
            headings = re.findall(r"^#+ (.*)$", there, re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert not anchor or anchor in slugs, target


def test_dashboard(tmp_path: Path) -> None:
    (command,) = [c for c in COMMANDS if "optuna-dashboard" in c]
    program, url = shlex.split(command)
    (tmp_path / "runs").mkdir()
    create = f"import optuna; optuna.create_study(study_name='readme', storage={url!r})"
    run(sys.executable, "-c", create, cwd=tmp_path)
    executable = shutil.which(Path(program).name, path=str(Path(sys.executable).parent))
    assert executable
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    process = subprocess.Popen([executable, url, "--port", port], cwd=tmp_path)
    try:
        while True:  # pytest's timeout ends it
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies") as answer:
                    assert b"readme" in answer.read()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.2)
    finally:
        process.terminate()
        process.wait()


def test_nothing_is_left_out() -> None:
    known = ("make ", "python -m studies", ".venv/bin/optuna-dashboard ")
    assert all(command.startswith(known) for command in COMMANDS)


def test_table_of_samplers_is_complete() -> None:
    import optuna_ext

    for name in optuna_ext.__all__:
        assert name in README


def test_supported_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"].removeprefix(">=") in README
