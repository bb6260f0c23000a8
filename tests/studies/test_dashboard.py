"""A study in optuna-dashboard, as a user's browser shows it."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from pathlib import Path
import shlex
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING
import urllib.error
import urllib.request

import pytest

from studies import halving
from studies import pbt
from studies import run
from studies import t1t2


if TYPE_CHECKING:
    from tests.studies.conftest import Toy

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def chromium() -> str:
    """Find a Chromium of this machine."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("NO BROWSER: install chromium to see the dashboard tested")


@contextlib.contextmanager
def _serve(command: str) -> Iterator[str]:
    """Run the dashboard command that the study printed, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, storage = shlex.split(command)
    assert program == "optuna-dashboard"
    start = "from optuna_dashboard._cli import main; main()"
    server = subprocess.Popen(
        [sys.executable, "-c", start, storage, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{address}/dashboard/", timeout=5).close()
                break
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MNIST be 240 images of noise."""
    import torch

    import objectives.data

    x, y = torch.rand(240, 784), torch.arange(240) % 10
    data = objectives.data.Data(
        train_x=x[:160],
        train_y=y[:160],
        valid_x=x[160:200],
        valid_y=y[160:200],
        test_x=x[200:],
        test_y=y[200:],
    )
    monkeypatch.setattr(objectives.data, "load", lambda *_, **__: data)


@pytest.mark.browser
def test_the_dashboard_shows_history_best_trial_and_what_was_tuned(
    toy: Toy, tiny_mnist: None, capsys: pytest.CaptureFixture[str], chromium: str
) -> None:
    from playwright.sync_api import expect
    from playwright.sync_api import sync_playwright

    assert run.main(toy.arguments("--trials", 8)) == 0
    command = capsys.readouterr().out.partition("Look closer: ")[2].strip()
    flags = ["--storage", "toy.db", "--study", "tuned", "--no-figure", "--device", "cpu"]
    assert t1t2.main([*flags, "--trials", "3", "--width", "0.01", "--epochs", "20"]) == 0
    best = max(toy.trials(), key=lambda t: t.value or 0.0)
    with (
        _serve(command) as address,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=_FLAGS) as browser,
    ):
        page = browser.new_page()
        page.goto(f"{address}/dashboard/")
        page.get_by_text("1. toy").click(timeout=60_000)
        points = page.locator("#plot-history path.point")
        expect(points).to_have_count(8, timeout=60_000)
        card = page.locator(".MuiCard-root", has_text="Best Trial").first
        expect(card).to_contain_text(f"number={best.number}", timeout=30_000)
        expect(card).to_contain_text(str(best.value))
        page.goto(f"{address}/dashboard/studies/2")
        curves = page.locator("[id*=trajectories]").first
        expect(curves).to_contain_text("what was tuned in 3 trials", timeout=60_000)
        expect(curves).to_contain_text("input_noise")
        expect(curves.locator("path.js-line")).to_have_count(6)  # L2 and noise of each


@pytest.mark.browser
def test_the_dashboard_shows_the_family_tree_of_a_population(
    toy: Toy, capsys: pytest.CaptureFixture[str], chromium: str
) -> None:
    from playwright.sync_api import expect
    from playwright.sync_api import sync_playwright

    flags = ["--population", "3", "--interval", "1", "--generations", "2", "--device", "cpu"]
    assert pbt.main(["digits", *flags, "--storage", "toy.db", "--no-figure"]) == 0
    command = capsys.readouterr().out.partition("Look closer: ")[2].strip()
    with (
        _serve(command) as address,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=_FLAGS) as browser,
    ):
        page = browser.new_page()
        page.goto(f"{address}/dashboard/")
        page.get_by_text("1. digits-pbt").click(timeout=60_000)
        tree = page.locator("[id*=family-tree]").first
        expect(tree).to_contain_text("lineage of the best", timeout=60_000)
        expect(tree.locator("path.point")).to_have_count(6, timeout=60_000)


@pytest.mark.browser
def test_the_dashboard_shows_who_survived(
    toy: Toy, capsys: pytest.CaptureFixture[str], chromium: str
) -> None:
    from playwright.sync_api import expect
    from playwright.sync_api import sync_playwright

    flags = ["--epochs", "2", "--eta", "2", "--min-epochs", "1", "--trials", "5", "--synchronous"]
    given = ["digits", *flags, "--device", "cpu", "--storage", "toy.db", "--no-figure"]
    assert halving.main(given) == 0
    command = capsys.readouterr().out.partition("Look closer: ")[2].strip()
    with (
        _serve(command) as address,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=_FLAGS) as browser,
    ):
        page = browser.new_page()
        page.goto(f"{address}/dashboard/")
        page.get_by_text("1. digits-halving").click(timeout=60_000)
        chart = page.locator("[id*=survival]").first
        expect(chart).to_contain_text("reached the end", timeout=60_000)
        expect(chart).to_contain_text("step 1", timeout=60_000)


@pytest.mark.browser
def test_a_study_that_trains_together_is_seen_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chromium: str
) -> None:
    from playwright.sync_api import expect
    from playwright.sync_api import sync_playwright

    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "studies.boundaries", "--fused", "--net", "logistic"]
    command += ["--study", "together", "--storage", "study.db", "--device", "cpu"]
    command += ["--trials", "100000", "--slots", "4", "--epochs", "3"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as study:
        assert study.stderr is not None
        study.stderr.readline()  # the first line of progress: there are trials
        with (
            _serve("optuna-dashboard sqlite:///study.db") as address,
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=chromium, args=_FLAGS) as browser,
        ):
            page = browser.new_page()
            page.goto(f"{address}/dashboard/")
            page.get_by_text("1. together").click(timeout=60_000)
            points = page.locator("#plot-history path.point")
            expect(points).not_to_have_count(0, timeout=60_000)
            seen = points.count()
            assert study.poll() is None
            page.reload()
            expect(points).not_to_have_count(seen, timeout=60_000)  # it grows
            page.goto(f"{address}/dashboard/studies/1/trials?numbers=0")
            expect(page.get_by_text("valid_accuracy").first).to_be_visible(timeout=60_000)
            assert study.poll() is None
        study.terminate()
        study.communicate(timeout=60)
