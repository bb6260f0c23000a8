"""Workers are looked after whenever they die."""

from __future__ import annotations

import pytest

from studies import _workers
from studies._interrupt import Interrupt
from studies._job import Job


class Dying:
    """A worker that dies after it was looked at so many times."""

    def __init__(self, n_looks: int) -> None:
        self.n_looks = n_looks

    def end(self) -> str | None:
        self.n_looks -= 1
        return "died" if self.n_looks < 0 else None

    def stop(self) -> None:
        self.n_looks = 0

    def close(self, deadline: float) -> None:
        pass


@pytest.mark.parametrize("n_looks", range(6))
def test_a_worker_that_dies_at_any_moment_is_started_again_and_given_up(
    n_looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_workers, "_LOOK_EVERY", 0.0)
    started: list[str] = []
    said: list[str] = []

    def launch(job: Job, name: str) -> Dying:
        started.append(name)
        return Dying(n_looks)

    job = Job(
        objective="own:objective",
        directions=["minimize"],
        storage="own.db",
        study="own",
        sampler="random",
        trials=9,
        design_size=9,
    )
    lived = _workers.run_workers(
        [job],
        launch=launch,
        interrupt=Interrupt(),
        say=said.append,
        look=lambda: None,
        after_death=lambda: None,
        n_done=lambda: 0,
    )
    assert not lived
    assert started == ["worker 0"] * 4
    assert said[-1] == "worker 0 died too often, and is not started again"
    assert len(said) == 4
