"""What the user did wrong, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
import difflib
import signal
import sys
from typing import Any

from typer.core import TyperCommand
from typer.core import TyperGroup
from typer.exceptions import TyperException


_INTERRUPTED = 128 + signal.SIGINT  # to which typer, too, turns a KeyboardInterrupt


class UserError(Exception):
    """A mistake of the user: its message is the sentence the command line ends with (code 2)."""


class _InSentences:
    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options; the help shows no type of those that are on or off."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # as below
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> int:
        """Run the command; return its exit code, or exit with it in standalone mode."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as studies/__init__.py left it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main = super().main  # type: ignore[misc]  # of the class it is mixed into
            code = main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            code = int(code or 0)
        except TyperException as error:
            code = _say(error.format_message(), error.exit_code)
        except UserError as error:
            code = _say(str(error), 2)
        if code == _INTERRUPTED:
            _say("interrupted", code)
        if standalone_mode:
            sys.exit(code)
        return code


class SentenceCommand(_InSentences, TyperCommand):
    """A command that ends a mistake with one sentence and an interrupt with code 130."""


class SentenceGroup(_InSentences, TyperGroup):
    """Several commands that end likewise."""


def unknown(kind: str, name: str, choices: Iterable[str], *, where: str = "") -> UserError:
    """Return the error for a name that is none of ``choices``, with the nearest one suggested."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(choices) if choices else "none"
    what = f"{kind} {name!r} {where}".rstrip()
    return UserError(f"unknown {what}: {hint}choose from {listed}")


@contextmanager
def mistakes_in_a_sentence() -> Iterator[None]:
    """Turn what an objective says of its arguments or its data into a mistake of the user.

    Raises:
        UserError: If the block raises ``ValueError`` or ``OSError``.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def _say(message: str, code: int) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return code
