from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint cannot be kept or used; the sentence says which and why.

    Example:
        >>> str(CheckpointError("trial 3 has no checkpoint."))
        'trial 3 has no checkpoint.'
    """


class UnusableError(Exception):
    """One file is of no use; another one may be."""


def reason_of(error: Exception) -> str:
    """Return what an error says, in the words of the system if it is one of those."""
    return str(getattr(error, "strerror", None) or error)
