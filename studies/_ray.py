"""The workers of a study as tasks of a Ray cluster, which decides where they run."""

from __future__ import annotations

from importlib.util import find_spec
import os
from pathlib import Path
import time
from typing import Any

from studies._errors import UserError
from studies._interrupt import Interrupt
from studies._job import Job


def has_ray() -> bool:
    """Return whether Ray is installed."""
    return find_spec("ray") is not None


def check_ray() -> None:
    """Refuse what needs Ray where it is not installed.

    Raises:
        UserError: If that is so.
    """
    if not has_ray():
        raise UserError("--ray needs ray: pip install 'optuna-ext[ray]'")


class RayCluster:
    """Starts workers on a Ray cluster.

    Args:
        address: ``auto``, ``local``, ``HOST:PORT`` or ``ray://HOST:PORT``.
        gpus: GPUs that a worker is given; may be a fraction.

    Raises:
        UserError: If there is no cluster.
    """

    def __init__(self, address: str, *, gpus: float) -> None:
        import ray

        root = Path(__file__).resolve().parent.parent
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        try:
            ray.init(
                address=address,
                runtime_env={"env_vars": environment},
                logging_level="error",
                log_to_driver=True,
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"--ray: no cluster at {address!r}: {reason}") from error
        self._ray = ray
        # What became of a task is looked after here: a successor draws other random numbers.
        self._remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_work)

    def launch(self, job: Job, name: str) -> RayTask:
        """Start a worker."""
        return RayTask(
            self._ray, self._remote.options(name=name).remote(job.to_json(), os.getcwd())
        )

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


class RayTask:
    """A worker on a Ray cluster, as ``run_workers`` wants it."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray = ray
        self._reference = reference
        self._end: str | None = None

    def end(self) -> str | None:
        """Return how it ended: ``""`` for well, None while it runs."""
        if self._end is None and self._is_over(timeout=0.0):
            try:
                self._end = self._ray.get(self._reference)
            except self._ray.exceptions.TaskCancelledError:
                self._end = ""
            except self._ray.exceptions.RayError as error:
                self._end = f"died: {str(error).strip().partition(chr(10))[0]}"
        return self._end

    def stop(self) -> None:
        """Ask it to end in order."""
        self._ray.cancel(self._reference)

    def close(self, deadline: float) -> None:
        """Wait for its end, at most until ``deadline`` in monotonic seconds."""
        if not self._is_over(timeout=max(0.0, deadline - time.monotonic())):
            self._ray.cancel(self._reference, force=True)

    def _is_over(self, *, timeout: float) -> bool:
        ready, _ = self._ray.wait([self._reference], timeout=timeout)
        return bool(ready)


def _work(job: str, directory: str) -> str:
    """Run a worker in a process of the cluster; return what it has to complain about."""
    from studies._runner import run_trials

    if not Path(directory).is_dir():
        return f"ended: this node has no {directory}, where the command was given"
    os.chdir(directory)
    with Interrupt(insist=False).listening() as interrupt:
        try:
            run_trials(Job.from_json(job), interrupt=interrupt)
        except UserError as error:
            return f"ended: {error}"
    return ""
