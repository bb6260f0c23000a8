from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os

import torch
from torch import Tensor


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
    """Whether memory ran out, for which only CUDA's allocator has an exception of its own."""
    # The last one is what cuBLAS and cuDNN say, which allocate beside it.
    texts = "out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def release_memory(device: torch.device) -> None:
    """Give memory that is no longer used back to the device."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def tolerance(weights: Tensor, *, amp: bool) -> float:
    """How far two ways to compute the same may be apart, as a share of the largest number."""
    if amp:
        return 0.1
    if weights.dtype == torch.float64:
        return 1e-8
    # Convolutions on a GPU are in TF32 unless told otherwise, with 10 bits instead of 23.
    tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return 0.02 if weights.is_cuda and tf32 else 1e-3


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
