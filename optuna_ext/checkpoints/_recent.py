"""The contents that this process wrote last, which need not be unpickled to be read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
import copy
import threading
from typing import Any

from torch import Tensor


class Recent:
    """Copies of contents, by the SHA-256 of their files; a pickle leaves them behind.

    A network that trains for a few milliseconds at a time spends as long on unpickling. Whoever
    asks must have seen that the file is still the one of this SHA-256.

    Args:
        limit:
            Bytes; the oldest ones give way.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._room = limit
        self._kept: OrderedDict[str, tuple[Mapping[str, Any], int]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return type(self), (self._limit,)

    def put(self, sha256: str, content: Mapping[str, Any], size: int) -> None:
        """Keep a copy of what :func:`plain` returned, if there is room for it."""
        if size > self._limit:
            return
        with self._lock:
            if sha256 not in self._kept:
                self._kept[sha256] = _copy(content), size
                self._room -= size
            self._kept.move_to_end(sha256)
            while self._room < 0:
                self._room += self._kept.popitem(last=False)[1][1]

    def get(self, sha256: str) -> Any | None:
        """Return a copy of a content, on the CPU, if it is kept."""
        with self._lock:
            if sha256 not in self._kept:
                return None
            self._kept.move_to_end(sha256)
            content, _ = self._kept[sha256]
        return _copy(content)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)
        for key, entry in value.items():
            copied[key] = _copy(entry)
        if hasattr(value, "_metadata"):
            copied._metadata = _copy(value._metadata)  # type: ignore[attr-defined]
        return copied
    if type(value) in (list, tuple, set):
        return type(value)(_copy(entry) for entry in value)
    return value
