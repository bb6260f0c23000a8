"""The contents that this process wrote last, which need not be unpickled to be read."""

from __future__ import annotations

from collections import OrderedDict
import threading

from optuna_ext.checkpoints._packed import Packed


class Recent:
    """Contents by the SHA-256 of their files; a pickle leaves them behind.

    A network that trains for a few milliseconds at a time spends as long on unpickling. Whoever
    asks must have seen that the file is still the one of this SHA-256.

    Args:
        limit:
            Bytes; the oldest ones give way.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._room = limit
        self._kept: OrderedDict[str, Packed] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Recent], tuple[float]]:
        return type(self), (self._limit,)

    def put(self, sha256: str, content: Packed) -> None:
        """Keep a content, if there is room for it."""
        if content.size > self._limit:
            return
        with self._lock:
            if sha256 not in self._kept:
                self._kept[sha256] = content
                self._room -= content.size
            self._kept.move_to_end(sha256)
            while self._room < 0:
                self._room += self._kept.popitem(last=False)[1].size

    def get(self, sha256: str) -> Packed | None:
        """Return a content if it is kept; it must not be changed."""
        with self._lock:
            if sha256 in self._kept:
                self._kept.move_to_end(sha256)
            return self._kept.get(sha256)
