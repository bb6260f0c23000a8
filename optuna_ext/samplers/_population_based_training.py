from __future__ import annotations

from collections.abc import Collection
from collections.abc import Mapping
import threading
from typing import Any
from typing import TYPE_CHECKING

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_ext._checks import check_int
from optuna_ext._logs import get_logger
from optuna_ext.lineage import PARENT
from optuna_ext.lineage import parent_of
from optuna_ext.moves.population import Exploit
from optuna_ext.moves.population import EXPLOITS
from optuna_ext.samplers import _host
from optuna_ext.samplers._barrier import Asked
from optuna_ext.samplers._barrier import Barrier
from optuna_ext.samplers._design import DesignSampler
from optuna_ext.samplers._inheritance import best_params
from optuna_ext.samplers._inheritance import fitted
from optuna_ext.samplers._parents import Parents
from optuna_ext.samplers._plans import Explore
from optuna_ext.samplers._plans import Plan
from optuna_ext.samplers._plans import Planner
from optuna_ext.samplers._slots import GENERATION
from optuna_ext.samplers._slots import MEMBER
from optuna_ext.samplers._slots import SlotTable
from optuna_ext.samplers._sobol import SobolSampler


if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from optuna_ext.moves.variation import Mutation

_logger = get_logger(__name__)


class PopulationBasedTrainingSampler(BaseSampler):
    """Sampler that trains a population whose members copy each other's weights and parameters.

    Each trial is one *interval* of one member: some epochs, after which the weights are saved. At
    its next turn a member that is among the worst goes on with the weights and the parameters of
    one of the best, and changes the parameters a little; all others go on as they are. So a study
    finds a *schedule*, such as a learning rate that falls, in the time of a single training per
    worker. There should be some ten intervals; few long ones are less greedy than many short ones.

    The sampler says in three user attributes what a trial is: ``member`` and ``generation``, and
    ``parent``, the number of the trial whose weights it goes on with; a newborn has no parent. The
    objective trains one interval, beginning with its parent's checkpoint; its value is that of
    the member so far, and steps count from the birth of the weights.

    Trial ``i`` trains member ``i % population_size``, whatever the number of workers; a study of
    ``g`` generations has ``g * population_size`` trials. Nothing is remembered but what is in the
    storage: any worker can die, any can join, and a new process goes on where the last stopped.

    - A member whose trial failed, returned NaN or an infinity, or died with its worker takes over
      the weights and, changed, the parameters of one of the best; this is logged.
    - A pruned trial counts with its last report. Mind that the default pruner of a study prunes
      whoever is below the median, if the objective asks it within an interval; the population
      does that better, so ``pruner=optuna.pruners.NopPruner()`` is advisable.
    - Enqueued parameters win: the member whose turn it is goes on with them.
    - A retried trial (see :class:`~optuna.storages.RetryHeartbeatStaleTrialCallback`) repeats its
      own interval; no other member is shifted. Who decides between the death and the repetition
      counts the member as lost.

    With ``synchronous=True`` members of one generation are compared with each other, so a trial
    waits until it is certain what the results of the previous generation mean for it; the same
    seed and results give the same lineage with any number of workers. It waits inside
    ``Study.ask``, but for nobody who is dead. Where one thread asks for trials in batches, each
    generation must be told before the next is asked for; otherwise :exc:`RuntimeError` is raised.
    With ``synchronous=False`` nobody waits: where the result of another member is not known yet,
    its result before counts, and a member that is still at its previous interval leaves its turn
    to a copy of one of the best. With one worker both are the same.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import PopulationBasedTrainingSampler

            weights = {}  # by trial; a CheckpointStore in real life


            def objective(trial):
                lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
                w = weights.get(trial.user_attrs.get("parent"), 5.0)
                for _ in range(10):  # an interval: ten steps of gradient descent on w ** 2
                    w -= lr * 2 * w
                weights[trial.number] = w
                return w**2


            sampler = PopulationBasedTrainingSampler(population_size=4, seed=0)
            study = optuna.create_study(sampler=sampler)
            study.optimize(objective, n_trials=4 * 5)

    Args:
        population_size:
            Number of members, at least 2. It has nothing to do with the number of workers.
        exploit:
            Who is replaced: ``"truncation"`` (the worst fifth, by members of the best fifth),
            ``"tournament"`` (who is worse than a member drawn at random, by that one) or
            ``"t-test"`` (likewise, if the last ten reports are significantly worse). Or one of
            :mod:`optuna_ext.moves.population` with other settings, such as ``Truncation(0.25)``.
        explore:
            What becomes of parameters when they are copied. The default, :obj:`None`, multiplies
            numbers by 2 or by 0.5; in ranges that include zero, those about zero, and in ranges
            that include negative numbers all, move by up to a quarter of the range instead. They
            change by one value at least and stay inside the range; choices in increasing order
            move to the next, others stay. A :class:`~optuna_ext.moves.Mutation` moves numbers in
            another way. A function is given the copied parameters and a NumPy generator, and
            returns the new ones. A sampler, such as :class:`~optuna.samplers.TPESampler`,
            proposes new parameters for the copied weights.
        resample_probability:
            Probability of each parameter to be drawn anew instead, from its whole range, in
            ``[0, 1]``; not with a function or a sampler for ``explore``.
        architecture:
            Names of the parameters that the shape of the weights depends on, such as a number of
            layers: whoever takes over the weights takes them over, too, and keeps them.
        burn_in:
            Number of intervals before which nobody is replaced (but the lost).
        synchronous:
            Whether the members of a generation are compared with each other, see above.
        lost_after:
            Seconds after which a running trial is taken for dead by those that wait for it. The
            default, :obj:`None`, is ten times the median of the finished ones, at least a minute.
            The clocks of the machines must agree better than that. Storages with heartbeats tell
            sooner.
        initial_population:
            Sampler of newborns, and of parameters that no ancestor had; or a study whose best
            trials give the initial parameters. The default, :obj:`None`, is a
            :class:`~optuna_ext.SobolSampler`.
        search_space:
            Distributions by name, if known, for that sampler.
        first_trial:
            Number of the trial that begins the population, for a study that began with something
            else.
        seed:
            Seed, a non-negative integer. The default, :obj:`None`, derives it from the study's
            name, so that all workers on a study agree.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range or not one of its choices; at the first
            trial, if the study has several objectives or a population of another size.

    .. seealso::
        M. Jaderberg et al. (2017), *Population based training of neural networks*,
        arXiv:1711.09846.
    """

    def __init__(
        self,
        *,
        population_size: int = 16,
        exploit: str | Exploit = "truncation",
        explore: Mutation | Explore | BaseSampler | None = None,
        resample_probability: float = 0.25,
        architecture: Collection[str] = (),
        burn_in: int = 0,
        synchronous: bool = True,
        lost_after: float | None = None,
        initial_population: BaseSampler | Study | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        first_trial: int = 0,
        seed: int | None = None,
    ) -> None:
        self._population_size = check_int("population_size", population_size, low=2)
        self._first_trial = check_int("first_trial", first_trial)
        self._seed = None if seed is None else check_int("seed", seed)
        if lost_after is not None and not lost_after > 0.0:
            raise ValueError(f"`lost_after` must be positive, but got {lost_after}.")
        self._parents = Parents(
            population_size=self._population_size,
            exploit=_exploit(exploit),
            burn_in=check_int("burn_in", burn_in),
        )
        self._synchronous = bool(synchronous)
        self._lost_after = lost_after
        founders: list[dict[str, Any]] = []
        if isinstance(initial_population, Study):
            founders = best_params(initial_population, self._population_size)
            initial_population = None
        elif not isinstance(initial_population, BaseSampler | None):
            raise TypeError(
                "`initial_population` must be an Optuna sampler or study, but got "
                f"{initial_population!r}."
            )
        self._planner = Planner(
            initial=initial_population or SobolSampler(search_space=search_space, seed=seed),
            founders=founders,
            explore=explore,
            resample_probability=resample_probability,
            architecture=architecture,
        )
        self._reset_caches()

    def _reset_caches(self) -> None:
        self._lock = threading.RLock()
        self._tables: _host.StudyCache[SlotTable] = _host.StudyCache()
        self._plans: dict[tuple[int, int, int], Plan] = {}  # of running trials
        self._asked = Asked()

    def __getstate__(self) -> dict[str, Any]:
        caches = ("_lock", "_tables", "_plans", "_asked")
        return {key: value for key, value in vars(self).items() if key not in caches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset_caches()

    def reseed_rng(self) -> None:
        for sampler in self._planner.samplers():
            sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._check_objectives(study)
        table = self._read(study)
        slot = table.slot_of(trial.number)
        is_placed = MEMBER in trial.user_attrs  # retried after its worker died
        if slot is not None and not is_placed:
            try:
                table.check_places(trial.number)
                parent = self._parent(study, trial, table, slot)
            except BaseException:  # also Ctrl-C while it waits: others would wait for it
                _host.fail_trial(study, trial)
                raise
            member, generation = slot % self._population_size, slot // self._population_size
            place = {GENERATION: generation, MEMBER: member}  # the last: now it is placed
            origin = {} if parent is None else {PARENT: parent.number}
            _host.set_trial_user_attrs(study, trial, origin | place)
        else:
            parent = _parent_trial(table, trial)
        self._asked.add(study, trial)
        plan = self._plan(study, table, slot, parent)
        self._plans[_host.trial_key(study, trial)] = plan
        plan.others.before_trial(study, trial)
        if isinstance(plan.others, DesignSampler) and slot is not None and slot != trial.number:
            plan.others._set_row(study, trial, slot)  # so that a retried trial shifts nobody

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self._check_objectives(study)
        plan = self._plan_of(study, trial)
        if not plan.is_relative:
            return {}
        space = plan.others.infer_relative_search_space(study, trial)
        return {name: dist for name, dist in space.items() if name not in plan.params}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        return self._plan_of(study, trial).others.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        self._check_objectives(study)
        plan = self._plan_of(study, trial)
        if param_name in plan.params:
            value = fitted(param_name, plan.params[param_name], param_distribution)
            if value is not None:
                return value
        return plan.others.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._plan_of(study, trial).others.after_trial(study, trial, state, values)
        self._plans.pop(_host.trial_key(study, trial), None)
        self._asked.discard(study, trial)

    def n_ready(self, study: Study, n: int) -> int:
        """Return how many of the next ``n`` trials can be asked for before others are told.

        Who trains several at once asks for no more: the next would have to wait for those that
        are running. It is 0 if even the first would.
        """
        table = self._read(study)
        coming = table.coming(n)
        for count, slot in enumerate(coming):
            if slot is not None and not self._parents.are_told(
                table, slot, (coming[0] or 0), self._rng(study, slot, 0), wait=self._synchronous
            ):
                return count
        return n

    def _check_objectives(self, study: Study) -> None:
        if len(study.directions) > 1:
            raise ValueError(
                f"`{type(self).__name__}` needs a study with one objective, but this one has "
                f"{len(study.directions)}."
            )

    def _read(self, study: Study) -> SlotTable:
        def make() -> SlotTable:
            return SlotTable(
                population_size=self._population_size,
                first_trial=self._first_trial,
                maximize=study.direction == StudyDirection.MAXIMIZE,
            )

        with self._lock:  # also while reading: an older list must not come after a newer one
            table = self._tables.get(study, make)
            table.update(_host.all_trials(study))
            return table

    def _parent(
        self, study: Study, trial: FrozenTrial, table: SlotTable, slot: int
    ) -> FrozenTrial | None:
        """Return from whom a trial goes on, once that is certain; None for a newborn."""
        if slot < self._population_size:
            return None
        if self._synchronous:
            barrier = Barrier(study, trial, asked=self._asked, lost_after=self._lost_after)
            while True:
                parent, running = self._parents.once_certain(
                    table, slot, self._rng(study, slot, 0), lost=barrier.lost
                )
                if parent is not None or not running:
                    break
                barrier.wait(running)
                table = self._read(study)
        else:
            parent = self._parents.by_now(table, slot, self._rng(study, slot, 0))
        if parent is None:
            parent = self._parents.survivor(table, slot, self._rng(study, slot, 0))
        previous = table.slot(slot - self._population_size)
        if previous.done is None:
            member = slot % self._population_size
            state = "lost" if previous.running is None else "not done with its interval"
            origin = "begins anew" if parent is None else f"goes on from trial {parent.number}"
            _logger.warning(f"Member {member} is {state}: trial {trial.number} {origin}.")
        return parent

    def _rng(self, study: Study, slot: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((_host.seed_of(study, self._seed), slot, purpose))

    def _plan_of(self, study: Study, trial: FrozenTrial) -> Plan:
        plan = self._plans.get(_host.trial_key(study, trial))
        if plan is not None:
            return plan
        table = self._read(study)
        stored = table.trial(trial.number)
        slot = table.slot_of(trial.number) if MEMBER in stored.user_attrs else None
        return self._plan(study, table, slot, _parent_trial(table, stored))

    def _plan(
        self, study: Study, table: SlotTable, slot: int | None, parent: FrozenTrial | None
    ) -> Plan:
        """Return what a trial is to do; the same whenever it is asked again."""
        if slot is None or parent is None:
            return self._planner.newborn(slot)
        if table.slot_of(parent.number) == slot - self._population_size:
            return self._planner.as_before(parent)
        return self._planner.takeover(parent, self._rng(study, slot, 1))


def _parent_trial(table: SlotTable, trial: FrozenTrial) -> FrozenTrial | None:
    number = parent_of(trial)
    return None if number is None else table.trial(number)


def _exploit(exploit: str | Exploit) -> Exploit:
    if isinstance(exploit, Exploit):
        return exploit
    if exploit not in EXPLOITS:
        raise ValueError(
            f"`exploit` must be one of {tuple(EXPLOITS)} or an Exploit, but got {exploit!r}."
        )
    return EXPLOITS[exploit]()
