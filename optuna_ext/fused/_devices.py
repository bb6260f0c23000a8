from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """Find a device of this machine; ``"auto"`` is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: If this machine does not have it.
    """
    present = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    present += ["mps"] if torch.backends.mps.is_available() else []
    present += ["cpu"]
    name = {"auto": present[0], "cuda": "cuda:0"}.get(str(device), str(device))
    if name not in present:
        raise ValueError(
            f"device must be one of {['auto', *present]} on this machine, but it is {name!r}."
        )
    return torch.device(name)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, for which only CUDA has an exception of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory")
    )


def release_memory(device: torch.device) -> None:
    """Give memory that is no longer used back to the device."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute on the CPU with one thread.

    Small operations gain nothing from a second one, and where others use the cores, too, waiting
    for it has been measured to make a step 40 to 100 times slower. A program that sets
    ``OMP_NUM_THREADS`` has chosen.
    """
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
