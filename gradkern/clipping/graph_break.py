"""What a compiled function leaves its graph for. Imports the compiler, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(  # type: ignore[no-untyped-call]
    reason="gradkern: gradients that are DTensors, and named groups, are clipped outside the graph, by "
    "collectives; compile without fullgraph=True, or clip outside the compiled function"
)
def outside_the_graph(function: Callable[..., Any], *arguments: Any, **groups: Any) -> Any:
    return function(*arguments, **groups)
