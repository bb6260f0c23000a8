"""How the files of a study are called."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
import uuid


if TYPE_CHECKING:
    from optuna.study import Study

_NAMESPACE = "checkpoints"  # user attribute of the study
_OURS = re.compile(r"[0-9a-f]{64}\.pt(\.[0-9a-f]{32}\.tmp)?")


def start_of(study: Study | None) -> str:
    """Return how the names of a study's files begin: nobody else's begin so.

    Names of studies repeat in other storages, and a seed makes identical files there. Workers who
    choose it at the same moment may use several: then only the last one's files are collected.

    Args:
        study:
            The study; None for a trial outside of studies, which is given another one each time.
    """
    if study is None:
        return f"trial-{uuid.uuid4().hex[:8]}"
    chosen = study.user_attrs.get(_NAMESPACE)
    if not isinstance(chosen, str):
        readable = re.sub(r"[^A-Za-z0-9_.]+", "-", study.study_name).strip("-.")[:40]
        study.set_user_attr(_NAMESPACE, f"{readable}-{uuid.uuid4().hex[:8]}".lstrip("-"))
        chosen = study.user_attrs[_NAMESPACE]
    return str(chosen)


def name_of(start: str, sha256: str) -> str:
    """Return the name of a file."""
    return f"{start}-{sha256}.pt"


def is_ours(name: str, start: str) -> bool:
    """Return whether a file that was found is one, or was to become one."""
    return name.startswith(f"{start}-") and bool(_OURS.fullmatch(name[len(start) + 1 :]))
