"""Who may start a trial, so that a study ends with exactly the trials it shall have.

A trial is *finished* when it is complete, pruned or failed. A process that wants to start one
takes the study's lock, counts the finished and the running ones, and starts its own before it
lets the lock go. So the sum is exact with any number of processes and terminals on one machine.
Machines that share a database server do not see each other's lock: they can start one trial each
too many.

Every trial names its process in the user attribute ``process``. A running trial whose process is
dead was cut short by a kill or a power cut: it becomes a failed one, and so counts as finished.
Running trials of other programs, of other machines and of other containers are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
import getpass
import hashlib
import os
from pathlib import Path
import socket
import tempfile

from filelock import FileLock
from optuna.samplers import GridSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import Trial
from optuna.trial import TrialState
import psutil

from studies._job import storage_file


_PROCESS = "process"
_STARTING = "starting"  # of the study: the number of the trial that is being started
_POLL = 0.005  # seconds between two looks at the lock
_CLOCK_SLACK = 2.0  # seconds by which the start of a process may seem to move with the clock


class Tickets:
    """The right to start trials of a study, up to a total.

    Args:
        study: The study.
        storage: Its storage.
        location: Path or URL of the storage.
        total: How many finished trials it shall have.
    """

    def __init__(self, study: Study, storage: BaseStorage, *, location: str, total: int) -> None:
        self._study = study
        self._storage = storage
        self._total = total
        self._lock = storage_lock(location)
        self._starting = False

    def take(self) -> bool:
        """Wait for the lock and return whether a trial may start.

        If so, the lock is kept until ``started`` or ``give_back``.
        """
        self._lock.acquire()
        try:
            trials = self._study.get_trials(deepcopy=False)
            self._fail_orphans(trials)  # which count before and after
            self._starting = self._has_room(trials)
        finally:
            if not self._starting:
                self._lock.release()
        return self._starting

    def started(self, trial: Trial) -> None:
        """Note whose trial it is, and let the next process have its turn."""
        trial.set_user_attr(_PROCESS, _this_process())
        self._starting = False
        self._lock.release()

    def give_back(self) -> None:
        """Let the lock go if it is held for a trial that did not start."""
        if self._starting:
            self._study.set_user_attr(_STARTING, None)
            self._starting = False
            self._lock.release()

    def fail_orphans(self) -> None:
        """Mark running trials whose process is dead as failed."""
        with self._lock:
            self._fail_orphans(self._study.get_trials(deepcopy=False))

    def _has_room(self, trials: Sequence[FrozenTrial]) -> bool:
        waiting = [t.number for t in trials if t.state == TrialState.WAITING]
        if len(trials) - len(waiting) >= self._total or self._is_grid_exhausted():
            return False
        self._study.set_user_attr(_STARTING, min(waiting, default=len(trials)))
        return True

    def _is_grid_exhausted(self) -> bool:
        sampler = self._study.sampler
        return isinstance(sampler, GridSampler) and sampler.is_exhausted(self._study)

    def _fail_orphans(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in trials:
            if trial.state == TrialState.RUNNING and self._is_orphan(trial):
                study_id = self._storage.get_study_id_from_name(self._study.study_name)
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(
                    study_id, trial.number
                )
                self._storage.set_trial_user_attr(trial_id, "reason", "its process was killed")
                self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _is_orphan(self, trial: FrozenTrial) -> bool:
        process = trial.user_attrs.get(_PROCESS)
        if process is not None:
            return _is_dead(process)
        # Killed between the start of a trial and its signature: whoever does that holds the lock,
        # which is ours now. Other programs' trials have no signature either, but other numbers.
        return bool(trial.number == self._study.user_attrs.get(_STARTING))


def storage_lock(location: str) -> FileLock:
    """Return the lock that the processes of this machine share for a storage."""
    file = storage_file(location)
    if file is not None:
        return FileLock(file.absolute().with_name(file.name + "-lock"), poll_interval=_POLL)
    digest = hashlib.sha256(location.encode()).hexdigest()[:16]
    name = f"optuna-ext-{getpass.getuser()}-{digest}.lock"
    return FileLock(Path(tempfile.gettempdir(), name), poll_interval=_POLL)


def _this_process() -> str:
    return f"{_machine()} {os.getpid()} {psutil.Process().create_time():.2f}"


def _machine() -> str:
    """Name the place where a process number means something: containers may share a host name."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _is_dead(process: str) -> bool:
    """Whether a process of this machine is dead; its number may belong to another one by now."""
    machine, pid, created = process.split()
    if machine != _machine():
        return False
    try:
        found = psutil.Process(int(pid))
        is_another = abs(found.create_time() - float(created)) > _CLOCK_SLACK
        return is_another or bool(found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:  # it exists, and is another user's
        return False
