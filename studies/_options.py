"""The flags that all studies share."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import fields
import inspect
from pathlib import Path
from typing import Annotated
from typing import get_type_hints

import typer


_MOST_SEED = 2**32 - 1  # NumPy's limit, on which Optuna's samplers stand


def _option(
    text: str, *names: str, panel: str, least: int | None = None, most: int | None = None
) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        *names, help=text, rich_help_panel=panel, min=least, max=most, show_default=True
    )
    return option


Arg = Annotated[
    list[str] | None, typer.Option("--arg", help="name=value for the objective; repeatable.")
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user can say to every study; ``None`` leaves the choice to the study."""

    sampler: Annotated[
        str,
        _option("Short name (sobol, tpe, ...) or module:Class.", panel="Search"),
    ] = "sobol"
    sampler_arg: Annotated[
        list[str] | None,
        _option("key=value for the sampler; repeatable.", "--sampler-arg", panel="Search"),
    ] = None
    pruner: Annotated[
        str,
        _option("Short name (median, hyperband, ...) or module:Class.", panel="Search"),
    ] = "none"
    pruner_arg: Annotated[
        list[str] | None,
        _option("key=value for the pruner; repeatable.", "--pruner-arg", panel="Search"),
    ] = None
    param: Annotated[
        list[str] | None,
        _option("name=value of a point to try first; repeatable.", "--param", panel="Search"),
    ] = None
    defaults: Annotated[
        bool,
        _option("Try the objective's default point first.", "--defaults", panel="Search"),
    ] = False
    seed: Annotated[
        int | None,
        _option(
            "Seed of the sampler and of every training.", panel="Search", least=0, most=_MOST_SEED
        ),
    ] = None

    trials: Annotated[
        int,
        _option("Trials in the study in total, earlier ones included.", panel="Run", least=1),
    ] = 32
    timeout: Annotated[
        float | None,
        _option("Start no trial after this many seconds.", panel="Run", least=0),
    ] = None
    workers: Annotated[
        int | None,
        _option("Processes. (default: one per device)", panel="Run", least=1),
    ] = None
    device: Annotated[
        str | None,
        _option(
            "cpu, cuda, cuda:1, mps or auto; several, with commas, are used in turn.",
            "--device",
            "--devices",
            panel="Run",
        ),
    ] = None
    ray: Annotated[
        str | None,
        _option(
            "Run the workers on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT.", panel="Run"
        ),
    ] = None
    gpus: Annotated[
        float | None,
        _option(
            "GPUs of each worker on Ray, such as 0.5. (default: 1 with --device cuda, else 0)",
            panel="Run",
            least=0,
        ),
    ] = None
    retries: Annotated[
        int | None,
        _option(
            "Times that a trial is repeated which was killed or interrupted and got no further. "
            "(default: 3 with checkpoints, else 0)",
            panel="Run",
            least=0,
        ),
    ] = None
    storage: Annotated[
        str | None,
        _option("File or URL. (default: runs/NAME.db)", panel="Run"),
    ] = None
    study: Annotated[
        str | None,
        _option("Name of the study. (default: the objective's)", panel="Run"),
    ] = None

    epochs: Annotated[
        int | None,
        _option("Epochs per trial. (default: the objective's)", panel="Training", least=1),
    ] = None
    checkpoints: Annotated[
        str | None,
        _option("Directory or s3:// URL where trials keep how far they are.", panel="Training"),
    ] = None
    data_dir: Annotated[
        Path | None,
        _option("Where the data sets are. (default: $OPTUNA_EXT_DATA)", panel="Training"),
    ] = None
    amp: Annotated[bool, _option("Compute in bfloat16 where safe.", "--amp", panel="Training")] = (
        False
    )
    compile: Annotated[
        bool, _option("torch.compile every network.", "--compile", panel="Training")
    ] = False

    json: Annotated[
        bool, _option("Print the result as JSON, and nothing else.", "--json", panel="Result")
    ] = False
    figure: Annotated[
        Path | None,
        _option("HTML file. (default: beside the storage, named after the study)", panel="Result"),
    ] = None
    no_figure: Annotated[bool, _option("Save no figure.", "--no-figure", panel="Result")] = False


def option_parameters() -> list[inspect.Parameter]:
    """Return the fields of ``Options`` as the keyword parameters that typer reads."""
    hints = get_type_hints(Options, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(Options)
    ]
