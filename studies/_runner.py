"""One process that runs trials of a study until it has all of them.

``python -m studies._runner`` is a worker: its job comes as a line of JSON on the standard input,
whose end tells it that its parent is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
from contextlib import contextmanager
import logging
import math
import os
import signal
import sys
import threading
import time
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import Trial

from studies._errors import UserError
from studies._interrupt import Interrupt
from studies._job import connect
from studies._job import Job
from studies._logs import quiet_optuna
from studies._outage import damage_in_a_sentence
from studies._outage import is_outage
from studies._outage import Outage
from studies._outage import tolerant
from studies._tickets import INTERRUPTED
from studies._tickets import Tickets


_REASON_LENGTH = 500  # characters


def run_trials(
    job: Job, *, interrupt: Interrupt, after_trial: Callable[[], None] = lambda: None
) -> None:
    """Run trials until the study has its total, the time is over or a signal comes.

    Args:
        job: What to run.
        interrupt: Listens for signals.
        after_trial: Called after every trial.

    Raises:
        UserError: If the storage stays out of reach, or its file is damaged.
    """
    with damage_in_a_sentence(job.storage):
        _run(job, interrupt=interrupt, after_trial=after_trial)


def _run(job: Job, *, interrupt: Interrupt, after_trial: Callable[[], None]) -> None:
    storage = connect(job.storage)
    study, objective = job.load(storage)
    tickets = Tickets(study, storage, location=job.storage, total=job.trials, retries=job.retries)
    tickets.sign_trials()
    outage = Outage(interrupt)

    def may_start() -> bool:
        in_time = job.deadline is None or time.time() < job.deadline
        may = in_time and interrupt.signum is None and tickets.take()
        if may and interrupt.signum is not None:  # it came while waiting for the lock
            tickets.give_back()
            may = False
        return may

    def run_trial(trial: Trial) -> Any:
        with _reason_of_failure(trial):
            with interrupt.raising():
                value = objective.function(trial, **job.arguments)
            _check_value(value, n_directions=len(job.directions))
        return value

    def go_on(study: Study, trial: FrozenTrial) -> None:
        del trial
        outage.is_over()
        after_trial()
        if not may_start():
            study.stop()

    def run() -> None:
        if may_start():
            study.optimize(run_trial, catch=(Exception,), callbacks=[go_on])

    _until_done(run, interrupt=interrupt, outage=outage, tickets=tickets)


def _until_done(
    run: Callable[[], None], *, interrupt: Interrupt, outage: Outage, tickets: Tickets
) -> None:
    """Run again while the storage is out of reach, or when others have given a trial up."""
    while interrupt.signum is None:
        try:
            run()
            return
        except KeyboardInterrupt:
            if interrupt.signum is None:  # raised by the objective itself
                interrupt.signum = signal.SIGINT
        except (Exception, _OutageError) as error:  # noqa: BLE001 - raised again by wait
            given_up = False
            with contextlib.suppress(Exception):
                given_up = not is_outage(error) and tickets.was_given_up()
            if not given_up:
                outage.wait(error)
        finally:
            tolerant(tickets.give_back)()
            tickets.ended()
    tolerant(tickets.fail_orphans)()  # as long as its checkpoint is wanted, nobody deletes it


class _OutageError(BaseException):
    """The storage failed in the objective; not for Optuna, which would tell the trial's end."""


@contextmanager
def _reason_of_failure(trial: Trial) -> Iterator[None]:
    """Keep the reason why a trial fails with the trial."""
    try:
        yield
    except optuna.TrialPruned:
        raise
    except KeyboardInterrupt:
        trial.set_user_attr("reason", INTERRUPTED)
        raise
    except _InvalidValueError as error:
        trial.set_user_attr("reason", str(error)[:_REASON_LENGTH])
        raise
    except (Exception, SystemExit) as error:
        if is_outage(error):
            raise _OutageError from error
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        trial.set_user_attr("reason", text[:_REASON_LENGTH])
        if isinstance(error, SystemExit):  # with which Optuna would leave the trial running
            raise RuntimeError(text) from error
        raise


class _InvalidValueError(ValueError):
    """The objective returned what is not a value of the study."""


def _check_value(returned: Any, *, n_directions: int) -> None:
    """Refuse what Optuna would refuse, in words that say what to do."""
    is_many = isinstance(returned, Sequence) and not isinstance(returned, str)
    values = list(returned) if is_many else [returned]
    for value in values:
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise _InvalidValueError(f"returned {value!r}, not a number") from error
        if math.isnan(number):
            raise _InvalidValueError("returned nan")
    if len(values) != n_directions:
        has = "1 direction" if n_directions == 1 else f"{n_directions} directions"
        count = "1 value" if len(values) == 1 else f"{len(values)} values"
        raise _InvalidValueError(
            f"returned {count}, but the study has {has}: give --direction once per value"
        )


def _stop_with_parent() -> None:
    # Not sys.stdin.read(), whose lock Python could not get any more when it shuts down.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _work() -> int:
    interrupt = Interrupt(insist=False)
    with interrupt.listening():
        job = Job.from_json(sys.stdin.readline())
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        with quiet_optuna(logging.StreamHandler()):
            try:
                run_trials(job, interrupt=interrupt)
            except UserError as error:
                sys.stderr.write(f"error: {error}\n")
                return 2
    return interrupt.exit_code


if __name__ == "__main__":
    sys.exit(_work())
