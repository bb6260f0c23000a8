"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
import pkgutil
import re
import textwrap

import pytest

import optuna_ext


MODULES = sorted(
    module.name for module in pkgutil.walk_packages(optuna_ext.__path__, "optuna_ext.")
)


@pytest.mark.parametrize("name", MODULES)
def test_sessions(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", optuna_ext.__all__)
def test_testcode(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(getattr(optuna_ext, name)) or ""
    assert "Example:" in text
    for block in re.findall(r"\.\. testcode::\n\n((?:(?: {4,}.*)?\n)+)", text):
        exec(textwrap.dedent(block), {})
