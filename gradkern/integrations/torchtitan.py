"""torchtitan: `clip_grad_norm_` with gradkern's kernels, and `monitored`, which records a Trainer."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradkern.integrations import bridge
from gradkern.integrations.ending import opened
from gradkern.monitor import GradMonitor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    pp_mesh: DeviceMesh | None = None,
    ep_enabled: bool = False,
) -> Tensor:
    """Clip the norm of all gradients over all shards and pipeline stages, in place.

    A replacement of ``torchtitan.distributed.utils.clip_grad_norm_``.

    Args:
        parameters, max_norm, norm_type, error_if_nonfinite, foreach: as in `gradkern.clip_grad_norm_`.
            Parameters may be on different meshes (FSDP2, TP, experts).
        pp_mesh: mesh of the pipeline stages. The norm is then that of all stages.
        ep_enabled: ignored. Experts are DTensors on their own mesh, which the gradients show.

    Returns:
        The total norm before clipping, 0-d float32, the same on every rank.

    Notes:
        One small all-reduce per mesh dimension, and one over the stages. Synchronises only where
        `gradkern.clip_grad_norm_` does.
    """
    total = bridge.clip_grad_norm_(
        parameters, max_norm, norm_type, error_if_nonfinite, foreach, pp_mesh, ep_enabled
    )
    return total.full_tensor() if hasattr(total, "full_tensor") else total


@contextlib.contextmanager
def monitored(
    trainer: Any, run_dir: str | os.PathLike[str] | None = None, **options: Any
) -> Iterator[GradMonitor]:
    """Record the gradients of a torchtitan Trainer in a with-block. Norms are those before clipping.

    Args:
        trainer: a `torchtitan.trainer.Trainer`. Enter the block on every rank.
        run_dir: folder of the run. Default: "gradkern" in the Trainer's `dump_folder`.
        options: further arguments of `GradMonitor`. With pipeline parallelism the default of `all_ranks` is
            True, because each stage has only its own parameters.

    Yields:
        The `GradMonitor`, which is closed at the end of the block.

    Examples:
        >>> trainer = config.build()
        >>> with monitored(trainer, "runs/first"):
        ...     trainer.train()

    Notes:
        One row is recorded per optimizer step, under the Trainer's `step`, also after a resume. The loss is
        the average over ranks that the Trainer logs, at the steps that it logs (``metrics.log_freq``). Inside
        the block torchtitan clips with gradkern.
    """
    from torchtitan.distributed import utils

    parts = trainer.model_parts
    whole = parts[0] if len(parts) == 1 else [pair for part in parts for pair in part.named_parameters()]
    options.setdefault("all_ranks", trainer.parallel_dims.pp_enabled)
    folder = Path(trainer.config.dump_folder) / "gradkern" if run_dir is None else run_dir
    with contextlib.ExitStack() as stack:
        monitor = stack.enter_context(opened(whole, list(trainer.optimizers), folder, options))
        bridge.attach(monitor)
        stack.callback(bridge.detach, monitor)

        @functools.wraps(clip_grad_norm_)
        def clip(*args: Any, **kwargs: Any) -> Tensor:
            total = clip_grad_norm_(*args, **kwargs)
            if monitor.has_pending:
                monitor.record(step=trainer.step)
            return total

        stack.enter_context(_replaced(utils, "clip_grad_norm_", clip))
        if not trainer.parallel_dims.pp_enabled or trainer.pp_has_last_stage:  # other stages have no loss
            _add_losses(stack, trainer.metrics_processor, monitor)
        yield monitor


def _add_losses(stack: contextlib.ExitStack, processor: Any, monitor: GradMonitor) -> None:
    log = processor.log

    @functools.wraps(log)
    def log_and_amend(step: int, global_avg_loss: float, *args: Any, **kwargs: Any) -> Any:
        monitor.amend(step, loss=global_avg_loss)
        return log(step, global_avg_loss, *args, **kwargs)

    stack.enter_context(_replaced(processor, "log", log_and_amend))


@contextlib.contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Replace an attribute inside a with-block."""
    own = vars(owner).get(name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
