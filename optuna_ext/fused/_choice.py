from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import replace
import time

import torch
from torch import Tensor

from optuna_ext.fused._engines import Engine
from optuna_ext.fused._engines import GradEngine
from optuna_ext.fused._engines import LoopEngine
from optuna_ext.fused._engines import Program
from optuna_ext.fused._engines import VmapEngine
from optuna_ext.fused._feed import Batch
from optuna_ext.fused._stack import StackEngine
from optuna_ext.fused._stack import work_of


ENGINES: dict[str, Callable[[Program], Engine]] = {
    "stack": StackEngine,
    "vmap": VmapEngine,
    "grad": GradEngine,
    "loop": LoopEngine,
}
"""The engines by their names."""

_SAMPLE = 4  # members by whom the others are judged
_TIMED = 2  # steps
_STACK_WORK = 4096  # multiplications per row up to which the stack engine may win


def make(name: str, program: Program) -> Engine:
    """Make an engine, with the layout in memory that it needs."""
    engine = ENGINES[name](program)
    program.relayout(members_last=name == "stack")
    return engine


def choose(wanted: str, program: Program, batch: Batch, *, tolerance: float) -> tuple[Engine, str]:
    """Make the engine that is wanted, or the fastest of those that are right.

    Right is an engine whose gradients of some members are those of their own modules.

    Returns:
        The engine, and a sentence that says why it is this one.

    Raises:
        ValueError: If the engine that is wanted cannot train these members.
    """
    sample = [slot for slot in program.taken if slot not in batch.idle][:_SAMPLE]
    few = replace(batch, idle=tuple(slot for slot in program.taken if slot not in sample))
    saved = [matrix.clone() for matrix in program.matrices()]

    def restore() -> None:
        for matrix, rows in zip(program.matrices(), saved, strict=True):
            matrix.copy_(rows)

    loop = make("loop", program)
    right = loop.gradients(few)[1][sample]
    restore()
    if wanted == "loop":
        return loop, "The loop was asked for."
    seconds = {"loop": _seconds(loop, few) / len(sample) * len(program.taken)}
    restore()
    problems: dict[str, str] = {}
    for name in _candidates(wanted, program, batch):
        if name == "grad" and "vmap" in seconds and wanted == "auto":
            continue
        problem = None
        try:
            engine = make(name, program)
            gradients = engine.gradients(batch)[1]
            restore()
            problem = _difference(gradients[sample], right, sample, tolerance)
            if problem is None:
                seconds[name] = _seconds(engine, batch)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            problem = str(error).strip().partition("\n")[0]
        restore()
        if problem is not None:
            problems[name] = problem
    if wanted != "auto":
        if wanted in problems:
            raise ValueError(f"engine must not be {wanted!r}: {problems[wanted]}")
        return make(wanted, program), f"The engine {wanted!r} was asked for."
    best = min(seconds, key=seconds.__getitem__)
    return make(best, program), _reason(best, seconds, problems, len(program.taken))


def _candidates(wanted: str, program: Program, batch: Batch) -> Sequence[str]:
    if wanted != "auto":
        return [wanted]
    return [*(["stack"] if 0 < work_of(program, batch) <= _STACK_WORK else []), "vmap", "grad"]


def _seconds(engine: Engine, batch: Batch) -> float:
    engine.step(batch)
    # On a busy machine only the time of this thread says something, if there is just this one.
    alone = torch.get_num_threads() == 1 and batch.inputs.is_cpu
    clock = time.thread_time if alone else time.perf_counter
    found = []
    for _ in range(_TIMED):
        _synchronize(batch)
        started = clock()
        engine.step(batch)
        _synchronize(batch)
        found.append(clock() - started)
    return min(found)


def _synchronize(batch: Batch) -> None:
    if batch.inputs.is_cuda:
        torch.cuda.synchronize(batch.inputs.device)


def _difference(
    gradients: Tensor, right: Tensor, sample: Sequence[int], tolerance: float
) -> str | None:
    for slot, row, expected in zip(sample, gradients, right, strict=True):
        scale = expected.abs().nan_to_num(0, 0, 0).max().item()
        if not torch.allclose(row, expected, tolerance, tolerance * scale, equal_nan=True):
            return (
                f"the gradient of the member in slot {slot} is not that of its own module, so "
                "members differ in something that is neither a parameter nor a buffer."
            )
    return None


def _reason(best: str, seconds: dict[str, float], problems: dict[str, str], members: int) -> str:
    times = ", ".join(
        f"{name} {1e6 * value / members:.3g} us" for name, value in sorted(seconds.items())
    )
    failed = "".join(f" Not {name}: {problem}" for name, problem in problems.items())
    return f"The fastest per member and step ({times}).{failed}"
