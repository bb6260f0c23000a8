"""Successive halving and Hyperband that pause trials and promote the best of them later.

Every trial is paused when it reaches its rung. If it belongs to the best, a later trial goes on
from its checkpoint, with the same parameters; nothing is trained twice.
"""

from __future__ import annotations

from typing import get_args
from typing import Literal
from typing import TYPE_CHECKING

from optuna.samplers import BaseSampler
from optuna.samplers import TPESampler

from optuna_ext._checks import check_int
from optuna_ext.pruners._pause import PausePruner
from optuna_ext.rungs import hyperband
from optuna_ext.rungs import Plan
from optuna_ext.rungs import plan
from optuna_ext.rungs import successive_halving
from optuna_ext.samplers._promotion import PromotionSampler
from optuna_ext.samplers._promotions import Asynchronous
from optuna_ext.samplers._promotions import Synchronous


if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.pruners import BasePruner

    from optuna_ext.rungs import Bracket

_Value = Literal["best", "last"]


class _PauseAndPromote:
    """A sampler and a pruner that belong together.

    Attributes:
        sampler:
            Gives a trial its parent and that one's parameters, or new ones.
        pruner:
            Stops a trial at its rung.
        plan:
            The rungs, how many trials reach them and what they cost; ``print`` it.
    """

    def __init__(
        self,
        brackets: Sequence[Bracket],
        *,
        base_sampler: BaseSampler | None,
        synchronous: bool,
        first_step: int,
        value: _Value,
        seed: int | None,
    ) -> None:
        if base_sampler is not None and not isinstance(base_sampler, BaseSampler):
            raise TypeError(f"`base_sampler` must be an Optuna sampler, but got {base_sampler!r}.")
        if value not in get_args(_Value):
            raise ValueError(f"`value` must be one of {get_args(_Value)}, but got {value!r}.")
        check_int("first_step", first_step, high=1)
        if seed is not None:
            check_int("seed", seed)
        self.plan: Plan = plan(*brackets)
        self.sampler: BaseSampler = PromotionSampler(
            base_sampler or TPESampler(seed=seed),
            brackets,
            Synchronous(brackets) if synchronous else Asynchronous(brackets),
            first_step=first_step,
            best_so_far=value == "best",
        )
        self.pruner: BasePruner = PausePruner(brackets, first_step=first_step)


class SuccessiveHalving(_PauseAndPromote):
    """Successive halving that pauses trials and promotes the best of them later.

    Every trial trains to the first rung, saves a checkpoint and ends as pruned: it is paused.
    When it belongs to the best ``1 / reduction_factor`` at its rung, a later trial of the study
    goes on from its checkpoint to the next rung, with the same parameters; and so on to
    ``max_resource``, where a trial completes. Nothing is trained twice, and nobody is given up
    for good: who was not good enough for a small field may be for a larger one.

    A trial that goes on names the one before it in its user attribute ``parent``, and every trial
    its rung, counted from 0, in ``rung``. Each promotion is a trial of the study and counts in
    ``n_trials``; ``plan`` tells what to expect.

    The objective saves and resumes through a :class:`~optuna_ext.CheckpointStore`; its steps count
    from the birth of the parameters, so a trial that goes on reports the steps after its
    parent's. An objective without checkpoints works, too, but trains every promoted trial from the
    beginning.

    Any number of workers may share the study. By default a trial is promoted as soon as it belongs
    to the best of its rung by then (ASHA, Li et al. 2020), the highest rung first, but not before
    as many as in a synchronous round, or 16, are there to compare. ``synchronous`` promotes when
    all trials of a round have reached the rung, and fills the time with the next round. No trial
    is promoted twice. One that fails is tried again from its parent's checkpoint by the next free
    worker, up to three times in a row. One that its objective stops before its rung, by raising
    ``TrialPruned`` on its own, is left alone, and the base sampler sees it as pruned.

    New parameters come from ``base_sampler``. It sees every set of parameters once, and all at the
    same rung: at the highest one that ten have reached, which with a model-based sampler makes
    this BOHB (Falkner et al. 2018).

    How often and how early to compare is a trade. Few and late rungs lose little of what would
    have become the best, but cost more, so that a short search sees fewer parameters;
    ``min_resource=1`` sees the most and is right where one epoch already tells much, but may lose
    more than half of the best. The default is between: most of the speed, and normally less than
    a third lost. ``python -m studies.compare_pruners`` measures both on learning curves.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import SuccessiveHalving

            weights = {}  # stands for a CheckpointStore: a trial's number -> its epochs


            def objective(trial):
                x = trial.suggest_float("x", -1, 1)
                parent = trial.user_attrs.get("parent")
                for epoch in range(weights.get(parent, 0) + 1, 28):
                    trial.report(x**2 + 1 / epoch, epoch)
                    weights[trial.number] = epoch
                    if trial.should_prune():
                        raise optuna.TrialPruned
                return x**2


            halving = SuccessiveHalving(max_resource=27)
            print(halving.plan)
            study = optuna.create_study(sampler=halving.sampler, pruner=halving.pruner)
            study.optimize(objective, n_trials=40)

    Args:
        max_resource:
            Steps of a whole training.
        min_resource:
            Steps to the first rung, from 1 to ``max_resource``; the others are
            ``reduction_factor`` times as far each. By default ``max_resource / 16``, rounded:
            early enough to save most of the training, and late enough to tell trials apart.
        reduction_factor:
            At every rung one set of parameters in this many goes on; at least 2. Small factors
            decide late and gently, which loses less at the same cost.
        n_cuts:
            At how many rungs trials are paused, at least 1. By default as many as there are rungs
            before ``max_resource``; without ``min_resource``, as many as bring at least one set
            of parameters in 16 to the end.
        base_sampler:
            Any sampler, for new parameters. The default, :obj:`None`, is
            :class:`~optuna.samplers.TPESampler`.
        synchronous:
            Whether to wait until a round has reached the rung.
        n_trials_per_round:
            How many sets of parameters begin a synchronous round; by default as many as leave one
            at the end. An asynchronous search compares as many, but at most 16, before the first
            of them goes on.
        first_step:
            The step with which the objective reports its first unit of training: 1 or 0.
        value:
            ``"best"`` compares the best values so far, which noise harms less, ``"last"`` the
            last ones.
        seed:
            Seed of the default base sampler; workers need different ones.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.
    """

    def __init__(
        self,
        *,
        max_resource: int,
        min_resource: int | None = None,
        reduction_factor: int = 2,
        n_cuts: int | None = None,
        base_sampler: BaseSampler | None = None,
        synchronous: bool = False,
        n_trials_per_round: int | None = None,
        first_step: int = 1,
        value: Literal["best", "last"] = "best",
        seed: int | None = None,
    ) -> None:
        bracket = successive_halving(
            min_resource,
            max_resource,
            reduction_factor=reduction_factor,
            n_cuts=n_cuts,
            n_trials=n_trials_per_round,
        )
        super().__init__(
            [bracket],
            base_sampler=base_sampler,
            synchronous=synchronous,
            first_step=first_step,
            value=value,
            seed=seed,
        )


class Hyperband(_PauseAndPromote):
    """Hyperband that pauses trials and promotes the best of them later.

    Several brackets of :class:`SuccessiveHalving` share the budget: one compares its trials early,
    another one late, and the last one trains all of them to the end. That is worth its price
    where early values tell little about the end (Li et al. 2018). A trial's user attribute
    ``bracket`` names its bracket, counted from 0. Everything else is as in
    :class:`SuccessiveHalving`.

    Asynchronous brackets differ in where they begin to compare. At a rung, a trial meets those of
    all brackets that have it, because values at the same step compare whatever came before; so
    survivors of early cuts meet newcomers too, and not only each other. Synchronous brackets take
    turns and keep to themselves, as in the paper.

    Example:

        .. testcode::

            from optuna_ext import Hyperband

            hyperband = Hyperband(max_resource=27)
            print(hyperband.plan)

    Args:
        max_resource:
            Steps of a whole training.
        min_resource:
            Steps to the first rung of the first bracket, from 1 to ``max_resource``.
        reduction_factor:
            At every rung one set of parameters in this many goes on; at least 2. Larger ones, as
            the 3 or 4 of Li et al., lose more of those that would have become the best.
        base_sampler:
            Any sampler, for new parameters. The default, :obj:`None`, is
            :class:`~optuna.samplers.TPESampler`.
        synchronous:
            Whether to wait until a bracket has reached the rung.
        first_step:
            The step with which the objective reports its first unit of training: 1 or 0.
        value:
            ``"best"`` compares the best values so far, which noise harms less, ``"last"`` the
            last ones.
        seed:
            Seed of the default base sampler; workers need different ones.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.
    """

    def __init__(
        self,
        *,
        max_resource: int,
        min_resource: int = 1,
        reduction_factor: int = 2,
        base_sampler: BaseSampler | None = None,
        synchronous: bool = False,
        first_step: int = 1,
        value: Literal["best", "last"] = "best",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            hyperband(min_resource, max_resource, reduction_factor=reduction_factor),
            base_sampler=base_sampler,
            synchronous=synchronous,
            first_step=first_step,
            value=value,
            seed=seed,
        )
