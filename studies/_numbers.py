"""Numbers with commas between them, as options take them."""

from __future__ import annotations

from typing import TypeVar

from studies._errors import UserError


_Number = TypeVar("_Number", int, float)


def parse_numbers(option: str, text: str, kind: type[_Number]) -> list[_Number]:
    """Return the numbers of a text such as ``80,82,84``.

    Raises:
        UserError: If a part is not a number of this kind.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option} must be {what} with commas between, not {text!r}") from error
