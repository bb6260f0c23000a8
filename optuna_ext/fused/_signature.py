from __future__ import annotations

from collections.abc import Hashable

from optuna_ext.fused._member import Member


def signature(member: Member) -> Hashable:
    """Say which members can be trained by one program: those of equal signatures."""
    raise NotImplementedError
