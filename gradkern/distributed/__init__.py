"""Norms and clipping over sharded, replicated and partial gradients.

The functions of `gradkern` come here by themselves where a gradient or a parameter is a DTensor or a
process group is named; `explain_norm` and `StatsGatherer` are for callers. Nothing here is imported
before it is needed, and no process group is ever created.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradkern.distributed.audit import CountedParameter, NormAudit, explain_norm
    from gradkern.distributed.gather import StatsGatherer

__all__ = ["CountedParameter", "NormAudit", "StatsGatherer", "explain_norm"]

_HOMES = {
    "CountedParameter": "audit",
    "NormAudit": "audit",
    "StatsGatherer": "gather",
    "explain_norm": "audit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
