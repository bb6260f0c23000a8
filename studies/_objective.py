"""The objective of a study: found by name, with the arguments and parameters it accepts."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
import importlib
import inspect
from pathlib import Path
import sys
from types import ModuleType
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial
from optuna.trial import FixedTrial

from studies._errors import unknown
from studies._errors import UserError


# Arguments that say where and how fast a trial is computed, not what it measures.
_CIRCUMSTANCES = {"device", "data_dir", "compile", "checkpoints", "artifacts"}
# What the flags of every study give, or the study itself: `interval` is population-based
# training's.
_SHARED = _CIRCUMSTANCES - {"artifacts"} | {"epochs", "seed", "amp", "interval"}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A function to optimize and what its module publishes about it.

    Args:
        target: ``module:function`` or ``path/to/file.py:function``; finds it again elsewhere.
        function: Called with a trial and keyword arguments.
        space: The module's ``SPACE``, if any.
        directions: The module's ``DIRECTION``; ``"minimize"`` if it has none.
        defaults: The module's ``DEFAULTS``, if any.
    """

    target: str
    function: Callable[..., Any]
    space: Mapping[str, BaseDistribution] | None
    directions: Sequence[str]
    defaults: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """What studies of this objective are called."""
        place, _, function = self.target.rpartition(":")
        module = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
        return module if function == "objective" else f"{module}-{function}"

    @property
    def module(self) -> ModuleType:
        """Where the function is defined."""
        return sys.modules[self.function.__module__]

    def keywords(self) -> dict[str, inspect.Parameter]:
        """Return the parameters after the trial, by name."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return {p.name: p for p in parameters if p.kind in kinds}

    def own_keywords(self) -> dict[str, inspect.Parameter]:
        """Return the keywords that no shared flag gives, such as which of several networks."""
        return {name: p for name, p in self.keywords().items() if name not in _SHARED}

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments that the function does not take, and missing ones.

        Raises:
            UserError: If there is one.
        """
        keywords = self.keywords()
        for name in arguments:
            if name not in keywords:
                raise unknown("argument", name, keywords, where=f"of objective {self.name!r}")
        missing = [n for n, p in keywords.items() if p.default is p.empty and n not in arguments]
        if missing:
            raise UserError(f"objective {self.name!r} needs --arg {missing[0]}=...")

    def rehearse(self, arguments: Mapping[str, Any]) -> None:
        """Call the function up to its first parameter, so that it checks its own arguments.

        Whatever else goes wrong there is left to a real trial, which has a study, for example.

        Raises:
            UserError: If they are wrong.
        """
        try:
            self.function(_Rehearsal({}), **arguments)
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
        except Exception:  # noqa: BLE001 - see above; it may be the one of the rehearsal
            return

    def meaning(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that decide what a value means, defaults included.

        Trials that differ in one of them must not be in one study.
        """
        chosen = {name: arguments.get(name, p.default) for name, p in self.keywords().items()}
        simple = str | int | float | bool | None
        return {
            name: value
            for name, value in chosen.items()
            if name not in _CIRCUMSTANCES and isinstance(value, simple)
        }

    def check_params(self, params: Mapping[str, Any], *, what: str = "--param") -> None:
        """Refuse parameter values that the objective's space does not hold.

        Args:
            params: Values by name.
            what: Where they come from.

        Raises:
            UserError: If there is one.
        """
        if self.space is None:
            return
        for name, value in params.items():
            if name not in self.space:
                raise unknown(what, name, self.space)
            try:
                create_trial(
                    params={name: value}, distributions={name: self.space[name]}, value=0.0
                )
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{what} {name} must be {_range(self.space[name])}, not {value!r}"
                ) from error


class _ReachedError(Exception):
    """The function asks for a parameter."""


class _Rehearsal(FixedTrial):
    def suggest_float(self, name: str, *args: Any, **kwargs: Any) -> float:
        raise _ReachedError

    def suggest_int(self, name: str, *args: Any, **kwargs: Any) -> int:
        raise _ReachedError

    def suggest_categorical(self, name: str, *args: Any, **kwargs: Any) -> Any:
        raise _ReachedError


def find_objective(target: str) -> Objective:
    """Import an objective.

    Args:
        target: ``module:function``, importable from the current directory, or
            ``path/to/file.py:function``.

    Raises:
        UserError: If that is not possible.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UserError(
            f"the objective must be module:function or path/to/file.py:function, not {target!r}"
        )
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {place!r}") from error
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        raise UserError(f"cannot import {place!r}: {kind}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [n for n, f in vars(module).items() if inspect.isfunction(f)]
        raise unknown("function", name, functions, where=f"in {place!r}")
    if not _takes_a_trial(function):
        raise UserError(
            f"{target!r} must be a function whose first argument is the trial, and the only one "
            "without a name"
        )
    return Objective(
        target=target,
        function=function,
        space=getattr(module, "SPACE", None),
        directions=_directions(module, target),
        defaults=getattr(module, "DEFAULTS", None),
    )


def _takes_a_trial(function: Callable[..., Any]) -> bool:
    """Whether a trial alone, and keywords, can be given to a function that is ours to call."""
    if inspect.isclass(function) or inspect.isbuiltin(function):
        return False
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return False
    parameters = list(inspect.signature(function).parameters.values())
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    if not parameters or parameters[0].kind in by_keyword:
        return False
    return not any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters[1:])


def _directions(module: ModuleType, target: str) -> list[str]:
    published = getattr(module, "DIRECTION", "minimize")
    directions = list(published) if isinstance(published, list | tuple) else [published]
    if not directions or not set(directions) <= {"minimize", "maximize"}:
        raise UserError(
            f"DIRECTION of {target!r} must be 'minimize' or 'maximize', or one of them per "
            f"value, not {published!r}"
        )
    return directions


def _import_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError
    path = path.resolve()
    # By its name, so that what is pickled for data loaders is found by them, too.
    sys.path.insert(0, str(path.parent))
    module = importlib.import_module(path.stem)
    if Path(module.__file__ or "") != path:
        raise ImportError(f"a module named {path.stem!r} exists already: rename the file")
    return module


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return "one of " + ", ".join(str(choice) for choice in distribution.choices)
    low, high = getattr(distribution, "low", None), getattr(distribution, "high", None)
    step = getattr(distribution, "step", None)
    steps = f" in steps of {step}" if step not in (None, 1) else ""
    kind = "an integer" if isinstance(low, int) else "a number"
    return f"{kind} from {low} to {high}{steps}"
