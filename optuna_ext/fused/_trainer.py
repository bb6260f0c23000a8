from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from functools import partial
from typing import Any

import optuna
from optuna.trial import Trial
import torch

from optuna_ext._logs import get_logger
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.fused._devices import is_out_of_memory
from optuna_ext.fused._devices import release_memory
from optuna_ext.fused._devices import resolve_device
from optuna_ext.fused._elsewhere import Elsewhere
from optuna_ext.fused._group import Group
from optuna_ext.fused._group import Settings
from optuna_ext.fused._memory import Footprint
from optuna_ext.fused._parents import LostParentError
from optuna_ext.fused._parents import Parent
from optuna_ext.fused._parents import Parents
from optuna_ext.fused._parents import States
from optuna_ext.fused._problem import folds_on
from optuna_ext.fused._problem import is_rowwise
from optuna_ext.fused._problem import metrics_of
from optuna_ext.fused._problem import Problem
from optuna_ext.fused._signature import signature
from optuna_ext.fused._training import Result
from optuna_ext.fused._training import Training
from optuna_ext.fused._training import training_of
from optuna_ext.lineage import resumed_from
from optuna_ext.samplers import _host


_logger = get_logger(__name__)


class Trainer:
    """Trains trials together, epoch by epoch; the ask-and-tell form of ``optimize``.

    Trials whose networks make one program are trained as one. A slot is free as soon as its trial
    has ended or was removed, and new trials may take it while the others go on.

    A trial with the user attribute ``parent``, the number of an earlier trial, goes on with the
    weights and the optimizer state of that trial, and its steps count on. Rows are copied on the
    device as long as the parent is still in its slot; of those that lose theirs, the two last
    generations of a population (:class:`~optuna_ext.PopulationBasedTrainingSampler`) and paused
    trials (:class:`~optuna_ext.SuccessiveHalving`, :class:`~optuna_ext.Hyperband`) are kept in the
    memory of the CPU.

    Args:
        problem:
            What to train.
        slots:
            How many trials train at once, at least 1. Where the memory runs out, they are halved
            and the trials concerned begin again.
        device:
            ``"auto"`` (CUDA, else MPS, else the CPU) or a device as torch names it.
        engine:
            As for :class:`~optuna_ext.fused.Population`.
        amp:
            Whether networks compute in bfloat16 where torch holds that to be safe.
        compile:
            Whether to ``torch.compile`` the step, which pays off in long studies.
        catch:
            Exceptions of the problem's functions that fail a trial and do not come through.
        store:
            Where trials go on from that were trained one by one, and are kept: see ``optimize``.

    Raises:
        ValueError: If ``slots`` is below 1 or this machine has no such device.

    Example:
        >>> import optuna, torch
        >>> from torch.nn.functional import cross_entropy
        >>> from optuna_ext.fused import Problem, Trainer
        >>> x = torch.randn(64, 2)
        >>> rows = (x, (x[:, 0] > 0).long())
        >>> problem = Problem(
        ...     suggest=lambda trial: {"lr": trial.suggest_float("lr", 0.01, 1)},
        ...     model=lambda hyperparameters: torch.nn.Linear(2, 2),
        ...     loss=lambda outputs, y: cross_entropy(outputs, y, reduction="none"),
        ...     train=rows,
        ...     valid=rows,
        ...     epochs=3,
        ... )
        >>> study = optuna.create_study()
        >>> trainer = Trainer(problem, slots=4)
        >>> _ = trainer.add([study.ask() for _ in range(4)])
        >>> while trainer.trials:
        ...     for result in trainer.step():
        ...         if result.is_over:
        ...             _ = study.tell(result.trial, result.final_value)
        >>> len(study.trials)
        4
    """

    def __init__(
        self,
        problem: Problem,
        *,
        slots: int = 256,
        device: str | torch.device = "auto",
        engine: str = "auto",
        amp: bool = False,
        compile: bool = False,
        catch: tuple[type[Exception], ...] = (),
        store: CheckpointStore | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, but it is {slots}.")
        self.device = resolve_device(device)
        self.slots = slots
        self.model_steps = 0
        """Optimizer steps taken, of all networks together."""
        self._problem = problem
        self._catch = catch
        self._folds = folds_on(problem, self.device)
        self._settings = Settings(
            loss=problem.loss,
            metrics=metrics_of(problem),
            device=self.device,
            engine=engine,
            amp=amp,
            compile=compile,
        )
        self._groups: dict[Hashable, Group] = {}
        self._trainings: dict[int, Training] = {}  # by number
        self._queue: list[Training] = []  # of them, without a slot
        self._parents = Parents()
        self._elsewhere = Elsewhere(store, problem, folds=len(self._folds))
        self.footprint = Footprint(self._folds, loss=problem.loss, amp=amp)
        """Predicts the memory of a slot."""
        self._orders = torch.Generator()
        self._goes_on = False
        self._rowwise: bool | None = None

    @property
    def trials(self) -> list[Trial]:
        """The trials in training, in order of their numbers."""
        return [self._trainings[number].trial for number in sorted(self._trainings)]

    @property
    def room(self) -> int:
        """How many trials may be added now."""
        return max(0, self.slots - len(self._trainings))

    @property
    def has_parents(self) -> bool:
        """Whether trials that have ended are kept, because others may go on from them later."""
        return self._parents.are_wanted

    @property
    def engines(self) -> dict[str, str]:
        """The engines in use, and a sentence on each that says why."""
        return {group.populations[0].engine: group.reason for group in self._groups.values()}

    def add(self, trials: Iterable[Trial]) -> list[Result]:
        """Begin with trials, which are asked for their parameters one after another.

        Returns:
            A result for each that is over before it has begun.

        Raises:
            ValueError: If there is no room for them, or the parent of one is not at hand. After
                :meth:`load_state_dict` the latter fails, as a crash may have cost the parent.
        """
        results: list[Result] = []
        trainings: list[Training] = []
        try:
            for trial in trials:
                if not self.room:
                    raise ValueError(f"trials must be no more than the {self.slots} slots.")
                try:
                    training = self._begin(trial)
                    if training.is_over:  # its parent has trained it all
                        self._parents.serve(self._trainings.pop(trial.number))
                        results.append(Result(trial=trial, final_value=training.value))
                    else:
                        trainings.append(training)
                except optuna.TrialPruned:
                    results.append(Result(trial=trial))
                except LostParentError as error:
                    if not (self._goes_on and self._parents.are_wanted):
                        raise
                    # It had ended between the last checkpoint and the crash; others are left.
                    results.append(Result(trial=trial, reason=str(error)))
                except self._catch as error:
                    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    results.append(Result(trial=trial, reason=text))
        finally:
            results += self._place(trainings)
        return results

    def _begin(self, trial: Trial, *, is_known: bool = False) -> Training:
        hyperparameters = self._problem.suggest(trial)
        stored = _host.stored(trial)
        self._parents.expect(stored.user_attrs)
        read = partial(self._elsewhere.read, trial, hyperparameters)
        origin = resumed_from(stored) if is_known else self._parents.origin_of(trial, stored, read)
        training = training_of(
            self._problem,
            trial,
            hyperparameters,
            noted=stored.user_attrs,
            origin=origin,
            rows=[len(fold.train[0]) for fold in self._folds],
            device=self.device,
        )
        self._parents.begin(training, is_known=is_known)
        self._trainings[trial.number] = training
        return training

    def _place(self, trainings: Sequence[Training]) -> list[Result]:
        """Give slots to trials, group by group."""
        together: dict[Hashable, list[Training]] = {}
        for training in trainings:
            program = signature(training.members[0], rowwise=self._is_rowwise(training))
            together.setdefault((program, training.passes), []).append(training)
        for key, members in together.items():
            if key not in self._groups:
                self._groups[key] = Group(self._settings, self._folds, passes=members[0].passes)
            elsewhere = {t.parent for t in members} - {*self._groups[key].ended}
            for group in self._groups.values():
                group.leave([n for n in group.ended if n in elsewhere], self._parents)
        results: list[Result] = []
        for key, members in together.items():
            try:
                self._groups[key].add(members, self._parents)
            except (RuntimeError, MemoryError) as error:
                results += self._split(key, error, also=members)
        return results

    def _is_rowwise(self, training: Training) -> bool:
        if self._rowwise is None:
            x, y = self._folds[0].train
            self._rowwise = is_rowwise(self._problem, training.members[0], x, y)
        return self._rowwise

    def step(self) -> list[Result]:
        """Train all trials for an epoch and evaluate them.

        Returns:
            A result per trial, in order of their numbers. What is over has left the trainer.
        """
        room = self.slots - (len(self._trainings) - len(self._queue))
        waiting, self._queue = self._queue[:room], self._queue[room:]
        results = self._place(waiting)
        for key, group in [*self._groups.items()]:
            group.release(self._parents)
            if not group.active:
                del self._groups[key]
                continue
            try:
                results += self._train(group)
            except (RuntimeError, MemoryError) as error:
                results += self._split(key, error)
        self._parents.tidy()
        return sorted(results, key=lambda result: result.trial.number)

    def _train(self, group: Group) -> list[Result]:
        orders = [
            torch.randperm(len(fold.train[0]), generator=self._orders).to(self.device)
            if self._problem.order == "shared"
            else None
            for fold in self._folds
        ]
        active = group.active
        losses = group.train_epoch(orders)
        valid = group.evaluate("valid")
        for training in active.values():
            training.epoch += 1
            self.model_steps += training.steps_per_epoch
        self.footprint.see(next(iter(active.values())), group.populations[0].engine)
        has_test = self._folds[0].test is not None
        test: list[dict[str, float]] = [{} for _ in valid]
        if has_test and any(training.is_candidate for training in active.values()):
            test = group.evaluate("test")
        return [
            self._result(group, training, losses[slot], valid[slot], test[slot])
            for slot, training in active.items()
        ]

    def _result(
        self,
        group: Group,
        training: Training,
        loss: float,
        valid: Mapping[str, float],
        test: Mapping[str, float],
    ) -> Result:
        reason = training.take_in(loss, valid, test)
        is_over = training.is_over or reason is not None
        if is_over:
            self._end(group, training, failed=reason is not None)
        value = next(iter(valid.values()))
        return Result.of(training, value=value, is_over=is_over, reason=reason)

    def _end(
        self, group: Group, training: Training, *, is_paused: bool = False, failed: bool = False
    ) -> None:
        slot = group.remove(training)
        del self._trainings[training.trial.number]
        self._parents.end(training, is_paused=is_paused, failed=failed)
        if not failed:
            self._elsewhere.keep(training, partial(group.state_of, slot), is_paused=is_paused)

    def remove(self, trial: Trial) -> None:
        """Stop with a trial; its slot is free."""
        training = self._trainings[trial.number]
        if training in self._queue:
            self._queue.remove(training)
            del self._trainings[trial.number]
            self._parents.serve(training)
            return
        group = next(group for group in self._groups.values() if training in group.slots)
        self._end(group, training, is_paused=True)

    def _split(
        self, key: Hashable, error: BaseException, *, also: Sequence[Training] = ()
    ) -> list[Result]:
        """After the memory has run out: halve the slots and begin again with those concerned.

        Where in an epoch it has happened is not known, so their weights are of no use. They get
        the same values again.
        """
        if not is_out_of_memory(error):
            raise error
        group = self._groups.pop(key)
        self._parents.lose(group.ended)
        active = [*group.active.values()]
        concerned = active + [training for training in also if training not in active]
        group.populations.clear()
        release_memory(self.device)
        reason = f"out of memory on {self.device}: {str(error).partition(chr(10))[0]}"
        if len(concerned) > 1:
            self.slots = max(1, self.slots // 2)
            _logger.warning("%s slots are left: %s", self.slots, reason)
        results = []
        for training in concerned:
            if len(concerned) > 1 and training.parent is None:
                training.restart()
                self._queue.append(training)
            else:
                del self._trainings[training.trial.number]
                self._parents.serve(training)
                results.append(Result.of(training, is_over=True, reason=reason))
        return results

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on in another process."""
        ended: dict[int, States] = {}
        trials: dict[int, dict[str, Any]] = {}
        for group in self._groups.values():
            ended |= group.states_of_ended()
            for slot, training in group.active.items():
                parent = Parent.of(training, is_paused=True, states=group.state_of(slot))
                trials[training.trial.number] = vars(parent)
        return {
            "slots": self.slots,
            "orders": self._orders.get_state(),
            "trials": trials,
            "parents": self._parents.state_dict(ended),
        }

    def load_state_dict(self, state: Mapping[str, Any], trials: Iterable[Trial]) -> list[Result]:
        """Go on with trials where ``state_dict`` found them.

        Args:
            state:
                What :meth:`state_dict` gave.
            trials:
                Running trials. Those that are not in ``state`` begin anew.

        Returns:
            A result for each that cannot go on, because the weights of its parent are lost.
        """
        self._goes_on = True
        self.slots = min(self.slots, state["slots"])
        self._orders.set_state(state["orders"])
        self._parents.load_state_dict(state["parents"])
        known = dict(state["trials"])
        running = [*trials]
        for number in known.keys() - {trial.number for trial in running}:
            self._parents.add(number, known.pop(number))  # has ended since
        results: list[Result] = []
        trainings = []
        for trial in running:
            try:
                trainings.append(self._begin(trial, is_known=trial.number in known))
            except LostParentError as error:
                results.append(Result(trial=trial, reason=str(error)))
        room = self.slots
        self._queue += trainings[room:]
        results += self._place(trainings[:room])
        for group in self._groups.values():
            for slot, training in group.active.items():
                if entry := known.get(training.trial.number):
                    training.load_state_dict(entry["progress"])
                    group.load(slot, entry["states"])
        return results
