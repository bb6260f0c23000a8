"""One process that runs trials of a study until it has all of them.

``python -m studies._runner`` is a worker: its job comes as a line of JSON on the standard input,
whose end tells it that its parent is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
import logging
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

from studies._interrupt import Interrupt
from studies._job import connect
from studies._job import Job
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
    """
    storage = connect(job.storage)
    study, objective = job.load(storage)
    tickets = Tickets(study, storage, location=job.storage, total=job.trials)

    def may_start() -> bool:
        in_time = job.deadline is None or time.time() < job.deadline
        may = in_time and interrupt.signum is None and tickets.take()
        if may and interrupt.signum is not None:  # it came while waiting for the lock
            tickets.give_back()
            may = False
        return may

    def run_trial(trial: Trial) -> Any:
        tickets.started(trial)
        with _reason_of_failure(trial), interrupt.raising():
            return objective.function(trial, **job.arguments)

    def go_on(study: Study, trial: FrozenTrial) -> None:
        del trial
        after_trial()
        if not may_start():
            study.stop()

    if may_start():
        try:
            study.optimize(run_trial, catch=(Exception,), callbacks=[go_on])
        except KeyboardInterrupt:
            if interrupt.signum is None:  # raised by the objective itself
                interrupt.signum = signal.SIGINT
        finally:
            tickets.give_back()


@contextmanager
def _reason_of_failure(trial: Trial) -> Iterator[None]:
    """Keep the reason why a trial fails with the trial."""
    try:
        yield
    except optuna.TrialPruned:
        raise
    except KeyboardInterrupt:
        trial.set_user_attr("reason", "interrupted")
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        trial.set_user_attr("reason", text[:_REASON_LENGTH])
        raise


@contextmanager
def quiet_optuna(handler: logging.Handler) -> Iterator[None]:
    """Send Optuna's and Python's warnings to ``handler``, and Optuna's line per trial nowhere."""
    optuna.logging.disable_default_handler()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("optuna", "py.warnings", "objectives")]
    handler.addFilter(_is_news)
    handler.setFormatter(_OneLine())
    for logger in loggers:
        logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger in loggers:
            logger.removeHandler(handler)
        optuna.logging.set_verbosity(verbosity)
        optuna.logging.enable_default_handler()


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.name == "py.warnings":  # whose further lines quote the source
            text = text.partition("\n")[0]
        return f"{record.levelname.lower()}: {' '.join(text.split())}"


def _is_news(record: logging.LogRecord) -> bool:
    # How a trial failed is said by its attribute "reason", in one line and without a traceback.
    return not record.getMessage().startswith("Trial ")


def _stop_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _work() -> int:
    interrupt = Interrupt(insist=False)
    with interrupt.listening():
        job = Job.from_json(sys.stdin.readline())
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        with quiet_optuna(logging.StreamHandler()):
            run_trials(job, interrupt=interrupt)
    return interrupt.exit_code


if __name__ == "__main__":
    sys.exit(_work())
