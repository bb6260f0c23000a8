from __future__ import annotations

import operator


def check_int(name: str, value: int, *, low: int = 0, high: int | None = None) -> int:
    """Return ``value`` as a Python int in ``low..high``, or say in one sentence why not."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, but got {value!r}.") from None
    if number < low:
        raise ValueError(f"`{name}` must be at least {low}, but got {number}.")
    if high is not None and number > high:
        raise ValueError(f"`{name}` must be at most {high}, but got {number}.")
    return number
