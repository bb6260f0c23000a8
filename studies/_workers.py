"""Several processes on one study: started, watched, started again, ended."""

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

from studies._interrupt import Interrupt
from studies._job import Job


_RESTARTS = 3  # of each worker, while no trial comes to its end
_LOOK_EVERY = 0.2  # seconds
_PATIENCE = 30.0  # seconds until a worker that does not stop is killed


def run_workers(
    jobs: Sequence[Job],
    *,
    interrupt: Interrupt,
    say: Callable[[str], None],
    look: Callable[[], None],
    after_death: Callable[[], None],
    n_done: Callable[[], int],
) -> None:
    """Run one process per job until all are done.

    A process that dies is started again, but not without end if no trial comes to its end.

    Args:
        jobs: What to run; they differ in their device and their random numbers.
        interrupt: Listens for signals.
        say: Prints a line.
        look: Called several times a second.
        after_death: Called when a process has died, before its successor starts.
        n_done: Tells how many trials have come to their end.
    """
    workers = [_Worker(i, job, n_workers=len(jobs), say=say) for i, job in enumerate(jobs)]
    try:
        for worker in workers:
            worker.start()
        while interrupt.signum is None and any(worker.is_running for worker in workers):
            time.sleep(_LOOK_EVERY)
            for worker in workers:
                if worker.has_died():
                    after_death()
                    worker.restart(n_done())
            look()
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
    """A process that runs trials, and its successors."""

    def __init__(
        self, number: int, job: Job, *, n_workers: int, say: Callable[[str], None]
    ) -> None:
        self._number = number
        self._job = job
        self._n_workers = n_workers
        self._say = say
        self._n_starts = 0
        self._deaths_since = (0, 0)  # how often it died, since how many trials were done
        self._is_given_up = False
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        # Every start draws other random numbers than those before it.
        stream = self._job.stream + self._number + self._n_starts * self._n_workers
        self._n_starts += 1
        self._process = subprocess.Popen(
            [sys.executable, "-m", "studies._runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(self._n_workers),
            text=True,
            process_group=0,  # Ctrl-C is for the parent alone, who passes it on
        )
        self._reader = threading.Thread(target=self._pass_on, args=(self._process,), daemon=True)
        self._reader.start()
        # The pipe stays open: its end tells the worker that its parent is gone.
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died already, as has_died will tell
                self._process.stdin.write(replace(self._job, stream=stream).to_json() + "\n")
                self._process.stdin.flush()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def has_died(self) -> bool:
        return (
            self._process is not None
            and self._process.poll() not in (None, 0)
            and not self._is_given_up
        )

    def restart(self, n_done: int) -> None:
        cause = _cause(self._process.returncode if self._process else 0)
        n_deaths, since = self._deaths_since
        self._deaths_since = (n_deaths + 1 if n_done == since else 1, n_done)
        if self._deaths_since[0] > _RESTARTS:
            self._is_given_up = True
            self._say(f"worker {self._number} {cause} too often, and is not started again")
        else:
            self._say(f"worker {self._number} {cause}: starting it again")
            self.close(time.monotonic())
            self.start()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def close(self, deadline: float) -> None:
        """Wait for the end of the process, at most until ``deadline`` in monotonic seconds."""
        if self._process is None or self._reader is None:
            return
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

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._say(f"worker {self._number}: {line.rstrip()}")


def _cause(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _environment(n_workers: int) -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment["PYTHONUNBUFFERED"] = "1"  # what an objective prints is shown when it does
    # Or each of them would compute with as many threads as there are cores.
    threads = max(1, (os.cpu_count() or 1) // n_workers)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment
