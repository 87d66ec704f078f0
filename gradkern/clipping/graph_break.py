"""Calls that a compiled function makes in a graph break. Importing this imports the compiler (seconds)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradkern.params.arguments import as_limit, as_norm


@torch.compiler.disable(  # type: ignore[no-untyped-call]
    reason="gradkern: gradients that are DTensors, and named groups, are clipped outside the graph, by "
    "collectives; compile without fullgraph=True, or clip outside the compiled function"
)
def outside_the_graph(
    eager: Callable[..., Any],
    operation: str,
    tensors: Sequence[Any],
    arguments: tuple[Any, ...],
    foreach: bool | None,
    groups: Any,
) -> Any:
    if operation == "clip_grads_with_norm_":  # tensors have values here, so they can be checked
        max_norm, total_norm = arguments
        arguments = as_limit(operation, "max_norm", max_norm), as_norm(operation, total_norm)
    return eager(operation, tensors, arguments, foreach, groups)
