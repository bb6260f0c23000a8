"""Continue a trial from another trial's weights, or from its own after a crash."""

from __future__ import annotations

from optuna_ext.checkpoints._errors import CheckpointError
from optuna_ext.checkpoints._run import Run
from optuna_ext.checkpoints._store import CheckpointStore


__all__ = ["CheckpointError", "CheckpointStore", "Run"]
