"""Studies of a tiny objective, in this process and in others."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import optuna
from optuna.trial import FrozenTrial
import pytest

from optuna_ext import open_storage


TOY = """
from math import sqrt
import os
import sys
import time
import warnings

from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution

DIRECTION = "maximize"
SPACE = {
    "x": FloatDistribution(0.0, 1.0),
    "kind": CategoricalDistribution(("flat", "steep")),
    "n": IntDistribution(1, 4),  # with kind == "steep"
}
DEFAULTS = {"x": 0.5, "kind": "flat"}


def objective(trial, *, epochs=2, pause=0.0, hang_from=None, shape="plane"):
    x = trial.suggest_float("x", 0.0, 1.0)
    steep = trial.suggest_categorical("kind", ("flat", "steep")) == "steep"
    slope = trial.suggest_int("n", 1, 4) if steep else 1
    for epoch in range(epochs):
        time.sleep(pause / epochs)
        trial.report(slope * x, epoch)
    while hang_from is not None and trial.number >= hang_from and not os.path.exists("go on"):
        time.sleep(0.02)
    return slope * x


def fails(trial):
    if trial.suggest_float("x", 0.0, 1.0) >= 0.0:
        raise RuntimeError("no luck\\nat all")


def sometimes_fails(trial):
    if trial.number % 2:
        raise RuntimeError("odd")
    return trial.suggest_float("x", 0.0, 1.0)


def talks(trial):
    print("talk of the objective")
    return trial.suggest_float("x", 0.0, 1.0)


def explodes(trial):
    trial.set_user_attr("loss", float("nan"))
    return trial.suggest_float("x", 0.0, 1.0) * float("inf")


def warns(trial):
    warnings.warn(f"careful in trial {trial.number}")
    return trial.suggest_float("x", 0.0, 1.0)


def kills_its_process(trial):
    trial.suggest_float("x", 0.0, 1.0)
    os.kill(os.getpid(), 9)


def noisy(trial, *, seed=0, amp=False):
    return trial.suggest_float("x", 0.0, 1.0) + seed


def exits(trial):
    trial.suggest_float("x", 0.0, 1.0)
    sys.exit("enough")


def returns(trial, *, what):
    trial.suggest_float("x", 0.0, 1.0)
    return {"pair": (1.0, 2.0), "nan": float("nan"), "None": None}.get(str(what), what)


def on_a_gpu(trial, *, device="cpu"):
    trial.set_user_attr("seen", [device, os.environ.get("CUDA_VISIBLE_DEVICES")])
    return trial.suggest_float("x", 0.0, 1.0)


async def waits(trial):
    return trial.suggest_float("x", 0.0, 1.0)


def nothing():
    return 0.0


def needs_two(trial, other, /):
    return other


class Model:
    def __init__(self, trial):
        pass


def two_values(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    return x, 1 - x
"""


@dataclass
class Toy:
    """The tiny objective in a directory of its own, and the studies made of it there."""

    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def database(self) -> Path:
        return self.folder / "toy.db"

    def arguments(self, *arguments: object, function: str = "objective") -> list[str]:
        fixed = [f"toy.py:{function}", "--storage", "toy.db", "--study", "toy", "--no-figure"]
        return [*fixed, *map(str, arguments)]

    def start(
        self, *arguments: object, function: str = "objective", output: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """Start a study in a process group of its own, as a terminal does."""
        # Of all samplers this one is imported the soonest.
        given = self.arguments("--sampler", "random", *arguments, function=function)
        process = subprocess.Popen(
            [sys.executable, "-m", "studies.run", *given],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def let_go(self) -> None:
        """End the waiting of the trials from number ``hang_from`` on."""
        (self.folder / "go on").touch()

    def trials(self) -> list[FrozenTrial]:
        if not self.database.exists():
            return []
        storage = open_storage(self.database)
        if "toy" not in optuna.get_all_study_names(storage):
            return []
        return optuna.load_study(study_name="toy", storage=storage).get_trials()

    def states(self) -> dict[str, int]:
        names = [trial.state.name for trial in self.trials()]
        return {name: names.count(name) for name in sorted(set(names))}

    def wait_for(self, condition: Callable[[list[FrozenTrial]], bool]) -> list[FrozenTrial]:
        """Wait until the trials in the storage fulfill a condition."""
        deadline = time.monotonic() + 240  # before pytest's own timeout
        while time.monotonic() < deadline:
            trials = self.trials()
            if condition(trials):
                return trials
            time.sleep(0.05)
        raise TimeoutError(f"the trials did not become what was waited for: {self.states()}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def toy(folder: Path) -> Iterator[Toy]:
    (folder / "toy.py").write_text(TOY)
    made = Toy(folder)
    yield made
    for process in made.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def slow_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name a sampler that spends CPU time on its first parameter, as if it imported much."""
    (tmp_path / "slow_sampler.py").write_text(
        "import functools, time\n"
        "from optuna.samplers import RandomSampler\n"
        "@functools.cache\n"
        "def imported():\n"
        "    end = time.process_time() + 0.4\n"
        "    while time.process_time() < end:\n"
        "        pass\n"
        "class Slow(RandomSampler):\n"
        "    def sample_independent(self, *args):\n"
        "        imported()\n"
        "        return super().sample_independent(*args)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "slow_sampler:Slow"
    sys.modules.pop("slow_sampler", None)
