from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import copy
from functools import partial
import itertools
from typing import Any

import torch
from torch import Tensor

from optuna_ext._allocator import keep_freed_memory
from optuna_ext.fused._choice import choose
from optuna_ext.fused._choice import compare_outputs
from optuna_ext.fused._choice import ENGINES
from optuna_ext.fused._choice import make
from optuna_ext.fused._devices import tolerance
from optuna_ext.fused._engines import Engine
from optuna_ext.fused._engines import Program
from optuna_ext.fused._feed import Batch
from optuna_ext.fused._feed import batches
from optuna_ext.fused._losses import means_of
from optuna_ext.fused._member import Member
from optuna_ext.fused._optimizers import Optimizers
from optuna_ext.fused._optimizers import rule_of
from optuna_ext.fused._randomness import own_randomness
from optuna_ext.fused._signature import padded_template
from optuna_ext.fused._weights import tensors
from optuna_ext.fused._weights import Weights


_CHECKED = 8  # of the members that are new in an epoch


class Population:
    """Networks of one signature, each in a slot, trained side by side as one program.

    Every member is trained exactly as it would be alone, by its own optimizer on its own order of
    the rows: neighbors change nothing, whether they diverge, leave or are replaced.

    The work of a step is that of one forward and one backward for all, so that what a small
    network costs beside its arithmetic (Python, autograd, launches: 0.3 ms, against 2 us of
    arithmetic for 51 parameters and 256 rows) is paid once and not ``slots`` times. Where the
    arithmetic is most of it (from about 30 MFLOP per step on a CPU) there is nothing to gain, and
    ``"auto"`` takes the loop. On a CPU, the process keeps up to 1 GiB that it frees from then on.

    Args:
        template:
            Any member: gives the architecture and the kind of optimizer. It is not admitted.
        slots:
            How many members there is room for.
        loss:
            ``loss(outputs, y, **hyper)`` of one member: one loss per row ``(n,)``, whose mean is
            minimized, or their mean, a scalar.
        device:
            Where to train.
        engine:
            ``"stack"``, ``"vmap"``, ``"grad"`` or ``"loop"``; ``"auto"`` times them on the first
            rows and takes the fastest of those that are right.
        amp:
            Whether the networks compute in bfloat16 where torch holds that to be safe.
        compile:
            Whether to compile the step first. That takes 10 to 20 seconds for a stack of up to 128
            multiplications per row, once for all populations of the process that train it by this
            loss, and saves 5 us per member and step of 256 rows: it pays off from about four
            million steps on. Other networks are compiled for each number of slots and rows.
            Where there is no compiler, or torch is older than 2.7, ``reason`` says so.

    Raises:
        ValueError: If ``slots`` is below 1, there is no such ``engine``, or populations do not
            know the optimizer of ``template``.

    Example:
        >>> import torch
        >>> from torch.nn.functional import cross_entropy
        >>> from optuna_ext.fused import Member, Population
        >>> def member(lr):
        ...     model = torch.nn.Linear(2, 3)
        ...     return Member(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=lr))
        >>> population = Population(member(1.0), slots=2, loss=cross_entropy)
        >>> for slot, lr in enumerate([0.1, 1.0]):
        ...     population.admit(slot, member(lr))
        >>> x, y = torch.randn(64, 2), torch.randint(3, (64,))
        >>> population.train_epoch(x, y).shape
        torch.Size([2])
    """

    def __init__(
        self,
        template: Member,
        *,
        slots: int,
        loss: Callable[..., Tensor],
        device: str | torch.device = "cpu",
        engine: str = "auto",
        amp: bool = False,
        compile: bool = False,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, but it is {slots}.")
        if engine not in ("auto", *ENGINES):
            raise ValueError(f"engine must be one of {['auto', *ENGINES]}, but it is {engine!r}.")
        self._device = torch.device(device)
        if self._device.type == "cpu":
            keep_freed_memory()
        template = copy.deepcopy(template)
        own_randomness(template.model, template.seed)
        model, optimizer = padded_template(template)
        model.to(self._device)
        groups = [group["params"] for group in optimizer.param_groups]
        weights = Weights(model, groups=groups, slots=slots, device=self._device)
        self._program = Program(
            model=model,
            weights=weights,
            optimizers=Optimizers(rule_of(optimizer), weights),
            loss=loss,
            hyper={name: weights.flat.new_zeros(slots) for name in sorted(template.hyper)},
            models=[None] * slots,
            seeds=[0] * slots,
            steps=torch.zeros(slots, dtype=torch.int64),
            # Not a lambda, which would keep the population and so its memory.
            autocast=partial(torch.autocast, self._device.type, dtype=torch.bfloat16, enabled=amp),
            compile=compile,
            tolerance=tolerance(weights.flat, amp=amp),
        )
        self._members: list[Member | None] = [None] * slots
        self._generators: list[torch.Generator | None] = [None] * slots
        self._epochs = [0] * slots
        self._unchecked: set[int] = set()
        self._wanted = engine
        self._engine: Engine | None = None
        self.choice = "No step was taken yet."
        """Why it is this engine."""

    @property
    def engine(self) -> str:
        """The name of the engine in use, or of the one wanted if no step was taken yet."""
        return self._engine.name if self._engine else self._wanted

    @property
    def recording(self) -> str:
        """Whether its steps are replayed as CUDA graphs; nothing where there are none."""
        return self._engine.note if self._engine else ""

    @property
    def reason(self) -> str:
        """Why it is this engine, and whether its steps are replayed."""
        return f"{self.choice} {self.recording}".rstrip()

    @property
    def slots(self) -> int:
        """How many members there is room for."""
        return len(self._members)

    @property
    def n_bytes(self) -> int:
        """The memory of all parameters, buffers and optimizer states."""
        return sum(matrix.nbytes for matrix in self._program.matrices())

    @property
    def taken(self) -> list[int]:
        """The slots that have a member, in increasing order."""
        return self._program.taken

    def admit(self, slot: int, member: Member, *, goes_on: bool = False) -> None:
        """Put a new member in a slot; who was there is forgotten.

        The population takes over its network. Its optimizer starts without state; but one that
        ``goes_on`` keeps all that :meth:`copy` copies from who was there.

        Raises:
            IndexError: If there is no such slot.
            ValueError: If the member does not fit into the program.
        """
        program = self._program
        own_randomness(member.model, member.seed)
        if rule_of(member.optimizer) != program.optimizers.rule:
            raise ValueError("member must have an optimizer of the template's kind and groups.")
        if member.hyper.keys() != program.hyper.keys():
            raise ValueError(
                f"hyper must name {list(program.hyper)}, but it names {sorted(member.hyper)}."
            )
        program.weights.write(slot, tensors(member.model), learned=not goes_on)
        program.optimizers.admit(slot, member.optimizer, learned=not goes_on)
        for name, value in member.hyper.items():
            program.hyper[name][slot] = value
        program.models[slot] = member.model
        program.seeds[slot] = member.seed
        self._members[slot] = member
        if not goes_on:
            program.steps[slot] = 0
            self._generators[slot] = torch.Generator().manual_seed(member.seed)
            self._epochs[slot] = 0
        self._unchecked.add(slot)
        self._forget(slot)

    def release(self, slot: int) -> None:
        """Free a slot."""
        self._program.models[slot] = self._members[slot] = self._generators[slot] = None
        self._program.optimizers.release(slot)
        self._unchecked.discard(slot)
        self._forget(slot)

    def _forget(self, slot: int) -> None:
        if self._engine is not None:
            self._engine.forget(slot)

    def train_epoch(
        self, x: Tensor, y: Tensor, *, passes: int = 1, order: Tensor | None = None
    ) -> Tensor:
        """Go through the rows.

        Each member takes them in an order of its own, ``torch.randperm`` by a generator of its
        seed on the CPU, anew for each pass; if its batch has all rows, in the order given.

        Args:
            x:
                The inputs ``(n, ...)``, on the device.
            y:
                The targets ``(n, ...)``, on the device.
            passes:
                How often to go through them.
            order:
                Rows ``(n,)`` to be taken by all members in this order, which is faster.

        Returns:
            The mean loss of each member's steps ``(slots,)``; NaN in free slots.
        """
        program = self._program
        if not self.taken:
            return program.weights.flat.new_full((self.slots,), torch.nan)
        members = [(slot, self._members[slot]) for slot in range(self.slots)]
        program.optimizers.set_factors(
            [m.schedule(self._epochs[slot]) if m and m.schedule else 1.0 for slot, m in members]
        )
        total = program.weights.flat.new_zeros(self.slots)
        before = program.steps.clone()
        for _ in range(passes):
            steps = batches(
                x,
                y,
                sizes=[member.batch_size if member else None for _, member in members],
                generators=self._generators,
                order=order,
            )
            first = next(steps)
            total += self._prepared(first).train(itertools.chain([first], steps))
        for slot in self.taken:
            self._epochs[slot] += 1
        taken = program.steps - before
        return total / torch.where(taken > 0, taken, torch.nan).to(total)

    @property
    def _running(self) -> Engine:
        """The engine, or one that serves until it is chosen."""
        return self._engine or make(
            "loop" if self._wanted == "auto" else self._wanted, self._program
        )

    def _prepared(self, batch: Batch) -> Engine:
        """Choose the engine at the first step, and look at those who are new."""
        if self._engine is None:
            self._engine, self.choice = choose(
                self._wanted, self._program, batch, tolerance=self._program.tolerance
            )
        if self._unchecked:
            new = sorted(self._unchecked)[:_CHECKED]
            self._unchecked.clear()
            if self._engine.name != "loop":
                self.check(new, batch.inputs[:_CHECKED])
        return self._engine

    @torch.no_grad()
    def evaluate(
        self, x: Tensor, y: Tensor, metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    ) -> dict[str, Tensor]:
        """Measure all members in evaluation mode.

        Args:
            x:
                The inputs ``(n, ...)``, on the device.
            y:
                The targets ``(n, ...)``, on the device.
            metrics:
                ``metric(outputs, y)`` of one member gives one number per row; the mean over all
                rows counts.

        Returns:
            The means ``(slots,)`` by name, in float64; NaN in free slots.
        """
        engine = self._running
        means = means_of(metrics, engine.outputs, x, y, slots=self.slots)
        if engine is not self._engine:
            engine.close()
        free = [slot for slot in range(self.slots) if self._members[slot] is None]
        for mean in means.values():
            mean[free] = torch.nan
        return means

    def set_hyperparameters(self, slot: int, **values: float) -> None:
        """Change hyperparameters of a member from its next step on.

        Args:
            slot:
                Whose.
            **values:
                ``lr``, ``momentum``, ``dampening``, ``beta1``, ``beta2``, ``eps``,
                ``weight_decay``, as its optimizer has them, or names of ``hyper``.

        Raises:
            ValueError: If it has no such hyperparameter.
        """
        program = self._program
        rest = {name: value for name, value in values.items() if name not in program.hyper}
        program.optimizers.set_hyperparameters(slot, rest)
        for name in values.keys() - rest.keys():
            program.hyper[name][slot] = values[name]
        self._forget(slot)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Let members be where others are, who may change places: rows copied on the device.

        That is their state dicts and optimizer states, and how far they are in the order of their
        rows, their schedules and their random layers. Hyperparameters and seeds stay.

        Raises:
            ValueError: If a slot of ``sources`` is free.
        """
        places = [self._place_of(source) for source in sources]
        self._program.weights.copy(sources, targets)
        self._program.optimizers.copy(sources, targets)
        for target, place in zip(targets, places, strict=True):
            self._set_place(target, *place)

    def _place_of(self, slot: int) -> tuple[Tensor, int, int]:
        """Return the state of a member's generator, its epochs and its steps."""
        generator = self._generators[slot]
        if generator is None:
            raise ValueError(f"slot must be taken, but {slot} is free.")
        return generator.get_state(), self._epochs[slot], int(self._program.steps[slot])

    def _set_place(self, slot: int, state: Tensor, epoch: int, step: int) -> None:
        self._generators[slot] = generator = torch.Generator()
        generator.set_state(state)
        self._epochs[slot] = epoch
        self._program.steps[slot] = step
        self._forget(slot)

    def compact(self, keep: Sequence[int]) -> None:
        """Keep these slots only: slot ``i`` is then the former ``keep[i]``."""
        if self._engine is not None:
            self._engine.close()
        self._program.compact(keep)
        for name in ("_members", "_generators", "_epochs"):
            setattr(self, name, [getattr(self, name)[slot] for slot in keep])
        self._unchecked = {i for i, slot in enumerate(keep) if slot in self._unchecked}
        self._engine = None

    def state_of(self, slot: int) -> dict[str, Any]:
        """Give what a member needs to go on elsewhere.

        Returns:
            ``model`` and ``optimizer`` are state dicts as torch's own, to be loaded into the
            member's network and optimizer; the rest is for :meth:`load`.

        Raises:
            ValueError: If the slot is free.
        """
        generator, epoch, step = self._place_of(slot)
        model, rest = self._program.weights.state_of(slot)
        return {
            "model": model,
            "optimizer": self._program.optimizers.state_of(slot),
            "buffers": rest,
            "generator": generator,
            "epoch": epoch,
            "step": step,
        }

    def load(self, slot: int, state: Mapping[str, Any]) -> None:
        """Put a member, which has been admitted, where :meth:`state_of` found it.

        Its hyperparameters stay as they were admitted.
        """
        self._place_of(slot)
        self._program.weights.load(slot, state["model"], state["buffers"])
        self._program.optimizers.load(slot, state["optimizer"])
        self._set_place(slot, state["generator"], state["epoch"], state["step"])

    @torch.no_grad()
    def check(self, slots: Sequence[int], x: Tensor) -> None:
        """Compare the outputs of members with those of their own modules.

        Args:
            slots:
                Whose.
            x:
                Some inputs.

        Raises:
            ValueError: If they differ: then members differ in something that is neither a
                parameter nor a buffer, and that their signatures do not show.
        """
        outputs = self._running.outputs(x)
        compare_outputs(self._program, slots, x, outputs, tolerance=self._program.tolerance)
