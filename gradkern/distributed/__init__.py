"""Norms and clipping over sharded, replicated and partial gradients.

gradkern's functions use this package if a gradient or parameter is a DTensor or if a process group is passed.
`explain_norm` and `StatsGatherer` are public. Modules are imported on first use. No process group is created.
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
