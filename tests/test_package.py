from __future__ import annotations

import subprocess
import sys

import pytest

import optuna_ext


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_every_public_name_is_there() -> None:
    for name in optuna_ext.__all__:
        assert getattr(optuna_ext, name).__name__ == name
        assert name in dir(optuna_ext)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="'optuna_ext' has no attribute 'SobelSampler'"):
        _ = optuna_ext.SobelSampler


def test_import_is_as_light_as_optuna() -> None:
    """Nothing that Optuna does not load itself: neither torch nor scipy nor plotly."""
    loaded = run(
        "import optuna, sys; before = set(sys.modules); import optuna_ext; "
        "print(sorted(n for n in set(sys.modules) - before if not n.startswith('optuna_ext')))"
    )
    assert loaded == "[]"


def test_a_sampler_loads_no_torch_and_no_plotly_and_scipy_late() -> None:
    loaded = run(
        "import sys, optuna_ext; optuna_ext.SobolSampler(seed=0); "
        "print([n for n in ('torch', 'plotly', 'scipy') if n in sys.modules])"
    )
    assert loaded == "[]"
