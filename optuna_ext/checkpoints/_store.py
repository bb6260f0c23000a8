from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
from functools import partial
import math
import os
from typing import Any
from typing import TYPE_CHECKING

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.study import StudyDirection

from optuna_ext._checks import check_int
from optuna_ext._logs import get_logger
from optuna_ext.checkpoints._candidates import candidates
from optuna_ext.checkpoints._collector import Collector
from optuna_ext.checkpoints._errors import CheckpointError
from optuna_ext.checkpoints._errors import reason_of
from optuna_ext.checkpoints._errors import UnusableError
from optuna_ext.checkpoints._names import name_of
from optuna_ext.checkpoints._names import start_of
from optuna_ext.checkpoints._packed import pack
from optuna_ext.checkpoints._places import open_place
from optuna_ext.checkpoints._run import content_of
from optuna_ext.checkpoints._run import restore
from optuna_ext.checkpoints._run import Run
from optuna_ext.checkpoints._things import Things
from optuna_ext.lineage import CHECKPOINT
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import parent_of
from optuna_ext.lineage import RESUMED
from optuna_ext.lineage import resumed_from


if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore
    from optuna.study import Study
    from optuna.trial import BaseTrial
    from optuna.trial import FrozenTrial

_logger = get_logger(__name__)


class CheckpointStore:
    """Keeps the states of trainings, and lets a trial go on from another trial's or its own.

    :meth:`resume` restores what the trial's ``parent`` (a user attribute, written by a sampler or
    by you) has reached, or what the trial itself had reached before its worker died, and then
    gives the optimizer this trial's own hyperparameters again. The run it returns knows the step
    and saves.

    A checkpoint is written to the side and synchronized to the disk before it gets its name; then
    the trial's user attribute ``checkpoint`` names it, with its step, size and SHA-256. Whatever
    is killed at whatever moment, the attribute names a whole file. A file that was cut, altered
    or deleted since is noticed, and the one before it is used, or the parent's. Files are loaded
    with ``weights_only=True``, so one that wants to run code is refused. Their names hold their
    SHA-256: what is identical is stored once. What this process wrote last, up to 64 MiB, it takes
    from memory when the file is still whole.

    What no trial can use anymore is deleted now and then while trials save; see :meth:`collect`.
    Random numbers are global to a process, so trials that must be exact to the bit after a restart
    run in processes of their own, not in threads, or draw from generators that they name.

    Args:
        place:
            A directory (created if need be), ``"s3://BUCKET/PREFIX"``, ``"gs://BUCKET/PREFIX"``,
            an artifact store of Optuna, or ``":memory:"`` for this process only. Several studies
            may share it. Machines that work on one study need a common one.
        keep:
            Of how many of the best trials the final checkpoints are kept for good.
        autosave:
            Seconds between the checkpoints of ``run.autosave``.
        grace:
            Seconds for which a checkpoint stays after it has become useless, because another
            worker may just have decided to read it. Longer than workers' clocks differ.

    Raises:
        ValueError: If the URL is of another kind, or a number is out of range.
        TypeError: If ``place`` is something else.
        OSError: If the directory cannot be made.
        ImportError: If the client of the bucket is not installed.

    Example:
        .. testcode::

            import optuna
            import torch
            from optuna_ext import CheckpointStore

            store = CheckpointStore("checkpoints")


            def objective(trial):
                lr = trial.suggest_float("lr", 1e-3, 1, log=True)
                model = torch.nn.Linear(1, 1)
                optimizer = torch.optim.SGD(model.parameters(), lr=lr)
                run = store.resume(trial, model=model, optimizer=optimizer)
                last = run.start + 5  # also when the worker died on the way
                for step in range(run.step + 1, last + 1):
                    optimizer.zero_grad()
                    loss = (model(torch.ones(1)) - 2).square().sum()
                    loss.backward()
                    optimizer.step()
                    trial.report(loss.item(), step)
                run.save(last)
                return (model(torch.ones(1)) - 2).square().item()


            study = optuna.create_study()
            study.optimize(objective, n_trials=1)
            study.enqueue_trial({"lr": 0.1}, user_attrs={"parent": 0})
            study.optimize(objective, n_trials=1)
            assert list(study.trials[1].intermediate_values) == [6, 7, 8, 9, 10]

    References:
        M. Jaderberg et al. (2017), Population Based Training of Neural Networks, on what a member
        takes over from another one; L. Li et al. (2020), A System for Massively Parallel
        Hyperparameter Tuning, on pausing and promoting.
    """

    def __init__(
        self,
        place: str | os.PathLike[str] | ArtifactStore,
        *,
        keep: int = 10,
        autosave: float = 60.0,
        grace: float = 300.0,
    ) -> None:
        self.keep = check_int("keep", keep, low=1)
        for name, value in {"autosave": autosave, "grace": grace}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be at least 0 seconds, but got {value!r}.")
        self._autosave = autosave
        self._place = open_place(place)
        self._collector = Collector(self._place, keep=keep, grace=grace)

    def resume(self, trial: BaseTrial | FrozenTrial, /, **things: Any) -> Run:
        """Restore what a trial goes on from, and give it its own hyperparameters again.

        A newborn trial is left as it is. The options of the optimizer's parameter groups (learning
        rate, momentum, weight decay, ...) are those that it was built with just now; a scheduler
        keeps its position and follows the new learning rate.

        Of the trial's own checkpoints, its parent's, and those of the parent's parents, the newest
        one that is whole counts. When a trial has a parent and no checkpoint is whole, it fails;
        when it has only lost its own, it starts once more. A member of a population goes on from
        the best trial whose checkpoint is whole before it fails.

        Args:
            trial:
                A running trial, or any other one; ``FixedTrial`` and ``FrozenTrial`` too.
            **things:
                Everything that the training consists of, under names of your choice: modules
                (compiled or data-parallel ones too), optimizers, learning rate schedulers,
                gradient scalers, moving averages, data loaders with a state, and whatever else has
                ``state_dict`` and ``load_state_dict``; ``torch.Generator``,
                ``numpy.random.Generator`` and ``random.Random``. The global random numbers of
                Python, NumPy and torch are restored without being named.

        Returns:
            The run, with its ``step`` and ``start``.

        Raises:
            TypeError: If one of the things has no state.
            CheckpointError: If there is a parent, but no checkpoint is usable, or what it holds
                does not fit the things.
        """
        study = getattr(trial, "study", None)
        trials = [] if study is None else study.get_trials(deepcopy=False)
        direction = StudyDirection.NOT_SET if study is None else study.directions[0]
        current = trials[trial.number] if trials else trial  # its own copy may be older
        start = start_of(study)
        newest: Checkpoint | None = None

        def keep(content: Mapping[str, Any], step: int) -> Checkpoint:
            nonlocal newest
            newest = self._keep(trial, content, step, start=start, previous=newest)
            return newest

        run = Run(Things(things), keep, autosave=self._autosave)
        failures = []
        for number, checkpoint in candidates(current, trials, direction):
            try:
                content = self._read(checkpoint)
            except UnusableError as error:
                failures.append(f"that of trial {number} at step {checkpoint.step} {error}")
                _logger.warning("Trial %d cannot use a checkpoint: %s", trial.number, failures[-1])
                continue
            restore(run, content, number)
            if number == trial.number:
                newest = checkpoint
                origin = resumed_from(current)
                run.start = 0 if origin is None else origin[1]
            else:
                trial.set_user_attr(RESUMED, {"trial": number, "step": run.step})
            return run
        if parent_of(current) is not None:
            reason = "; ".join(failures) or "its ancestors have none"
            raise CheckpointError(
                f"trial {trial.number} cannot go on from trial {parent_of(current)}, because no "
                f"checkpoint is usable: {reason}."
            )
        return run

    def save(self, trial: BaseTrial | FrozenTrial, step: int, /, **things: Any) -> Checkpoint:
        """Keep what a trial has trained without :meth:`resume`, for others to go on from.

        Random numbers are kept only if they are named, and the hyperparameters that an optimizer
        has now count as those that the trial began with.

        Args:
            trial:
                As for :meth:`resume`.
            step:
                The last step that was trained, along the whole lineage.
            **things:
                As for :meth:`resume`.

        Returns:
            The checkpoint; when this returns, it is safe.

        Raises:
            ValueError: If ``step`` is below 0.
            TypeError: If something has no state, or one that is not safe to load.
            CheckpointError: If it cannot be written; the checkpoint before it stays.
        """
        content = content_of(Things(things), check_int("step", step), random=None)
        start = start_of(getattr(trial, "study", None))
        return self._keep(trial, content, step, start=start, previous=Checkpoint.of(trial))

    def load(self, trial: BaseTrial | FrozenTrial, /, **things: Any) -> int:
        """Load a trial's newest checkpoint, to use or to examine what was trained.

        Args:
            trial:
                A trial with a checkpoint, such as ``study.best_trial``.
            **things:
                What to load, under the names it was saved with: often just ``model=model``. Random
                numbers stay as they are, and an optimizer gets the saved hyperparameters.

        Returns:
            The step after which it was saved.

        Raises:
            TypeError: If one of the things has no state.
            CheckpointError: If the trial has no usable checkpoint, or it does not fit the things.
        """
        content = self._newest(trial)
        restore(Things(things), content, trial.number)
        return int(content["step"])

    def states(self, trial: BaseTrial | FrozenTrial, /) -> dict[str, Any]:
        """Return what :meth:`load` loads: the state dicts on the CPU, by name.

        Raises:
            CheckpointError: If the trial has no usable checkpoint.
        """
        states: dict[str, Any] = self._newest(trial)["things"]
        return states

    def _newest(self, trial: BaseTrial | FrozenTrial) -> Any:
        checkpoint = Checkpoint.of(trial)
        if checkpoint is None:
            raise CheckpointError(f"trial {trial.number} has no checkpoint.")
        try:
            return self._read(checkpoint)
        except UnusableError as error:
            raise CheckpointError(
                f"the checkpoint of trial {trial.number} at step {checkpoint.step} {error}."
            ) from error

    def check(self) -> None:
        """Write a small file and delete it, to notice now what would end a trial when it saves.

        Raises:
            CheckpointError: If that is not possible.
        """
        try:
            self._place.check()
        except Exception as error:
            raise CheckpointError(
                f"nothing can be kept in {self._place}: {reason_of(error)}."
            ) from error

    def collect(self, study: Study) -> list[str]:
        """Delete the checkpoints of a study that no trial can use anymore.

        This happens by itself while trials save, at most once a minute and for at most 1% of the
        time. Kept are: both last checkpoints of a trial that runs or waits (for its retry), and of
        the trial it is about to go on from; those of paused trials that nobody has gone on from,
        and of failed ones that were not tried again; those of the two last generations of every
        member of a population (user attribute ``member``); and those of the best trials.

        What another worker may be reading stays: whatever ended within the last ``grace`` seconds
        counts as not ended, and no file younger than that is deleted. As files are listed before
        the trials are read, and a file is written before a trial names it, what is deleted is
        named by no trial. Files of an artifact store that cannot be listed stay.

        Args:
            study:
                The study. The files of other studies at the same place are not touched.

        Returns:
            The names of the files that were deleted.

        Raises:
            OSError: If the place cannot be listed or a file not be deleted.
        """
        return self._collector.collect(study)

    def _keep(
        self,
        trial: BaseTrial | FrozenTrial,
        content: Mapping[str, Any],
        step: int,
        *,
        start: str,
        previous: Checkpoint | None,
    ) -> Checkpoint:
        """Write a checkpoint, then name it: a user attribute never names half a file."""
        older = None if previous is None else previous.previous
        packed = pack(content, limit=self._place.limit)
        with self._in_a_sentence(trial, step):
            prepared, size, sha256 = self._place.dump(packed)
        with prepared as file:
            name = name_of(start, sha256)
            if previous is not None and previous.artifact == name:  # nothing has changed
                previous = previous.previous
            if previous is not None:
                previous = dataclasses.replace(previous, previous=None)
            if not (self._place.renew(name) and self._place.is_whole(name, sha256)):
                self._put(name, file, trial, step)
            checkpoint = Checkpoint(
                artifact=name, step=step, size=size, sha256=sha256, previous=previous
            )
            trial.set_user_attr(CHECKPOINT, checkpoint.to_dict())
            if self._place.is_gone(name):  # another worker held it for useless just before
                self._put(name, file, trial, step)
        self._tidy(trial, older, newest=checkpoint)
        return checkpoint

    def _tidy(
        self, trial: BaseTrial | FrozenTrial, older: Checkpoint | None, *, newest: Checkpoint
    ) -> None:
        """Delete what has become useless, if it is time."""
        study = getattr(trial, "study", None)
        if study is not None:
            self._collector.now_and_then(partial(self.collect, study))
        elif older not in (None, newest.previous) and older.artifact.startswith("trial-"):
            self._place.remove(older.artifact)  # nobody else knows a file outside of studies

    def _put(self, name: str, file: Any, trial: BaseTrial | FrozenTrial, step: int) -> None:
        with self._in_a_sentence(trial, step):
            self._place.write(name, file)

    @contextlib.contextmanager
    def _in_a_sentence(self, trial: BaseTrial | FrozenTrial, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Every client of a bucket has exceptions of its own.
            raise CheckpointError(
                f"trial {trial.number} cannot keep a checkpoint of step {step} in {self._place}: "
                f"{reason_of(error)}; the one before it is unchanged."
            ) from error

    def _read(self, checkpoint: Checkpoint) -> Any:
        try:
            return self._place.load(
                checkpoint.artifact, size=checkpoint.size, sha256=checkpoint.sha256
            )
        except UnusableError:
            raise
        except ArtifactNotFound as error:
            raise UnusableError(f"is not in {self._place}") from error
        except Exception as error:
            raise UnusableError(f"cannot be read: {reason_of(error)}") from error
