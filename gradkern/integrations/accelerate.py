"""`monitored`: record the gradients of a training loop that uses Accelerate."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from gradkern._util.warning import warn
from gradkern.integrations.ending import opened
from gradkern.integrations.torch_utils import patched_torch

if TYPE_CHECKING:
    import accelerate
    import torch

    from gradkern.monitor import GradMonitor

#: The files that open blocks have in the checkpoints of an accelerator: one each.
_files: WeakKeyDictionary[accelerate.Accelerator, set[str]] = WeakKeyDictionary()


@contextlib.contextmanager
def monitored(
    accelerator: accelerate.Accelerator,
    model: torch.nn.Module | Mapping[str, torch.nn.Module],
    optimizer: Any,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    resumed_from: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Iterator[GradMonitor]:
    """Record the gradients that ``accelerator.clip_grad_norm_`` clips, in a with-block.

    Norms are those before clipping.

    Args:
        accelerator: an `accelerate.Accelerator`. `save_state` and `load_state` inside the block save and load
            the number of the last step too, in a small file of its own in the checkpoint's folder.
        model, optimizer: the model and optimizer, before or after `accelerator.prepare`; several by name, as
            in `GradMonitor`.
        run_dir, options: arguments of `GradMonitor`.
        resumed_from: the checkpoint's folder, if `load_state` was called before the block.

    Yields:
        The `GradMonitor`, which is closed at the end of the block.

    Examples:
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
        ValueError: the accelerator trains with DeepSpeed, which clips by itself; or the file with the step
            number of a checkpoint is damaged.
        FileNotFoundError: there is no folder `resumed_from`.

    Warns:
        GradkernWarning: a checkpoint has no step number, because it was saved without gradkern. Steps then
            continue after the last one of the run, from 1 in a new run.

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
    if resumed_from is not None and not os.path.isdir(os.path.expanduser(resumed_from)):
        raise FileNotFoundError(
            f"[monitored] resumed_from: there is no folder {os.fspath(resumed_from)!r}. Give the one that "
            "load_state has loaded"
        )
    models = (
        {name: accelerator.unwrap_model(one) for name, one in model.items()}
        if isinstance(model, Mapping)
        else accelerator.unwrap_model(model)
    )
    with (
        opened(models, optimizer, run_dir, options) as monitor,
        _in_checkpoints(accelerator, monitor, resumed_from),
        patched_torch(monitor, when=lambda: bool(accelerator.sync_gradients)),
    ):
        yield monitor


@contextlib.contextmanager
def _in_checkpoints(
    accelerator: accelerate.Accelerator,
    monitor: GradMonitor,
    resumed_from: str | os.PathLike[str] | None,
) -> Iterator[None]:
    """Save and load the step number of a monitor in the accelerator's checkpoints, for a with-block.

    Not with `Accelerator.register_for_checkpointing`: what is registered there has to be in every checkpoint
    that is loaded, and cannot be removed.
    """
    files = _files.setdefault(accelerator, set())
    file = next(name for i in count() if (name := f"gradkern_{i}.json") not in files)

    def save(_models: object, _weights: object, folder: str) -> None:
        each_node = accelerator.project_configuration.save_on_each_node
        if accelerator.is_local_main_process if each_node else accelerator.is_main_process:
            Path(folder, file).write_text(json.dumps(monitor.state_dict()), encoding="utf-8")

    def load(_models: object, folder: str | os.PathLike[str]) -> None:
        _load(monitor, Path(folder, file), accelerator.is_main_process)

    if resumed_from is not None:
        load(None, os.path.expanduser(resumed_from))
    files.add(file)
    hooks = accelerator.register_save_state_pre_hook(save), accelerator.register_load_state_pre_hook(load)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        files.discard(file)


def _load(monitor: GradMonitor, path: Path, warns: bool) -> None:
    """Continue from the step number in a file; after the run's last step if there is no file."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        monitor.load_state_dict(monitor.state_dict())
        if warns:
            warn(
                f"[monitored] checkpoint {str(path.parent)!r}: it was saved without gradkern, so that the "
                f"number of its step is not known. The next step is recorded as step {monitor.step + 1}. If "
                'you know the number, call monitor.load_state_dict({"step": number}) after load_state'
            )
        return
    except ValueError as error:
        raise ValueError(
            f"[monitored] checkpoint {str(path)!r}: the file is damaged. Delete it to continue after the "
            "last step of the run"
        ) from error
    monitor.load_state_dict(state)
