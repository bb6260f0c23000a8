"""A study whose trials are trained together.

Where the time of a trial goes, for the network 2-5-5-1 on 10,000 points, batches of 256 and ten
epochs, when 256 such trials train together on one CPU core:

- The training itself: 400 steps. One alone takes a millisecond, of which 2 us are arithmetic; the
  rest is Python, autograd and the loader's way of picking rows one by one. Together they share
  the former, and rows are picked by one gather per step.
- Building the network and its optimizer, asking for parameters, reporting, telling: 1 to 2 ms per
  trial, whatever the engine. This is the floor, and beside the fastest engines most of the time.
- The storage: 0.15 ms, because it is written in bulk; with Optuna's own it would be 240 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from functools import cached_property
from functools import partial
import os
import time

from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import Trial
from optuna.trial import TrialState
import torch

from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.fused import _study
from optuna_ext.fused._checkpoint import Checkpoint
from optuna_ext.fused._checkpoint import locked
from optuna_ext.fused._devices import one_thread
from optuna_ext.fused._problem import Problem
from optuna_ext.fused._progress import Progress
from optuna_ext.fused._trainer import Trainer
from optuna_ext.fused._training import Result
from optuna_ext.samplers import _host
from optuna_ext.samplers import PopulationBasedTrainingSampler


_RUN = "optuna_ext:run"  # the user attribute that tells whose a running trial is


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a call of :func:`optimize` has done.

    Args:
        trials:
            Trials that ended.
        model_steps:
            Optimizer steps, of all networks together.
        seconds:
            Wall time.
        slots:
            How many trials there was room for in the end.
        engines:
            The engines in use in the end, and a sentence on each that says why.
        predict_memory:
            Gives :attr:`bytes_per_slot`.
    """

    trials: int
    model_steps: int
    seconds: float
    slots: int
    engines: dict[str, str]
    predict_memory: Callable[[], int] = field(repr=False, compare=False)

    @cached_property
    def bytes_per_slot(self) -> int:
        """How much memory a slot of the largest network takes, to within about a fifth.

        It is predicted by :func:`~optuna_ext.fused.memory_per_member` when it is first asked for.
        """
        return self.predict_memory()


def optimize(
    study: Study,
    problem: Problem,
    n_trials: int,
    *,
    slots: int = 256,
    device: str | torch.device = "auto",
    engine: str = "auto",
    amp: bool = False,
    compile: bool = False,
    timeout: float | None = None,
    catch: Iterable[type[Exception]] | type[Exception] = (),
    callbacks: Sequence[Callable[[Study, FrozenTrial], None]] = (),
    after_epoch: Callable[[int, int], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_interval: float = 60.0,
    store: CheckpointStore | None = None,
    show_progress_bar: bool = False,
) -> Summary:
    """Run trials of a study, many at once as one program; like ``study.optimize`` else.

    As many trials as there are slots train together, in lockstep: after each epoch all report,
    then the pruner is asked about each, and whoever is pruned, fails or ends makes room for a new
    trial. Any sampler and any pruner works. A sampler that learns is asked for several trials
    before it hears of the first: ``TPESampler(constant_liar=True)`` knows what to do; with fewer
    slots a sampler learns more often. A trial computes what it would compute alone, whoever
    trains beside it. One whose loss is no longer finite fails, alone.

    A trial with the user attribute ``parent`` goes on with the weights of that trial, which are
    copied on the device: population-based training, and successive halving that promotes paused
    trials (see :class:`~optuna_ext.fused.Trainer`). Of a population no more trials are asked for
    than can know their parents; it trains as with one worker.

    Results in an SQLite file or a database server are written in bulk, as by
    :func:`~optuna_ext.bulk_storage`. User attributes tell ``train_loss``, all metrics as
    ``valid_NAME`` and ``test_NAME``, ``epochs``, ``n_parameters``, ``train_seconds``, ``device``,
    and of a trial that fails the ``reason``.

    On a CPU the program computes with one thread, unless ``OMP_NUM_THREADS`` is set.

    Args:
        study:
            A study with one objective, from ``optuna.create_study``.
        problem:
            What to train.
        n_trials:
            How many trials to run, at least 1.
        slots:
            How many trials train at once. Where the memory runs out, they are halved.
        device:
            ``"auto"`` (CUDA, else MPS, else the CPU) or a device as torch names it.
        engine:
            ``"auto"`` measures which is the fastest; see
            :class:`~optuna_ext.fused.Population`.
        amp:
            Whether networks compute in bfloat16 where torch holds that to be safe.
        compile:
            Whether to ``torch.compile`` the step, which pays off in long studies.
        timeout:
            Begin no trial after this many seconds.
        catch:
            Exceptions of the problem's functions that fail a trial and do not end the study.
        callbacks:
            ``callback(study, trial)``, called with each trial that has ended;
            ``study.stop()`` in it begins no more.
        after_epoch:
            ``after_epoch(trials, model_steps)``, called with the numbers of trials that have ended
            and of optimizer steps taken so far.
        checkpoint:
            A file to which all trials in training are written now and then. After a crash the
            same call goes on from there: trials in training continue, and ``n_trials`` counts
            those before. It is removed in the end, unless trials may still go on from others:
            then it keeps their weights for the next call.
        checkpoint_interval:
            Seconds between two checkpoints, ``checkpoint_interval > 0``.
        store:
            Where an objective that trains trials one by one keeps them: it may go on from those
            that are trained here, and these from its. An epoch is a step. The names are ``model``,
            ``optimizer`` (of the parameters that need a gradient) and, if the order of the rows is
            to go on, ``generator``; ``model_1`` and so on in further folds. ``progress`` holds
            ``value`` and ``notes``, what the trial is worth and what is recorded with it. Trials
            are kept when they end: members of a population, paused trials and the best.
        show_progress_bar:
            Whether to show trials and steps per second.

    Returns:
        What was done, and by which engines.

    Raises:
        ValueError: If an argument is out of its range, the study has several objectives, or the
            checkpoint is not one of this study.
        CheckpointInUseError: If another process uses the checkpoint.

    Example:
        .. code-block:: python

            import optuna
            import torch
            from torch.nn.functional import cross_entropy
            from optuna_ext import fused

            x = torch.randn(2000, 2)
            y = (x[:, 0] * x[:, 1] > 0).long()


            def suggest(trial):
                return {
                    "units": trial.suggest_categorical("units", [4, 8]),
                    "lr": trial.suggest_float("lr", 1e-3, 1.0, log=True),
                }


            def model(hyperparameters):
                units = hyperparameters["units"]
                return torch.nn.Sequential(
                    torch.nn.Linear(2, units), torch.nn.ReLU(), torch.nn.Linear(units, 2)
                )


            problem = fused.Problem(
                suggest=suggest,
                model=model,
                loss=lambda outputs, y: cross_entropy(outputs, y, reduction="none"),
                train=(x[:1500], y[:1500]),
                valid=(x[1500:], y[1500:]),
                optimizer="adam",
                epochs=5,
            )
            study = optuna.create_study()
            fused.optimize(study, problem, n_trials=64)
            print(study.best_value, study.best_params)
    """
    if n_trials < 1:
        raise ValueError(f"n_trials must be at least 1, but it is {n_trials}.")
    if len(study.directions) != 1:
        raise ValueError(
            f"study must have one objective, but it has {len(study.directions)}: one value is "
            "reported per epoch."
        )
    caught = tuple(catch) if isinstance(catch, Iterable) else (catch,)
    with locked(checkpoint):
        file = Checkpoint(checkpoint, interval=checkpoint_interval)
        file.check(study)
        trainer = Trainer(
            problem,
            slots=slots,
            device=device,
            engine=engine,
            amp=amp,
            compile=compile,
            catch=caught,
            store=store,
        )
        started = time.perf_counter()
        with (
            _study.running(study) as fast,
            one_thread(trainer.device),
            Progress(n_trials, enabled=show_progress_bar) as progress,
        ):
            watchers = [progress.update, *([after_epoch] if after_epoch else [])]
            loop = _Loop(fast, trainer, file, callbacks=callbacks, watchers=watchers)
            loop.run(n_trials, deadline=None if timeout is None else time.monotonic() + timeout)
    return Summary(
        trials=loop.n_ended,
        model_steps=trainer.model_steps,
        seconds=time.perf_counter() - started,
        slots=trainer.slots,
        engines=loop.engines,
        predict_memory=partial(trainer.footprint.predict, trainer.slots),
    )


def interrupted(study: Study, checkpoint: str | os.PathLike[str]) -> list[FrozenTrial]:
    """Return the trials of a study that an interrupted call of :func:`optimize` has begun.

    Args:
        study:
            The study.
        checkpoint:
            As for :func:`optimize`.

    Returns:
        Those that ``n_trials`` counts if the call is repeated; none without a checkpoint.
    """
    file = Checkpoint(checkpoint, interval=1)
    return [] if file.state is None else _trials_of(study, file)


def _trials_of(study: Study, checkpoint: Checkpoint) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.user_attrs.get(_RUN) == checkpoint.run]


class _Loop:
    def __init__(
        self,
        study: Study,
        trainer: Trainer,
        checkpoint: Checkpoint,
        *,
        callbacks: Sequence[Callable[[Study, FrozenTrial], None]],
        watchers: Sequence[Callable[[int, int], None]],
    ) -> None:
        self._study = study
        self._trainer = trainer
        self._checkpoint = checkpoint
        self._callbacks = callbacks
        self._watchers = watchers
        self._asked: dict[int, Trial] = {}  # and not told, by number
        self._reported: dict[int, int] = {}  # the last steps, by number
        self.engines: dict[str, str] = {}
        self.n_ended = 0

    def run(self, n_trials: int, *, deadline: float | None) -> None:
        try:
            left = n_trials - self._resume()
            while True:
                in_time = deadline is None or time.monotonic() < deadline
                if in_time and not _host.is_stopped(self._study):
                    n = self._n_ready(min(left, self._trainer.room))
                    left -= n
                    self._tell(self._trainer.add(self._ask(n)))
                if not self._trainer.trials:
                    if left and in_time and not _host.is_stopped(self._study):
                        continue  # those added have ended before they began
                    break
                self._tell(self._trainer.step())
                self.engines |= self._trainer.engines
                for watcher in self._watchers:
                    watcher(self.n_ended, self._trainer.model_steps)
                self._checkpoint.write_if_due(self._study, self._trainer)
        except BaseException:
            if not self._checkpoint:  # else another process goes on with them
                for trial in self._asked.values():
                    self._study.tell(trial, state=TrialState.FAIL)
            raise
        self._checkpoint.close(self._study, self._trainer)

    def _resume(self) -> int:
        """Go on with what an earlier process has left; return how many trials it had begun."""
        state = self._checkpoint.state
        if state is None:
            self._checkpoint.write(self._study, self._trainer)
            return 0
        mine = _trials_of(self._study, self._checkpoint)
        running = [t for t in mine if t.state == TrialState.RUNNING]
        self._reported = {t.number: t.last_step or 0 for t in running}
        self._asked = {t.number: _host.go_on_with(self._study, t) for t in running}
        self._tell(self._trainer.load_state_dict(state, [*self._asked.values()]))
        return len(mine)

    def _n_ready(self, n: int) -> int:
        """Return how many trials to ask for now, of at most ``n``."""
        sampler = self._study.sampler
        if not isinstance(sampler, PopulationBasedTrainingSampler):
            return n
        # Those for whom it would wait are in training here, or in another process.
        return sampler.n_ready(self._study, n) or min(n, not self._trainer.trials)

    def _ask(self, n: int) -> Iterator[Trial]:
        note = {_RUN: self._checkpoint.run} if self._checkpoint else {}
        for trial in _study.ask(self._study, n, note=note) if n else ():
            self._asked[trial.number] = trial
            yield trial

    def _tell(self, results: Sequence[Result]) -> None:
        """First all reports of an epoch, then all decisions, then what follows from them."""
        reports = [result for result in results if self._report(result)]
        pruned = {
            result.trial.number
            for result in reports
            if not result.is_over and result.trial.should_prune()
        }
        ended = [r for r in results if r.is_over or r.trial.number in pruned]
        with _study.telling(self._study):
            for result in ended:
                self._tell_one(result)
        self.n_ended += len(ended)
        for result in ended:
            for callback in self._callbacks:
                callback(self._study, _host.stored(result.trial))

    def _report(self, result: Result) -> bool:
        """Report a value, unless it was before a crash."""
        number = result.trial.number
        if not result.is_reported or result.step <= self._reported.get(number, -1):
            return False
        result.trial.report(result.value, result.step)
        self._reported[number] = result.step
        return True

    def _tell_one(self, result: Result) -> None:
        trial = result.trial
        if not result.is_over:
            self._trainer.remove(trial)
        for name, note in result.notes().items():
            trial.set_user_attr(name, note)
        if result.final_value is not None:
            self._study.tell(trial, result.final_value)
        else:
            failed = result.reason is not None
            self._study.tell(trial, state=TrialState.FAIL if failed else TrialState.PRUNED)
        self._reported.pop(trial.number, None)
        del self._asked[trial.number]
