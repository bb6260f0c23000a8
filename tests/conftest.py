from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path
import signal

import optuna
import pytest


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Let Ctrl-C reach the programs that tests start, also where a shell has switched it off.

    A shell starts what runs in the background with SIGINT ignored, which children inherit.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Every device that this machine has, so that one test body serves them all."""
    name: str = request.param
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("this machine has no CUDA device")
    return name


@pytest.fixture
def real_data() -> Path:
    """Give the directory of the real data sets."""
    directory = os.environ.get("OPTUNA_EXT_DATA")
    if not directory:
        pytest.skip("OPTUNA_EXT_DATA does not name the directory of the real data sets")
    return Path(directory)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep Optuna's line per trial out of the captured output."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(verbosity)
