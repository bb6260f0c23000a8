"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import functools
import os
import sys


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB that it has freed, where the C library is glibc.

    Each step of a training allocates what the one before has freed. Given back to the system in
    between, every page of it costs an interrupt at its first use: a third of the time of a small
    convolutional network, a fifth of that of a perceptron of 1.7 million weights. The rest of the
    process is not made slower; glibc raises these limits itself, but to the size of the largest
    block only, and not to that of all blocks of a step.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest value that there is
        mallopt(_M_TRIM_THRESHOLD, 2**30)
