from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna_ext.moves.population import donor
from optuna_ext.samplers._slots import Slot


if TYPE_CHECKING:
    from collections.abc import Container
    from collections.abc import Sequence

    import numpy as np
    from optuna.trial import FrozenTrial

    from optuna_ext.moves.population import Exploit
    from optuna_ext.samplers._slots import SlotTable


@dataclass(frozen=True, kw_only=True)
class Parents:
    """Finds the trial from whose weights another one goes on.

    Slots are those of a :class:`SlotTable`; that of the trial in question is ``slot``, which is
    not of the first generation. A random generator must be new, and of the slot's own seed.

    Args:
        population_size: Number of members.
        exploit: Decides between two members that are not lost.
        burn_in: Number of generations that nobody's rivals decide about.
    """

    population_size: int
    exploit: Exploit
    burn_in: int

    def once_certain(
        self, table: SlotTable, slot: int, rng: np.random.Generator, *, lost: Container[int]
    ) -> tuple[FrozenTrial | None, list[FrozenTrial]]:
        """Choose by the results of the generation before, without those that change nothing.

        Args:
            table: The slots.
            slot: Whose parent to find.
            rng: Random generator.
            lost: Numbers of running trials that nobody waits for.

        Returns:
            The parent, if it is certain, and the trials that are still running. Without either,
            everybody is lost.
        """
        slots = self._generation_before(table, slot, lost=lost)
        running = [s.running for s in slots if s.running is not None]
        return self._source(table, slot, slots, rng), running

    def are_told(
        self, table: SlotTable, slot: int, first: int, rng: np.random.Generator, *, wait: bool
    ) -> bool:
        """Return whether no trial that is running has a say in whose weights a slot gets.

        Args:
            table: The slots.
            slot: Whose parent to find, perhaps of the first generation.
            first: The first slot without a trial.
            rng: Random generator.
            wait: Whether all of the generation before have a say, or only the member's own trial.
        """
        before = slot - self.population_size
        if before < 0:
            return True
        if not wait:
            return before < first and table.slot(before).running is None
        if slot // self.population_size > first // self.population_size:
            return False
        parent, running = self.once_certain(table, slot, rng, lost=())
        return parent is not None or not running

    def by_now(self, table: SlotTable, slot: int, rng: np.random.Generator) -> FrozenTrial | None:
        """Choose by the last finished interval of every member, up to the generation before.

        Nobody is compared with those who have trained longer.
        A member that is still at its interval is like a lost one: somebody else's weights are
        better than no turn. Returns None if nobody has finished an interval but lost ones.
        """
        end = slot - slot % self.population_size
        slots = [table.latest(i) for i in range(end - self.population_size, end)]
        own = table.slot(slot - self.population_size).done
        slots[slot % self.population_size] = Slot(done=own)
        return self._source(table, slot, slots, rng) or own or _donor(table, slots, rng)

    def survivor(
        self, table: SlotTable, slot: int, rng: np.random.Generator
    ) -> FrozenTrial | None:
        """Return one of the best of the last generation that anybody survived, if there is one."""
        while slot >= self.population_size:
            found = _donor(table, self._generation_before(table, slot, lost=()), rng)
            if found is not None:
                return found
            slot -= self.population_size
        return None

    def _generation_before(
        self, table: SlotTable, slot: int, *, lost: Container[int]
    ) -> list[Slot]:
        end = slot - slot % self.population_size
        return [table.slot(i, lost=lost) for i in range(end - self.population_size, end)]

    def _source(
        self, table: SlotTable, slot: int, slots: Sequence[Slot], rng: np.random.Generator
    ) -> FrozenTrial | None:
        generation, member = divmod(slot, self.population_size)
        own = slots[member].done
        if own is not None and generation <= self.burn_in:
            return own
        n = self.exploit.n_evaluations
        results = [table.result(s, n_evaluations=n) for s in slots]
        source = self.exploit.source(member, results, rng)
        return None if source is None else slots[source].done


def _donor(
    table: SlotTable, slots: Sequence[Slot], rng: np.random.Generator
) -> FrozenTrial | None:
    source = donor([table.result(s, n_evaluations=0) for s in slots], rng)
    return None if source is None else slots[source].done
