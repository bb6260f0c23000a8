"""Several workers on one study: started, watched, started again, ended."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
from dataclasses import replace
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Protocol

from studies._interrupt import Interrupt
from studies._job import Job


_RESTARTS = 3  # of each worker, while no trial comes to its end
_LOOK_EVERY = 0.2  # seconds
_PATIENCE = 30.0  # seconds until a worker that does not stop is killed


class Launched(Protocol):
    """A worker that was started, wherever."""

    def end(self) -> str | None:
        """Return how it ended: ``""`` for well, None while it runs."""

    def stop(self) -> None:
        """Ask it to end in order."""

    def close(self, deadline: float) -> None:
        """Wait for its end, at most until ``deadline`` in monotonic seconds, or kill it."""


def run_workers(
    jobs: Sequence[Job],
    *,
    launch: Callable[[Job, str], Launched],
    interrupt: Interrupt,
    say: Callable[[str], None],
    look: Callable[[], None],
    after_death: Callable[[], None],
    n_done: Callable[[], int],
) -> bool:
    """Run one worker per job until all are done.

    One that dies is started again, but not without end if no trial comes to its end.

    Args:
        jobs: What to run; they differ in their device and their random numbers.
        launch: Starts a worker, given its job and its name.
        interrupt: Listens for signals.
        say: Prints a line.
        look: Called several times a second.
        after_death: Called when a worker has died, before its successor starts.
        n_done: Tells how many trials have come to their end.

    Returns:
        Whether any worker lived to the end.
    """
    workers = [
        _Worker(i, job, n_workers=len(jobs), launch=launch, say=say) for i, job in enumerate(jobs)
    ]
    try:
        for worker in workers:
            worker.start()
        while interrupt.signum is None and any(
            worker.is_running or worker.has_died() for worker in workers
        ):
            time.sleep(_LOOK_EVERY)
            for worker in workers:
                if worker.has_died():
                    after_death()
                    worker.restart(n_done())
            look()
        return not all(worker.is_given_up for worker in workers)
    finally:
        _end(workers)
        after_death()


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.stop()
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        worker.close(deadline)


class _Worker:
    """A worker that runs trials, and its successors."""

    def __init__(
        self,
        number: int,
        job: Job,
        *,
        n_workers: int,
        launch: Callable[[Job, str], Launched],
        say: Callable[[str], None],
    ) -> None:
        self._name = f"worker {number}"
        self._number = number
        self._job = job
        self._n_workers = n_workers
        self._launch = launch
        self._say = say
        self._n_starts = 0
        self._deaths_since = (0, 0)  # how often it died, since how many trials were done
        self.is_given_up = False
        self._launched: Launched | None = None

    def start(self) -> None:
        # Every start draws other random numbers than those before it.
        stream = self._job.stream + self._number + self._n_starts * self._n_workers
        self._n_starts += 1
        self._launched = self._launch(replace(self._job, stream=stream), self._name)

    @property
    def is_running(self) -> bool:
        return self._launched is not None and self._launched.end() is None

    def has_died(self) -> bool:
        return self._launched is not None and bool(self._launched.end()) and not self.is_given_up

    def restart(self, n_done: int) -> None:
        end = self._launched.end() if self._launched else None
        n_deaths, since = self._deaths_since
        self._deaths_since = (n_deaths + 1 if n_done == since else 1, n_done)
        if self._deaths_since[0] > _RESTARTS:
            self.is_given_up = True
            self._say(f"{self._name} {end} too often, and is not started again")
        else:
            self._say(f"{self._name} {end}: starting it again")
            self.close(time.monotonic())
            self.start()

    def stop(self) -> None:
        if self._launched is not None and self.is_running:
            self._launched.stop()

    def close(self, deadline: float) -> None:
        if self._launched is not None:
            self._launched.close(deadline)


class LocalProcess:
    """A worker in a process of this machine, as ``run_workers`` wants it.

    Args:
        job: What it runs.
        name: What it is called.
        n_workers: How many share the processor cores.
        say: Prints a line.
    """

    def __init__(self, job: Job, name: str, *, n_workers: int, say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._process = subprocess.Popen(
            [sys.executable, "-m", "studies._runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(n_workers),
            text=True,
            process_group=0,  # Ctrl-C is for the parent alone, who passes it on
        )
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()
        # The pipe stays open: its end tells the worker that its parent is gone.
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died already, as its end will tell
                self._process.stdin.write(job.to_json() + "\n")
                self._process.stdin.flush()

    def end(self) -> str | None:
        """Return how it ended: ``""`` for well, None while it runs."""
        code = self._process.poll()
        return None if code is None else _cause(code)

    def stop(self) -> None:
        """Ask it to end in order."""
        self._process.send_signal(signal.SIGTERM)

    def close(self, deadline: float) -> None:
        """Wait for its end, at most until ``deadline`` in monotonic seconds, or kill it."""
        try:
            self._process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=1.0)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _pass_on(self) -> None:
        for line in self._process.stdout or ():
            self._say(f"{self._name}: {line.rstrip()}")


def _cause(code: int) -> str:
    if code == 0:
        return ""
    if code < 0:
        return f"was killed by {_signal_name(-code)}"
    return f"ended with code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def _environment(n_workers: int) -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment["PYTHONUNBUFFERED"] = "1"  # what an objective prints is shown when it does
    # Or each of them would compute with as many threads as there are cores.
    threads = max(1, (os.cpu_count() or 1) // n_workers)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment
