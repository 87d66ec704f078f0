"""`monitored`: records the gradients of a training loop that uses Accelerate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gradkern.integrations.torch_utils import patched_torch
from gradkern.monitor import GradMonitor

if TYPE_CHECKING:
    import accelerate
    import torch


@contextlib.contextmanager
def monitored(
    accelerator: accelerate.Accelerator,
    model: torch.nn.Module,
    optimizer: Any,
    run_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Iterator[GradMonitor]:
    """Record what ``accelerator.clip_grad_norm_`` clips, from before clipping, while the block runs.

    Args:
        accelerator: an `accelerate.Accelerator`; the number of the last step becomes part of its checkpoints.
        model, optimizer: as `accelerator.prepare` returned them (or as they were).
        run_dir, options: those of `GradMonitor`.

    Example:
        >>> with monitored(accelerator, model, optimizer, "runs/first") as monitor:
        ...     for batch in loader:
        ...         with accelerator.accumulate(model):
        ...             loss = compute_loss(model, batch)
        ...             accelerator.backward(loss)
        ...             if accelerator.sync_gradients:
        ...                 accelerator.clip_grad_norm_(model.parameters(), 1.0)
        ...                 monitor.record(loss=loss)  # optional: adds the loss
        ...             optimizer.step()
        ...             optimizer.zero_grad()

    Raises:
        ValueError: the accelerator trains with DeepSpeed, which clips by itself.

    Notes:
        One row an optimizer step: clips of gradients that are still accumulated are not recorded.
    """
    if accelerator.distributed_type == "DEEPSPEED":
        raise ValueError(
            "[monitored] accelerator: expected one that clips with torch, but DeepSpeed clips by "
            "itself; use gradkern.integrations.deepspeed.monitored(accelerator.deepspeed_engine_wrapped.engine, run_dir), "
            "which records the losses too"
        )
    monitor = GradMonitor(accelerator.unwrap_model(model), optimizer, run_dir, **options)
    accelerator.register_for_checkpointing(monitor)
    try:
        with patched_torch(monitor, when=lambda: bool(accelerator.sync_gradients)):
            yield monitor
    finally:
        monitor.close()
