"""What a running study shows: a live bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections import Counter
import time
from types import TracebackType

from optuna.study import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.table import Column

from studies._tickets import settled


_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
_LOOK_EVERY = 0.1  # seconds between two looks into the storage, which costs as much as a trial
_LINE_EVERY = 10.0  # seconds between two lines where there is no terminal


class StudyProgress:
    """Shows how far a study is, read from its storage, whoever runs the trials.

    Args:
        study: The study.
        total: How many finished trials it shall have.
        console: Where to show it.
    """

    def __init__(self, study: Study, *, total: int, console: Console) -> None:
        self._study = study
        self._total = total
        self._console = console
        self._started = time.monotonic()
        self._next_line = self._started + _LINE_EVERY
        self._next_look = self._started
        trials = self._trials()
        self._known = {t.number for t in trials if t.state.is_finished()}
        self._before = {t.number for t in settled(trials)}
        self._new: list[FrozenTrial] = []
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            # Cut rather than wrapped in a narrow terminal: what matters least comes last.
            TextColumn(
                "{task.fields[status]}", table_column=Column(no_wrap=True, overflow="ellipsis")
            ),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            study.study_name, total=total, completed=self.n_before, status=""
        )

    def __enter__(self) -> StudyProgress:
        self._bar.start()
        self.update()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.update(last=True)
        self._bar.stop()

    def follow(self, study: Study) -> None:
        """Read the same study from another storage from now on."""
        self._study = study

    @property
    def n_before(self) -> int:
        """How many trials were settled at the start."""
        return len(self._before)

    @property
    def n_new(self) -> int:
        """How many trials were settled since the start."""
        return len(self._new)

    @property
    def n_done(self) -> int:
        """How many of the new ones came to their end."""
        return self.n_new - len(self.failures)

    @property
    def failures(self) -> list[FrozenTrial]:
        """Those of the new ones that failed."""
        return [trial for trial in self._new if trial.state == TrialState.FAIL]

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, *, last: bool = False, more: str = "") -> None:
        """Show what the storage says now, and ``more``; ``last`` of all the final line."""
        now = time.monotonic()
        if not last and now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        trials = self._trials()
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._known:
                self._known.add(trial.number)
                if trial.state == TrialState.FAIL:
                    self.say(f"trial {trial.number} failed: {failure_reason(trial)}")
        self._new = [trial for trial in settled(trials) if trial.number not in self._before]
        status = f"{self._status(trials)}  {more}".rstrip()
        self._bar.update(self._task, completed=self._n_settled, status=status)
        # The line of a complete study is left to the last look, or it would come twice.
        due = self._n_settled < self._total and now > self._next_line
        if not self._console.is_terminal and (last or due):
            self._next_line = now + _LINE_EVERY
            self.say(f"{self._n_settled}/{self._total} trials  {status}".rstrip())

    @property
    def _n_settled(self) -> int:
        return self.n_before + self.n_new

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _status(self, trials: list[FrozenTrial]) -> str:
        parts = [best_so_far(self._study, trials)]
        minutes = (time.monotonic() - self._started) / 60
        if self.n_new:
            parts.append(f"{self.n_new / minutes:.3g} trials/min")
            left = max(0, self._total - self._n_settled)
            parts.append(f"{_duration(60 * minutes / self.n_new * left)} left" if left else "done")
        counts = Counter(trial.state for trial in trials)
        parts.append(", ".join(f"{counts[s]} {s.name.lower()}" for s in _STATES if counts[s]))
        return "  ".join(part for part in parts if part)


def best_so_far(study: Study, trials: list[FrozenTrial]) -> str | None:
    """Return the best value in words, or ``None`` before the first one."""
    if len(study.directions) > 1:
        return None
    values = {t.number: t.value for t in trials if t.state == TrialState.COMPLETE}
    scored = {number: value for number, value in values.items() if value is not None}
    if not scored:
        return None
    choose = max if study.direction == StudyDirection.MAXIMIZE else min
    number = choose(scored, key=lambda n: scored[n])
    return f"best {scored[number]:.6g} (trial {number})"


def failure_reason(trial: FrozenTrial) -> str:
    """Return why a failed trial failed."""
    return str(trial.user_attrs.get("reason", "no reason given"))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
