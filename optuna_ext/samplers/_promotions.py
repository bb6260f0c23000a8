from __future__ import annotations

from collections import Counter
from collections import defaultdict
from typing import Protocol
from typing import TYPE_CHECKING

from optuna_ext.ladder import BRACKET
from optuna_ext.ladder import ROUND
from optuna_ext.ladder import RUNG
from optuna_ext.rungs import survivors


if TYPE_CHECKING:
    from collections.abc import Collection
    from collections.abc import Sequence

    from optuna_ext.ladder import Climber
    from optuna_ext.ladder import Ladder
    from optuna_ext.rungs import Bracket

_MANY = 16  # trials at a rung are always enough to compare
_MAX_FAILURES = 3  # trials in succession that have failed to go on from the same one


class Promotions(Protocol):
    """Decides who goes on, and where newborns belong."""

    def next(self, ladder: Ladder, taken: Collection[int]) -> Climber | None:
        """Return who is to be promoted now; None if nobody is.

        Args:
            ladder: All climbers.
            taken: Numbers of trials from which others have begun to go on.
        """

    def birth(self, ladder: Ladder) -> dict[str, int]:
        """Return the user attributes of a newborn."""


class Asynchronous:
    """ASHA (Li et al. 2020): whoever is among the best of a rung by now may go on.

    Rungs are scanned from the top, each from its best trial, whatever the bracket: a bracket only
    decides at which rung one first competes. Nobody goes on from a rung before as many have
    reached it as in a synchronous round of the first bracket, sixteen at most. Halving needs that
    many anyway to bring the first one to the end, and the best of a few would only take the time
    of better ones that are still to come.

    Args:
        brackets: The brackets, the one with the rungs of all of them first.
    """

    def __init__(self, brackets: Sequence[Bracket]) -> None:
        self._brackets = tuple(brackets)

    def next(self, ladder: Ladder, taken: Collection[int]) -> Climber | None:
        first = self._brackets[0]
        cuts = [*zip(first.rungs, first.sizes, strict=True)][:-1]
        for rung, size in reversed(cuts):
            field = ladder.field(rung)
            if len(field) < min(_MANY, size):
                continue
            # Unlike when trials are stopped for good, nobody is the best of too few: one that is
            # paused loses nothing by waiting.
            n_best = len(field) // first.reduction_factor
            for is_nan, _, _, number in field[:n_best]:
                climber = ladder.climbers[number]
                rungs = self._brackets[climber.bracket].rungs
                if not is_nan and _may_go_on(climber, rungs.index(rung), taken):
                    return climber
        return None

    def birth(self, ladder: Ladder) -> dict[str, int]:
        if len(self._brackets) == 1:
            return {RUNG: 0}
        born = Counter(c.bracket for c in ladder.climbers.values() if BRACKET in c.root.user_attrs)
        # Whoever is most behind its share; all these are fractions with different denominators.
        bracket = min(
            range(len(self._brackets)),
            key=lambda b: ((born[b] + 0.5) / self._brackets[b].n_trials, b),
        )
        return {RUNG: 0, BRACKET: bracket}


class Synchronous:
    """Successive halving round by round (Jamieson & Talwalkar 2016).

    Nobody of a round is promoted before all of it have reached the rung. While some are still on
    their way, workers begin the next round; so nobody waits. Rounds take the brackets in turn.

    Args:
        brackets: The brackets.
    """

    def __init__(self, brackets: Sequence[Bracket]) -> None:
        self._brackets = tuple(brackets)

    def next(self, ladder: Ladder, taken: Collection[int]) -> Climber | None:
        for number, members in sorted(self._rounds(ladder).items()):
            bracket = self._brackets[number % len(self._brackets)]
            if len(members) < bracket.n_trials:
                continue
            for rung in range(len(bracket.rungs) - 1):
                members = [c for c in members if len(c.scores) > rung or not _is_over(c)]
                if any(len(c.scores) <= rung for c in members):
                    break
                field = {c.root.number: c for c in members}
                best = survivors(
                    {n: c.scores[rung] for n, c in field.items()}, bracket.reduction_factor
                )
                members = [field[n] for n in best if field[n].n_failures < _MAX_FAILURES]
                for climber in members:
                    if _may_go_on(climber, rung, taken):
                        return climber
        return None

    def birth(self, ladder: Ladder) -> dict[str, int]:
        rounds = self._rounds(ladder)
        number = 0
        while len(rounds[number]) >= self._brackets[number % len(self._brackets)].n_trials:
            number += 1
        place = {RUNG: 0, ROUND: number}
        if len(self._brackets) > 1:
            place[BRACKET] = number % len(self._brackets)
        return place

    def _rounds(self, ladder: Ladder) -> defaultdict[int, list[Climber]]:
        """Return the members of every round; whoever failed at its first rung is replaced."""
        rounds: defaultdict[int, list[Climber]] = defaultdict(list)
        for climber in ladder.climbers.values():
            number = climber.root.user_attrs.get(ROUND)
            if isinstance(number, int) and not climber.is_lost:
                rounds[number].append(climber)
        return rounds


def _is_over(climber: Climber) -> bool:
    return climber.tip.state.is_finished()


def _may_go_on(climber: Climber, rung: int, taken: Collection[int]) -> bool:
    """Whether somebody who belongs to the best of a rung still waits there."""
    return (
        climber.is_paused
        and len(climber.scores) == rung + 1
        and climber.n_failures < _MAX_FAILURES
        and climber.tip.number not in taken
    )
