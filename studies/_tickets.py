"""Who may start a trial, so that a study ends with exactly the trials it shall have.

A trial is *settled* when it is complete, pruned or failed, and no other repeats it. A process that
wants to start one takes the study's lock, counts the settled and the running ones, and starts its
own before it lets the lock go. So the sum is exact with any number of processes and terminals on
one machine, and of machines that share a database server. Machines that share a journal on a
network file system or a gRPC proxy do not see each other's lock: they can start one trial each too
many.

Every trial names its process in the user attribute ``process``. A running trial whose process is
dead was cut short by a kill or a power cut: it becomes a failed one. Whether a process of another
machine is dead is told by the trial's heartbeat. Running trials of other programs are left alone.

A trial that was cut short, be it so, by Ctrl-C or by a full disk, is enqueued again if it has
retries left.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import contextlib
import functools
import math
import os
from pathlib import Path
import socket
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import GridSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import psutil

from optuna_ext.recovery import beating
from optuna_ext.recovery import has_retries
from optuna_ext.recovery import HEARTBEAT
from optuna_ext.recovery import retry
from optuna_ext.recovery import superseded
from optuna_ext.recovery import Watch
from studies._job import storage_file
from studies._locks import study_lock


INTERRUPTED = "interrupted"  # reasons of failures that are not the trial's own
_KILLED = "its process was killed"
_CUT_OFF = "its storage or a disk did not work"

_PROCESS = "process"
_REASON = "reason"
_STARTING = "starting"  # of the study: the number of the trial that is being started
_HEARTBEAT = 60.0  # seconds; only storages need it whose workers may be on other machines


class Tickets:
    """The right to start trials of a study, up to a total.

    Args:
        study: The study.
        storage: Its storage.
        location: Path or URL of the storage.
        total: How many settled trials it shall have.
        retries: How often a trial is repeated that was cut short and got no further.
    """

    def __init__(
        self, study: Study, storage: BaseStorage, *, location: str, total: int, retries: int = 0
    ) -> None:
        self._study = study
        self._storage = storage
        self._total = total
        self._retries = retries
        self._lock = study_lock(location, storage, study.study_name)
        self._watch = None if _is_local(location) else Watch(interval=_HEARTBEAT)
        self._starting = False
        self._current: int | None = None  # number of the trial that this process runs
        self._heart = contextlib.ExitStack()

    def sign_trials(self) -> None:
        """Sign every trial of this process as it begins, before its sampler's own hook.

        A sampler's hook may wait for other trials, whose processes must not wait for the lock.
        """
        sampler: Any = self._study.sampler
        before_trial = sampler.before_trial

        @functools.wraps(before_trial)
        def sign_before_trial(study: Study, trial: FrozenTrial) -> None:
            if self._starting:
                self._started(trial.number)
            before_trial(study, trial)

        sampler.before_trial = sign_before_trial

    def take(self) -> bool:
        """Wait for the lock and return whether a trial may start.

        If so, the lock is kept until the trial has begun, or until ``give_back``.
        """
        self.ended()
        self._lock.acquire()
        try:
            trials = self._take_care_of_orphans()  # which count before and after
            self._starting = self._has_room(trials)
        finally:
            if not self._starting:
                self._lock.release()
        return self._starting

    def ended(self) -> None:
        """Note that the trial of this process runs no more."""
        self._heart.close()
        self._current = None

    def give_back(self) -> None:
        """Let the lock go if it is held for a trial that did not start, or got stuck there."""
        if self._starting:
            self._starting = False
            try:
                self._take_care_of_orphans()
                self._study.set_user_attr(_STARTING, None)
            finally:
                self._lock.release()

    def fail_orphans(self) -> None:
        """Mark running trials whose process is dead as failed, and repeat what was cut short."""
        with self._lock:
            self._take_care_of_orphans()

    def repeat(self, numbers: Iterable[int]) -> None:
        """Mark running trials as failed that were interrupted, and repeat them."""
        with self._lock:
            for number in numbers:
                self._fail(number, INTERRUPTED)
            self._take_care_of_orphans()

    def was_given_up(self) -> bool:
        """Whether others have marked the trial as failed that this process runs."""
        if self._current is None:
            return False
        return self._study.get_trials(deepcopy=False)[self._current].state == TrialState.FAIL

    def _started(self, number: int) -> None:
        """Note whose trial it is, and let the next process have its turn."""
        write = self._write_to(number)
        if self._watch is not None:  # first, as its name tells only this machine whether it lives
            write(HEARTBEAT, 0)
        write(_PROCESS, _this_process())
        self._current = number
        self._starting = False
        self._lock.release()
        if self._watch is not None:
            beat = functools.partial(write, HEARTBEAT)
            self._heart.enter_context(
                beating(beat, interval=_HEARTBEAT, after_beat=self.fail_orphans)
            )

    def _has_room(self, trials: Sequence[FrozenTrial]) -> bool:
        if n_begun(trials) >= self._total or self._is_grid_exhausted():
            return False
        waiting = (t.number for t in trials if t.state == TrialState.WAITING)
        self._study.set_user_attr(_STARTING, min(waiting, default=len(trials)))
        return True

    def _is_grid_exhausted(self) -> bool:
        sampler = self._study.sampler
        return isinstance(sampler, GridSampler) and sampler.is_exhausted(self._study)

    def _take_care_of_orphans(self) -> list[FrozenTrial]:
        """Fail them and repeat what was cut short; return the trials as they are then."""
        trials = self._study.get_trials(deepcopy=False)
        running = [t for t in trials if t.state == TrialState.RUNNING]
        silent = {t.number for t in self._silent(running)}
        fates = {t.number: self._fate(t, is_silent=t.number in silent) for t in running}
        orphans = {number: reason for number, reason in fates.items() if reason is not None}
        for number, reason in orphans.items():
            self._fail(number, reason)
        if orphans:
            trials = self._study.get_trials(deepcopy=False)
        # Also trials of a process that died between these two steps.
        lost = self._to_be_repeated(trials)
        for trial in lost:
            retry(self._study, trial, forget=(_PROCESS, _REASON))
        return self._study.get_trials(deepcopy=False) if lost else trials

    def _fail(self, number: int, reason: str) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):  # it was silent, but lived
            self._write_to(number)(_REASON, reason)
            self._storage.set_trial_state_values(self._trial_id(number), TrialState.FAIL)

    def _silent(self, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        if self._watch is None:
            return []
        return self._watch.silent(t for t in running if HEARTBEAT in t.user_attrs)

    def _fate(self, trial: FrozenTrial, *, is_silent: bool) -> str | None:
        """Return why a running trial is one no more; None if it is."""
        if trial.number == self._current:
            return None
        process = trial.user_attrs.get(_PROCESS)
        if process == _this_process():
            return _CUT_OFF
        if process is not None:
            return _KILLED if is_silent or _is_dead(process) else None
        # Killed between the start of a trial and its signature: whoever does that holds the lock,
        # which is ours now. Other programs' trials have no signature either, but other numbers.
        return _KILLED if trial.number == self._study.user_attrs.get(_STARTING) else None

    def _to_be_repeated(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials that were cut short, have retries left and are not repeated yet."""
        if not self._retries:
            return []
        # Only death may be the trial's own fault.
        retries = {_KILLED: self._retries, INTERRUPTED: math.inf, _CUT_OFF: math.inf}
        repeated = superseded(trials)
        return [
            trial
            for trial in trials
            if trial.state == TrialState.FAIL
            and trial.number not in repeated
            and (reason := trial.user_attrs.get(_REASON)) in retries
            and has_retries(trials, trial, retries[reason])
        ]

    def _write_to(self, number: int) -> Callable[[str, Any], None]:
        return functools.partial(self._storage.set_trial_user_attr, self._trial_id(number))

    def _trial_id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)


def n_begun(trials: Sequence[FrozenTrial]) -> int:
    """Return how many trials have begun, not counting those that others repeat."""
    return sum(t.state != TrialState.WAITING for t in trials) - len(superseded(trials))


def settled(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the finished trials that no other repeats: those that ``--trials`` counts."""
    repeated = superseded(trials)
    return [t for t in trials if t.state.is_finished() and t.number not in repeated]


def _is_local(location: str) -> bool:
    """Whether only processes of this machine can use the storage: SQLite needs a local disk."""
    return storage_file(location) is not None and not location.startswith("journal:")


def _this_process() -> str:
    return f"{_machine()} {os.getpid()} {_birth(psutil.Process())}"


def _machine() -> str:
    """Name the place where a process number means something: containers may share a host name."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _birth(process: psutil.Process) -> str:
    """Name the moment when a process began, in a word that stays the same while it lives."""
    try:  # Linux knows it by a clock that nobody sets, and psutil by the one that tells the time
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        stat = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
    except OSError:
        return f"{process.create_time():.2f}"
    return f"{boot[:8]}+{stat.rpartition(')')[2].split()[19]}"  # 22nd field, starttime: proc(5)


def _is_dead(process: str) -> bool:
    """Whether a process of this machine is dead; its number may belong to another one by now."""
    machine, pid, birth = process.split()
    if machine != _machine():
        return False
    try:
        found = psutil.Process(int(pid))
        return _birth(found) != birth or bool(found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:  # it exists, and is another user's
        return False
