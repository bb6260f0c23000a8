"""Trials whose worker died: noticed on every storage, and tried again from where they were.

Optuna's own heartbeat, which :func:`optuna_ext.open_storage` switches on, needs a relational
database and ``study.optimize``. A :class:`Heartbeat` needs neither: it beats through a user
attribute of the trial, which every storage keeps and every way of running trials allows.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Container
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
import functools
import itertools
import threading
import time
from typing import Any
from typing import TYPE_CHECKING
from typing import TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import create_trial
from optuna.trial import TrialState

from optuna_ext._checks import check_int
from optuna_ext._logs import get_logger
from optuna_ext.lineage import CHECKPOINT
from optuna_ext.lineage import Checkpoint
from optuna_ext.samplers import _host


if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial

HEARTBEAT = "heartbeat"  # user attribute: a counter that changes while the trial runs
_OWN = "optuna_ext:"  # begins user attributes about the process that runs a trial
_LOST = "lost"  # what others write there when it did not change any more

# System attributes of a retried trial, by the names that Optuna gave them: the first trial of
# the series, and all that went before.
_ORIGINAL = "failed_trial"
_HISTORY = "retry_history"

_PATIENCE = 3  # intervals without a beat after which a worker counts as dead
_logger = get_logger(__name__)
_T = TypeVar("_T")


class Heartbeat:
    """Notice trials whose worker died, on any storage, and try them again.

    While a trial runs, its worker changes the trial's user attribute ``heartbeat`` every
    ``interval`` seconds, and looks at the beats of all other running trials. One that misses three
    beats in a row is marked as failed, and enqueued again if it has retries left: with its
    parameters, its user attributes and, up to its checkpoint, its reported values, by the
    conventions of Optuna's own ``RetryHeartbeatStaleTrialCallback``. A worker that was only out of
    reach cannot write to the trial any more.

    Watchers go by changes that they see and by their own monotonic clock: clocks that differ
    between machines, or jump, do no harm, and neither does a watcher that was suspended.

    Running trials for which nobody has ever beaten are left alone: they may be another program's,
    or wait inside ``study.ask``. So one whose worker dies there, before its first beat, stays
    running until you tell it.

    Example:
        .. testcode::

            import optuna
            from optuna_ext import Heartbeat, open_storage

            study = optuna.create_study(storage=open_storage("journal:study.log"))
            heartbeat = Heartbeat(study, retries=2)


            def objective(trial):
                return trial.suggest_float("x", -1, 1) ** 2


            study.optimize(heartbeat(objective), n_trials=5)

            # Ask and tell:
            trial = study.ask()
            with heartbeat.beating(trial):
                study.tell(trial, objective(trial))

    Args:
        study:
            The study.
        interval:
            Seconds between two beats, ``interval > 0``.
        retries:
            How often a trial is tried again that got no further, ``retries >= 0``. One that had
            written a new checkpoint before its worker died starts counting anew.

    Raises:
        ValueError: If ``interval`` or ``retries`` is out of range.
    """

    def __init__(self, study: Study, *, interval: float = 60.0, retries: int = 0) -> None:
        if not interval > 0:
            raise ValueError(f"`interval` must be greater than 0 seconds, but got {interval!r}.")
        self._study = study
        self._interval = float(interval)
        self._retries = check_int("retries", retries)
        self._watch = Watch(interval=self._interval)
        self._own: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, objective: Callable[[Trial], _T]) -> Callable[[Trial], _T]:
        """Return an objective for ``study.optimize`` that beats while ``objective`` runs."""

        @functools.wraps(objective)
        def beating_objective(trial: Trial) -> _T:
            with self.beating(trial):
                return objective(trial)

        return beating_objective

    @contextmanager
    def beating(self, trial: Trial) -> Iterator[None]:
        """Beat for a trial inside the block; for ask-and-tell.

        Args:
            trial:
                A running trial that this process has asked for.
        """
        self._own.add(trial.number)
        try:
            self._look()
            beat = functools.partial(trial.set_user_attr, HEARTBEAT)
            with beating(beat, interval=self._interval, after_beat=self._look):
                yield
        finally:
            self._own.discard(trial.number)

    def fail_stale_trials(self) -> list[int]:
        """Wait until it is known of every running trial whether its worker lives.

        Trials of dead workers are marked as failed, and enqueued again if they have retries left.
        This takes up to four intervals, and no time if no trial of another worker is running.

        Returns:
            The numbers of the trials that failed.
        """
        watch = Watch(interval=self._interval)
        first = {trial.number: _sign(trial) for trial in self._others()}
        failed: list[int] = []
        while first:
            others = {trial.number: trial for trial in self._others()}
            silent = watch.silent(others.values())
            failed += [trial.number for trial in silent if self._give_up(trial)]
            known = {trial.number for trial in silent}
            first = {
                number: sign
                for number, sign in first.items()
                if number in others and number not in known and _sign(others[number]) == sign
            }
            if first:
                time.sleep(self._interval / 4)
        return failed

    def _look(self) -> None:
        with self._lock:  # several trials may run in threads of this process
            for trial in self._watch.silent(self._others()):
                self._give_up(trial)

    def _others(self) -> list[FrozenTrial]:
        """Return other workers' trials whose heartbeat is to be watched."""
        trials = self._study.get_trials(deepcopy=False)
        known = self._own | superseded(trials)
        return [
            trial
            for trial in trials
            if trial.number not in known
            and (
                (trial.state == TrialState.RUNNING and HEARTBEAT in trial.user_attrs)
                or (self._is_given_up(trial) and has_retries(trials, trial, self._retries))
            )
        ]

    def _is_given_up(self, trial: FrozenTrial) -> bool:
        """Whether a worker failed the trial that may have died before it enqueued it again."""
        return trial.state == TrialState.FAIL and trial.user_attrs.get(HEARTBEAT) == _LOST

    def _give_up(self, trial: FrozenTrial) -> bool:
        """Mark a trial as failed and enqueue it again; False if another worker did or it ended."""
        if trial.state == TrialState.RUNNING:
            try:
                _host.set_trial_user_attr(self._study, trial, HEARTBEAT, _LOST)
                self._study.tell(trial.number, state=TrialState.FAIL)
            except (UpdateFinishedTrialError, ValueError):  # finished at this very moment
                return False
        trials = self._study.get_trials(deepcopy=False)
        # Another watcher may have been quicker, after the first one had died between both steps.
        if trial.number not in superseded(trials) and has_retries(trials, trial, self._retries):
            retry(self._study, trial)
        return True


class Watch:
    """How long trials have been silent, as seen from this process alone.

    Args:
        interval:
            Seconds between two beats of a trial.
    """

    def __init__(self, *, interval: float) -> None:
        self._interval = interval
        self._looked = time.monotonic()
        self._silence: dict[int, tuple[object, float]] = {}

    def silent(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of ``trials`` that have missed too many beats."""
        now = time.monotonic()
        # However long ago the last look was: who was suspended has missed beats that were sent.
        passed = min(now - self._looked, self._interval)
        self._looked = now
        before, self._silence = self._silence, {}
        silent = []
        for trial in trials:
            sign, silence = before.get(trial.number, (None, 0.0))
            silence = silence + passed if sign == _sign(trial) else 0.0
            self._silence[trial.number] = _sign(trial), silence
            if silence >= _PATIENCE * self._interval:
                silent.append(trial)
        return silent


@contextmanager
def beating(
    beat: Callable[[int], None], *, interval: float, after_beat: Callable[[], None]
) -> Iterator[None]:
    """Beat inside the block: at once, and then from a thread.

    Args:
        beat:
            Writes the number that it is given to the trial's heartbeat.
        interval:
            Seconds between two beats.
        after_beat:
            Called after each of the thread's.
    """
    beat(0)
    ended = threading.Event()
    thread = threading.Thread(
        target=_go_on_beating, args=(beat, interval, after_beat, ended), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _go_on_beating(
    beat: Callable[[int], None],
    interval: float,
    after_beat: Callable[[], None],
    ended: threading.Event,
) -> None:
    for count in itertools.count(1):
        if ended.wait(interval):
            return
        try:
            beat(count)
            after_beat()
        except UpdateFinishedTrialError:  # others have given it up, or it was told
            return
        except Exception as error:  # noqa: BLE001 - the storage is away: the next may get through
            _logger.warning(f"A heartbeat was lost: {error}")


def retry(study: Study, trial: FrozenTrial, *, forget: Container[str] = ()) -> None:
    """Enqueue a trial again that was cut short, to go on from its checkpoint if it has one.

    Args:
        study:
            The study.
        trial:
            One of its trials.
        forget:
            User attributes that the new trial shall not have.
    """
    checkpoint = Checkpoint.of(trial)
    # What comes after its checkpoint will be trained, and reported, again.
    reported = {
        step: value
        for step, value in trial.intermediate_values.items()
        if checkpoint is not None and step <= checkpoint.step
    }
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={
                key: value
                for key, value in trial.user_attrs.items()
                if key != HEARTBEAT and not key.startswith(_OWN) and key not in forget
            },
            system_attrs={
                _ORIGINAL: trial.number,
                **trial.system_attrs,
                _HISTORY: _history(trial),
            },
            intermediate_values=reported,
        )
    )


def has_retries(trials: Sequence[FrozenTrial], trial: FrozenTrial, retries: float) -> bool:
    """Return whether a trial that was cut short may be enqueued again.

    Args:
        trials:
            All trials of the study, by number.
        trial:
            The one.
        retries:
            How often a trial is tried again that got no further than its last checkpoint.
    """
    reached = trial.user_attrs.get(CHECKPOINT)
    stuck = itertools.takewhile(
        lambda number: trials[number].user_attrs.get(CHECKPOINT) == reached,
        reversed(_history(trial)),
    )
    return len(list(stuck)) <= retries


def _history(trial: FrozenTrial) -> list[int]:
    return [*trial.system_attrs.get(_HISTORY, []), trial.number]


def superseded(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials that others were enqueued to repeat."""
    histories: list[list[int]] = [trial.system_attrs.get(_HISTORY, []) for trial in trials]
    return {history[-1] for history in histories if history}


def _sign(trial: FrozenTrial) -> Any:
    return trial.state, trial.user_attrs.get(HEARTBEAT)
