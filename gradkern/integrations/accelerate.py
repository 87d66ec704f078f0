"""`monitored`: record the gradients of a training loop that uses Accelerate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gradkern.integrations.ending import opened
from gradkern.integrations.torch_utils import patched_torch

if TYPE_CHECKING:
    import accelerate
    import torch

    from gradkern.monitor import GradMonitor


@contextlib.contextmanager
def monitored(
    accelerator: accelerate.Accelerator,
    model: torch.nn.Module,
    optimizer: Any,
    run_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Iterator[GradMonitor]:
    """Record the gradients that ``accelerator.clip_grad_norm_`` clips, in a with-block.

    Norms are those before clipping.

    Args:
        accelerator: an `accelerate.Accelerator`. The number of the last step is saved in its checkpoints.
        model, optimizer: the model and optimizer, before or after `accelerator.prepare`.
        run_dir, options: arguments of `GradMonitor`.

    Yields:
        The `GradMonitor`, which is closed at the end of the block.

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
        One row is recorded per optimizer step. Clips of gradients that are still being accumulated are not
        recorded.
    """
    if accelerator.distributed_type == "DEEPSPEED":
        raise ValueError(
            "[monitored] accelerator: not recorded here, because DeepSpeed clips by itself. "
            "Record its engine, accelerator.deepspeed_engine_wrapped.engine, with `monitored` of "
            "gradkern.integrations.deepspeed"
        )
    with opened(accelerator.unwrap_model(model), optimizer, run_dir, options) as monitor:
        accelerator.register_for_checkpointing(monitor)
        with patched_torch(monitor, when=lambda: bool(accelerator.sync_gradients)):
            yield monitor
