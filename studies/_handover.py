"""The file of a run with --fused, and what becomes of its trials without."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from optuna.study import Study
from optuna.trial import TrialState

from studies._errors import UserError
from studies._job import file_beside
from studies._job import Job
from studies._tickets import Tickets


def fused_checkpoint(job: Job) -> Path:
    """Name the file from which the same command goes on after a kill."""
    return file_beside(job.storage, f"{job.study}.fused.pt")


def take_over(study: Study, job: Job, tickets: Tickets) -> None:
    """Let trials be repeated one by one that an interrupted run with --fused was training.

    Raises:
        UserError: If none is repeated in this study.
    """
    checkpoint = fused_checkpoint(job)
    if not os.path.exists(checkpoint):  # which takes names that are too long, too
        return
    from optuna_ext import fused

    with contextlib.suppress(fused.CheckpointInUseError), fused.locked(checkpoint):
        begun = fused.interrupted(study, checkpoint)
        running = [trial.number for trial in begun if trial.state == TrialState.RUNNING]
        if running and not job.retries:
            raise UserError(
                f"study {job.study!r} has {len(running)} trials in training with --fused: go on "
                "with it, or begin them again with --retries 1"
            )
        tickets.repeat(running)
