from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint cannot be kept or used; the sentence says which and why.

    Example:
        .. testcode::

            import optuna
            from optuna_ext import CheckpointError, CheckpointStore

            try:
                CheckpointStore(":memory:").load(optuna.trial.FixedTrial({}))
            except CheckpointError as error:
                assert str(error) == "trial 0 has no checkpoint."
    """


class UnusableError(Exception):
    """One file is of no use; another one may be."""
