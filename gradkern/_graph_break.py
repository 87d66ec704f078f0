"""What a compiled function leaves its graph for. Imports the compiler, which takes seconds."""

from __future__ import annotations

from typing import Any

import torch

from gradkern import functional


@torch.compiler.disable(  # type: ignore[no-untyped-call]
    reason="gradkern: gradients that are DTensors, and named groups, are clipped outside the graph, by "
    "collectives; compile without fullgraph=True, or clip outside the compiled function"
)
def outside_the_graph(name: str, *arguments: Any, **groups: Any) -> Any:
    """Call a function of gradkern.functional."""
    return getattr(functional, name)(*arguments, **groups)
