"""A study in optuna-dashboard, as a user's browser shows it."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from pathlib import Path
import shlex
import shutil
import signal
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
    from playwright.sync_api import Browser
    from playwright.sync_api import Page

    from tests.studies.conftest import Toy

pytestmark = pytest.mark.browser

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
_PATIENCE = 120_000  # milliseconds; a busy machine starts servers and browsers slowly


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium of this machine."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("NO BROWSER: install chromium to see the dashboard tested")
    from playwright.sync_api import expect
    from playwright.sync_api import sync_playwright

    expect.set_options(timeout=_PATIENCE)
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=found, args=_FLAGS) as browser,
    ):
        yield browser


@contextlib.contextmanager
def _shown(browser: Browser, command: str, study: str) -> Iterator[Page]:
    """Look at a study in the dashboard that a command starts, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, storage = shlex.split(command)
    assert Path(program).name == "optuna-dashboard"
    start = "from optuna_dashboard._cli import main; main()"
    server = subprocess.Popen(
        [sys.executable, "-c", start, storage, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}/dashboard/"
        _wait_for(address, server)
        with contextlib.closing(browser.new_page()) as page:
            page.set_default_timeout(_PATIENCE)
            page.goto(address)
            page.get_by_text(f"1. {study}").click()
            yield page
    finally:
        server.terminate()
        server.wait()


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(address).close()
            return
        time.sleep(0.2)
    raise ChildProcessError("the dashboard has ended")


def _command(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the dashboard command that the study printed."""
    return capsys.readouterr().out.partition("Look closer: ")[2].strip()


def test_history_and_best_trial(
    toy: Toy, capsys: pytest.CaptureFixture[str], browser: Browser
) -> None:
    from playwright.sync_api import expect

    assert run.main(toy.arguments("--trials", 8)) == 0
    best = max(toy.trials(), key=lambda t: t.value or 0.0)
    with _shown(browser, _command(capsys), "toy") as page:
        expect(page.locator("#plot-history path.point")).to_have_count(8)
        card = page.locator(".MuiCard-root", has_text="Best Trial").first
        expect(card).to_contain_text(f"number={best.number}")
        expect(card).to_contain_text(str(best.value))


def test_the_family_tree_of_a_population(
    toy: Toy, capsys: pytest.CaptureFixture[str], browser: Browser
) -> None:
    from playwright.sync_api import expect

    flags = ["--population", "3", "--interval", "1", "--generations", "2", "--device", "cpu"]
    assert pbt.main(["digits", *flags, "--storage", "toy.db", "--no-figure"]) == 0
    with _shown(browser, _command(capsys), "digits-pbt") as page:
        tree = page.locator("[id*=family-tree]").first
        expect(tree).to_contain_text("lineage of the best")
        expect(tree.locator("path.point")).to_have_count(6)


def test_who_survived(toy: Toy, capsys: pytest.CaptureFixture[str], browser: Browser) -> None:
    from playwright.sync_api import expect

    flags = ["--epochs", "2", "--eta", "2", "--min-epochs", "1", "--trials", "5", "--synchronous"]
    given = ["digits", *flags, "--device", "cpu", "--storage", "toy.db", "--no-figure"]
    assert halving.main(given) == 0
    with _shown(browser, _command(capsys), "digits-halving") as page:
        chart = page.locator("[id*=survival]").first
        expect(chart).to_contain_text("reached the end")
        expect(chart).to_contain_text("step 1")


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


def test_what_was_tuned(
    toy: Toy, tiny_mnist: None, capsys: pytest.CaptureFixture[str], browser: Browser
) -> None:
    from playwright.sync_api import expect

    flags = ["--storage", "toy.db", "--study", "tuned", "--no-figure", "--device", "cpu"]
    assert t1t2.main([*flags, "--trials", "3", "--width", "0.01", "--epochs", "20"]) == 0
    with _shown(browser, _command(capsys), "tuned") as page:
        curves = page.locator("[id*=trajectories]").first
        expect(curves).to_contain_text("what was tuned in 3 trials")
        expect(curves).to_contain_text("input_noise")
        expect(curves.locator("path.js-line")).to_have_count(6)  # L2 and noise of each


def test_a_study_that_trains_together_is_seen_while_it_runs(toy: Toy, browser: Browser) -> None:
    from playwright.sync_api import expect

    command = [sys.executable, "-m", "studies.boundaries", "--fused", "--net", "logistic"]
    command += ["--study", "toy", "--storage", "toy.db", "--device", "cpu"]
    command += ["--trials", "100000", "--slots", "4", "--epochs", "3"]
    study = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        toy.wait_for(lambda trials: any(trial.value is not None for trial in trials))
        study.send_signal(signal.SIGSTOP)  # only to let the others have the processors
        with _shown(browser, "optuna-dashboard sqlite:///toy.db", "toy") as page:
            points = page.locator("#plot-history path.point")
            expect(points).not_to_have_count(0)
            seen = points.count()
            study.send_signal(signal.SIGCONT)
            page.reload()
            expect(points).not_to_have_count(seen)  # it grows
            assert study.poll() is None
            study.send_signal(signal.SIGSTOP)
            page.goto(f"{page.url.partition('/studies')[0]}/studies/1/trials?numbers=0")
            expect(page.get_by_text("valid_accuracy").first).to_be_visible()
    finally:
        study.send_signal(signal.SIGCONT)
        study.terminate()
        study.wait()
