from __future__ import annotations

from dataclasses import dataclass
import threading
from typing import Any
from typing import TYPE_CHECKING

from optuna.samplers import BaseSampler
from optuna.study import StudyDirection

from optuna_ext.ladder import BRACKET
from optuna_ext.ladder import Ladder
from optuna_ext.ladder import ROUND
from optuna_ext.ladder import RUNG
from optuna_ext.lineage import PARENT
from optuna_ext.lineage import parent_of
from optuna_ext.samplers import _host
from optuna_ext.samplers._inheritance import fitted
from optuna_ext.samplers._rung_view import rung_to_learn_from
from optuna_ext.samplers._rung_view import RungView


if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import TrialState

    from optuna_ext.ladder import Climber
    from optuna_ext.rungs import Bracket
    from optuna_ext.samplers._promotions import Promotions

_MAX_CLAIMS = 8  # how often a trial looks for another parent when somebody else was faster


@dataclass(frozen=True)
class _Plan:
    """What a running trial does: go on from a parent with its parameters, or begin."""

    parent: FrozenTrial | None
    view: Study  # what the base sampler gets to see while the trial asks for parameters


class PromotionSampler(BaseSampler):
    """Sampler of :class:`~optuna_ext.SuccessiveHalving` and :class:`~optuna_ext.Hyperband`.

    A trial goes on from the best paused trial that may be promoted, with exactly its parameters;
    if there is none, it gets new ones from the base sampler.

    No two trials go on from the same parent: a trial first claims its parent, by the user
    attribute that names it, and then looks whether anybody else has claimed it. Of two that
    claim at the same time, at least the later one to write sees the other's claim, and whoever
    sees one gives way; so at worst both do, and a third one gets the parent. There is one
    exception: between the failure of a dead worker's trial and its being queued again, the parent
    looks free, and whoever claims it in this moment trains the same interval as the retry does.

    Args:
        base:
            Sampler of new parameters. It sees one observation for every set of parameters, all at
            the same rung.
        brackets:
            The brackets.
        promotions:
            Decides who is promoted, and to which bracket a newborn belongs.
        first_step:
            The step of an objective's first report, 0 or 1.
        best_so_far:
            Whether the best value up to a rung counts there, or the last one.
    """

    def __init__(
        self,
        base: BaseSampler,
        brackets: Sequence[Bracket],
        promotions: Promotions,
        *,
        first_step: int,
        best_so_far: bool,
    ) -> None:
        self._base = base
        self._brackets = tuple(brackets)
        self._promotions = promotions
        self._first_step = first_step
        self._best_so_far = best_so_far
        self._reset_caches()

    def _reset_caches(self) -> None:
        self._lock = threading.RLock()
        self._ladders: _host.StudyCache[Ladder] = _host.StudyCache()
        self._lenses: _host.StudyCache[dict[int, _host.Lens]] = _host.StudyCache()  # by rung
        self._plans: dict[tuple[int, int, int], _Plan] = {}  # of running trials

    def __getstate__(self) -> dict[str, Any]:
        caches = ("_lock", "_ladders", "_lenses", "_plans")
        return {key: value for key, value in vars(self).items() if key not in caches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset_caches()

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._base})"

    def reseed_rng(self) -> None:
        self._base.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._check_objectives(study)
        with self._lock:  # threads of one process do not even meet
            parent = self._decide(study, trial)
            plan = _Plan(parent, self._view(study))
            self._plans[_host.trial_key(study, trial)] = plan
        if parent is None:
            self._base.before_trial(plan.view, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self._check_objectives(study)
        plan = self._plan_of(study, trial)
        if plan.parent is not None:
            return {n: d for n, d in plan.parent.distributions.items() if not d.single()}
        return self._base.infer_relative_search_space(plan.view, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        plan = self._plan_of(study, trial)
        if plan.parent is not None:
            return {name: plan.parent.params[name] for name in search_space}
        return self._base.sample_relative(plan.view, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        self._check_objectives(study)
        plan = self._plan_of(study, trial)
        if plan.parent is not None and param_name in plan.parent.params:
            # The range has changed since the parent was born.
            value = fitted(param_name, plan.parent.params[param_name], param_distribution)
            if value is not None:
                return value
        return self._base.sample_independent(plan.view, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        plan = self._plan_of(study, trial)
        if plan.parent is None:
            self._base.after_trial(plan.view, trial, state, values)
        self._plans.pop(_host.trial_key(study, trial), None)

    def _check_objectives(self, study: Study) -> None:
        if len(study.directions) > 1:
            raise ValueError(
                "Successive halving needs a study with one objective, but this one has "
                f"{len(study.directions)}."
            )

    def _decide(self, study: Study, trial: FrozenTrial) -> FrozenTrial | None:
        """Return from which trial one goes on, and write it down; None for a newborn."""
        ladder = self._read(study)
        if _host.is_enqueued(trial):
            return self._decide_enqueued(study, trial, ladder)
        taken: set[int] = set()
        for _ in range(_MAX_CLAIMS):
            climber = self._promotions.next(ladder, taken)
            if climber is None:
                break
            parent = climber.tip.number
            _host.set_trial_user_attr(study, trial, PARENT, parent)
            _host.exchange(study)
            if not self._read(study).rivals(parent, of=trial.number):
                self._go_on(study, trial, climber)
                return climber.tip
            taken.add(parent)
        if PARENT in trial.user_attrs:
            _host.set_trial_user_attr(study, trial, PARENT, None)
            self._read(study)
        self._begin(study, trial, ladder)
        return None

    def _decide_enqueued(
        self, study: Study, trial: FrozenTrial, ladder: Ladder
    ) -> FrozenTrial | None:
        """Keep to what was decided: by a trial that is retried now, or by the user."""
        parent = _parent(trial, ladder)
        if RUNG not in trial.user_attrs:
            climber = ladder.climbers.get(ladder.root_of(trial.number)) if parent else None
            if climber is None:
                self._begin(study, trial, ladder)
            else:
                self._go_on(study, trial, climber)
        return parent

    def _begin(self, study: Study, trial: FrozenTrial, ladder: Ladder) -> None:
        for key, value in self._promotions.birth(ladder).items():
            _host.set_trial_user_attr(study, trial, key, value)

    def _go_on(self, study: Study, trial: FrozenTrial, climber: Climber) -> None:
        for key in (BRACKET, ROUND):
            if key in climber.root.user_attrs:
                _host.set_trial_user_attr(study, trial, key, climber.root.user_attrs[key])
        _host.set_trial_user_attr(study, trial, RUNG, len(climber.scores))

    def _read(self, study: Study) -> Ladder:
        def make() -> Ladder:
            return Ladder(
                self._brackets,
                first_step=self._first_step,
                best_so_far=self._best_so_far,
                maximize=study.direction == StudyDirection.MAXIMIZE,
            )

        with self._lock:  # also while reading: an older list must not come after a newer one
            ladder = self._ladders.get(study, make)
            ladder.update(_host.all_trials(study))
            return ladder

    def _view(self, study: Study) -> Study:
        """Return the study as the base sampler sees it: all parameters compared at one rung."""
        rung = rung_to_learn_from(self._read(study), self._brackets)
        lenses = self._lenses.get(study, dict)
        if rung not in lenses:  # one for each rung: samplers take what is over for final
            view = RungView(
                rung - 1 + self._first_step,
                best_so_far=self._best_so_far,
                maximize=study.direction == StudyDirection.MAXIMIZE,
            )
            lenses[rung] = _host.Lens(study, lambda: view.trials(self._read(study)))
        return _host.seen_through(study, lenses[rung])

    def _plan_of(self, study: Study, trial: FrozenTrial) -> _Plan:
        plan = self._plans.get(_host.trial_key(study, trial))
        if plan is not None:
            return plan
        ladder = self._read(study)  # asked for in another process
        return _Plan(_parent(ladder.trials[trial.number], ladder), self._view(study))


def _parent(trial: FrozenTrial, ladder: Ladder) -> FrozenTrial | None:
    """Return from which trial one goes on; None if from none of this study."""
    number = parent_of(trial)
    if number is None or not 0 <= number < len(ladder.trials):
        return None
    return ladder.trials[number]
