from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint cannot be kept or used; the sentence says which and why.

    Example:
        >>> str(CheckpointError("trial 3 has no checkpoint."))
        'trial 3 has no checkpoint.'
    """


class UnusableError(Exception):
    """One file is of no use; another one may be."""
