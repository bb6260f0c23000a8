from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
import time

import torch
from torch import Tensor

from optuna_ext.fused._devices import is_out_of_memory
from optuna_ext.fused._engines import Engine
from optuna_ext.fused._engines import GradEngine
from optuna_ext.fused._engines import Program
from optuna_ext.fused._engines import VmapEngine
from optuna_ext.fused._feed import Batch
from optuna_ext.fused._loop import LoopEngine
from optuna_ext.fused._signature import stack_of
from optuna_ext.fused._stack import StackEngine


ENGINES: dict[str, Callable[[Program], Engine]] = {
    "stack": StackEngine,
    "vmap": VmapEngine,
    "grad": GradEngine,
    "loop": LoopEngine,
}
"""The engines by their names."""

_COMPILED = {"stack", "vmap"}  # if asked to

# What torch raises where a model does something that an engine cannot follow.
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
_SAMPLE = 4  # members by whom the others are judged
_TIMED, _STEPS = 2, 2  # how often, and how many steps in a row: a loop is faster then


def make(name: str, program: Program) -> Engine:
    """Make an engine."""
    return ENGINES[name](program)


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
    loop = LoopEngine(program)
    if wanted == "loop":
        return loop, "The loop was asked for."
    with _unchanged(program):
        expected = loop.gradients(few)[1][sample]
    with _unchanged(program):
        seconds = {"loop": _seconds(loop, few) / len(sample) * len(program.taken)}
    engines: dict[str, Engine] = {"loop": loop}
    problems: dict[str, str] = {}
    for name in _candidates(wanted, program):
        if _is_needless(name, engines):
            continue
        try:
            if loop.unused:  # torch's optimizers skip them, even their weight decay
                raise ValueError(f"the parameter {min(loop.unused)!r} takes no part in the loss")
            engine = make(name, program)
            with _unchanged(program):
                gradients = engine.gradients(batch)[1][sample]
            _compare(gradients, expected, sample, tolerance)
            with _unchanged(program):
                seconds[name] = _seconds(engine, batch)
            engines[name] = engine
        except _FAILURES as error:
            if is_out_of_memory(error):
                raise
            problems[name] = str(error).strip().partition("\n")[0]
    loop.close()
    if program.compile and problems and not engines.keys() & _COMPILED:
        program.compile = False  # whether the compiler is to blame or not
        engine, reason = choose(wanted, program, batch, tolerance=tolerance)
        return engine, f"{reason} Not compiled: {next(iter(problems.values()))}"
    if wanted in problems:
        raise ValueError(f"engine must not be {wanted!r} for these members: {problems[wanted]}")
    best = min(seconds, key=seconds.__getitem__) if wanted == "auto" else wanted
    return engines[best], _reason(wanted, seconds, problems, len(program.taken))


@contextmanager
def _unchanged(program: Program) -> Iterator[None]:
    """Put everything back in the end."""
    saved = [matrix.clone() for matrix in program.matrices()]
    steps = program.steps.clone()
    try:
        yield
    finally:
        program.steps.copy_(steps)
        for matrix, rows in zip(program.matrices(), saved, strict=True):
            matrix.copy_(rows)


def _candidates(wanted: str, program: Program) -> Sequence[str]:
    if wanted != "auto":
        return [wanted]
    return [*(["stack"] if stack_of(program.model) else []), "vmap", "grad"]


def _is_needless(name: str, engines: Mapping[str, Engine]) -> bool:
    """Whether one engine need not be tried, given those that are right."""
    stack = engines.get("stack")
    if isinstance(stack, StackEngine) and stack.is_compiled:
        return True  # none is as fast, and the compiler takes seconds for each
    return name == "grad" and "vmap" in engines  # it is for what vmap cannot do


def _seconds(engine: Engine, batch: Batch) -> float:
    engine.train([batch])
    # On a busy machine only the time of this thread says something, if there is just this one.
    alone = torch.get_num_threads() == 1 and batch.inputs.is_cpu
    clock = time.thread_time if alone else time.perf_counter
    found = []
    for _ in range(_TIMED):
        _synchronize(batch)
        started = clock()
        engine.train([batch] * _STEPS)
        _synchronize(batch)
        found.append((clock() - started) / _STEPS)
    return min(found)


def _synchronize(batch: Batch) -> None:
    if batch.inputs.is_cuda:
        torch.cuda.synchronize(batch.inputs.device)


def _compare(gradients: Tensor, expected: Tensor, sample: Sequence[int], tolerance: float) -> None:
    for slot, row, own in zip(sample, gradients, expected, strict=True):
        if not _close(row, own, tolerance):
            raise ValueError(
                f"the gradient of the member in slot {slot} is not that of its own module, so "
                "members differ in something that is neither a parameter nor a buffer."
            )


def compare_outputs(
    program: Program, slots: Sequence[int], x: Tensor, outputs: Tensor, *, tolerance: float
) -> None:
    """Compare what an engine gives with what the members' own modules give.

    Raises:
        ValueError: If that differs, or a slot is free.
    """
    for slot in slots:
        model = program.models[slot]
        if model is None:
            raise ValueError(f"slot must be taken, but {slot} is free.")
        with program.autocast():
            own = torch.func.functional_call(model.eval(), program.weights.tensors_of(slot), (x,))
        if not _close(outputs[slot], own, tolerance):
            raise ValueError(
                f"members must differ in parameters and buffers only, but the outputs of the one "
                f"in slot {slot} are not those of its own module."
            )


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal, up to a share of the largest number."""
    scale = b.abs().nan_to_num(0, 0, 0).max().item() if b.numel() else 0.0
    return torch.allclose(a, b, tolerance, tolerance * scale, equal_nan=True)


def _reason(wanted: str, seconds: dict[str, float], problems: dict[str, str], members: int) -> str:
    times = ", ".join(
        f"{name} {1e6 * value / members:.3g} us"
        for name, value in sorted(seconds.items(), key=lambda item: item[1])
    )
    why = "It is the fastest" if wanted == "auto" else "It was asked for"
    failed = "".join(f" Not {name}: {problem}" for name, problem in problems.items())
    return f"{why} (per member and step: {times}).{failed}"
