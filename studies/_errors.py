"""What the user did wrong, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
import difflib


class UserError(Exception):
    """A mistake of the user: its message is the sentence the command line ends with (code 2)."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """Return the error for a name that is none of ``choices``, with the nearest one suggested."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(choices) if choices else "none"
    return UserError(f"unknown {kind} {name!r}: {hint}choose from {listed}")
