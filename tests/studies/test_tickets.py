from __future__ import annotations

import os
from typing import TYPE_CHECKING

import optuna
import psutil
import pytest

from studies import run


if TYPE_CHECKING:
    from tests.studies.conftest import Toy


@pytest.mark.parametrize(
    ("namespace", "state"), [(None, "FAIL"), ("pid:[1]", "RUNNING")], ids=["here", "container"]
)
def test_only_processes_that_can_be_seen_from_here_count_as_dead(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, namespace: str | None, state: str
) -> None:
    """A container with this host name has other processes with the same numbers."""
    assert run.main(toy.arguments("--trials", 1)) == 0
    host, _, created = toy.trials()[0].user_attrs["process"].split()
    dead = next(pid for pid in range(2, 10**6) if not psutil.pid_exists(pid))
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{toy.database}")
    study.ask().set_user_attr("process", f"{host} {dead} {created}")
    if namespace is not None:
        monkeypatch.setattr(os, "readlink", lambda path: namespace)
    assert run.main(toy.arguments("--trials", 3)) == 0
    assert [trial.state.name for trial in toy.trials()] == ["COMPLETE", state, "COMPLETE"]
