"""Norms and clipping over sharded, replicated and partial gradients.

The functions of `gradkern` come here by themselves where a gradient or a parameter is a DTensor or a
process group is named; `explain_norm` and `StatsGatherer` are for callers. Nothing here is imported
before it is needed, and no process group is ever created.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradkern._util import lazy

if TYPE_CHECKING:
    from gradkern.distributed.audit import CountedParameter, NormAudit, explain_norm
    from gradkern.distributed.gather import StatsGatherer
else:
    _AUDIT = "gradkern.distributed.audit"
    __getattr__, __dir__ = lazy.attach(
        __name__,
        {
            "CountedParameter": _AUDIT,
            "NormAudit": _AUDIT,
            "StatsGatherer": "gradkern.distributed.gather",
            "explain_norm": _AUDIT,
        },
    )

__all__ = ["CountedParameter", "NormAudit", "StatsGatherer", "explain_norm"]
