"""What callers pass to a monitor: checked, with errors that say what was wrong."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradkern._util.names import as_index
from gradkern.history.format import making
from gradkern.history.named import LOSS
from gradkern.monitor.ranks import made_by_rank_0
from gradkern.params.arguments import as_positive, innermost
from gradkern.params.stats import GradStats

#: What norms are of that do not come from a clip, by `record`'s argument `after_clip`.
PHASE_SAID = {None: "measured", False: "before_clip", True: "after_clip"}


def run_folder(run_dir: str | os.PathLike[str] | None, all_ranks: bool) -> tuple[Path, int, bool]:
    """The folder, this process's rank, and whether it records.

    Without `run_dir` it is a new one; with `all_ranks` the ranks then agree on it (a collective).

    Raises:
        HistoryError: a new folder cannot be made.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else 0
    if run_dir is not None:
        folder = Path(run_dir)
    else:
        folder = Path("gradkern-runs") / time.strftime("%Y%m%d-%H%M%S")
        if distributed and all_ranks:
            folder = made_by_rank_0(lambda: new_folder(folder))
        elif rank == 0:
            folder = new_folder(folder)
    return (folder / f"rank{rank}" if all_ranks else folder), rank, all_ranks or rank == 0


def new_folder(wanted: Path) -> Path:
    """A folder made now, by this process: another name where there is one."""
    with making(wanted):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                break
        return folder


def as_count(key: str, value: Any, least: int) -> int:
    """A whole number of any integer type.

    Raises:
        ValueError: `value` is not an integer, or less than `least`.
    """
    number = as_index(value)
    if number < least or number >= 2**62:
        raise ValueError(f"[GradMonitor] {key}: expected an integer of at least {least}, got {value!r}")
    return number


def as_step(step: Any) -> int:
    """The number of a step.

    Raises:
        ValueError: it is no integer of at least 0.
    """
    return as_count("step", step, 0)


def as_loss(loss: Any) -> float | Tensor | None:
    """The number, where reading it waits for nothing; else a tensor of one element on its device.

    Raises:
        TypeError, ValueError: it is not one real number.
    """
    if loss is None or type(loss) is float:
        return loss
    if isinstance(loss, Tensor):
        if loss.is_cpu and loss.dim() == 0:
            number = loss.item()
            if type(number) is float:
                return number
        return _of_tensor(loss)
    if isinstance(loss, (str, bytes, bytearray)) or getattr(loss, "size", 1) != 1:
        raise _no_number(loss)
    try:  # an array of one element has `item`, as NumPy's numbers have
        return float(loss.item() if hasattr(loss, "item") else loss)
    except OverflowError as error:
        raise ValueError(
            "[GradMonitor.record] loss: expected a number that a float can hold, got one that is too large"
        ) from error
    except (TypeError, ValueError) as error:
        raise _no_number(loss) from error


def _of_tensor(loss: Tensor) -> float | Tensor:
    if loss.numel() != 1:
        raise ValueError(
            f"[GradMonitor.record] loss: expected one number, got a tensor of shape {tuple(loss.shape)}"
        )
    if loss.is_complex():
        raise _no_number(loss)
    return float(loss.item()) if loss.is_cpu else loss.detach()


def _no_number(loss: Any) -> TypeError:
    what = f"{loss!r:.80}" if not isinstance(loss, Tensor) else f"a tensor of {loss.dtype}"
    return TypeError(
        f"[GradMonitor.record] loss: expected one real number, got {what} ({type(loss).__name__})"
    )


#: A tensor among the extra values may have so many elements, each a curve of its own.
MOST_ELEMENTS = 64


def as_extra(operation: str, extra: Any) -> dict[str, float | Tensor]:
    """The caller's own numbers by name: floats, or detached real tensors on their devices.

    Raises:
        TypeError: `extra` is no mapping of names to numbers or tensors.
        ValueError: a tensor of more than 64 elements; the name "loss".
    """
    if extra is None:
        return {}
    if not isinstance(extra, Mapping):
        raise TypeError(
            f"[{operation}] extra: expected a dict of numbers by name, got {type(extra).__name__}"
        )
    found: dict[str, float | Tensor] = {}
    for name, value in extra.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"[{operation}] extra: expected names that are text, got {name!r}")
        if name == LOSS:
            raise ValueError(f"[{operation}] extra: the loss of the step is given as loss=, not in extra")
        found[name] = _as_extra(operation, name, value)
    return found


def _as_extra(operation: str, name: str, value: Any) -> float | Tensor:
    if isinstance(value, Tensor):
        if value.numel() > MOST_ELEMENTS or value.numel() == 0 or value.is_complex():
            raise ValueError(
                f"[{operation}] extra[{name!r}]: expected a real tensor of 1 to {MOST_ELEMENTS} elements, "
                f"got shape {tuple(value.shape)} of {value.dtype}; reduce it first, by .mean() or .amax()"
            )
        # A copy: what is in place changed later would be read late.
        return value.item() if value.is_cpu and value.numel() == 1 else value.detach().clone()
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"[{operation}] extra[{name!r}]: expected a number or a tensor, got {value!r:.80} "
            f"({type(value).__name__})"
        ) from error


def as_rates(optimizers: Sequence[torch.optim.Optimizer]) -> list[Any]:
    """The learning rate of each group of each optimizer as it is now: a float, or a tensor on a device."""
    rates = [group.get("lr") for optimizer in optimizers for group in optimizer.param_groups]
    for rate in rates:
        if type(rate) is not float:
            return [_as_rate(r) for r in rates]
    return rates


def _as_rate(rate: Any) -> float | Tensor:
    """Those of capturable optimizers are tensors, and changed in place. NaN for what is no number."""
    if isinstance(rate, Tensor):
        return rate if not rate.is_cpu else float(rate) if rate.numel() == 1 else float("nan")
    try:
        return float(rate)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def check_said(stats: Any, inv_scale: Any, after_clip: Any) -> float | None:
    """`inv_scale` as a number, once `record`'s arguments are what they should be.

    Raises:
        TypeError, ValueError: they are not, or contradict the statistics.
    """
    if not (stats is None or isinstance(stats, GradStats)):
        raise TypeError(f"[GradMonitor.record] stats: expected GradStats, got {type(stats).__name__}")
    if not (after_clip is None or isinstance(after_clip, (bool, np.bool_))):
        raise TypeError(f"[GradMonitor.record] after_clip: expected True, False or None, got {after_clip!r}")
    if inv_scale is not None:
        inv_scale = as_positive("GradMonitor.record", "inv_scale", inv_scale)
    if stats is not None:
        _check_contradictions(stats, inv_scale, after_clip)
    return inv_scale


def as_parts(parts: Any) -> list[GradStats]:
    """The statistics of the parts of one step, no parameter in two of them.

    Raises:
        TypeError: a part is no GradStats.
        ValueError: none, different orders, or a parameter that is in two.
    """
    if not isinstance(parts, (list, tuple)):
        raise TypeError(f"[GradMonitor.record] stats: expected GradStats, got {type(parts).__name__}")
    for index, part in enumerate(parts):
        if type(part) is not GradStats:
            raise TypeError(
                f"[GradMonitor.record] stats[{index}]: expected GradStats, got {type(part).__name__}"
            )
    if not parts or len({part.norm_type for part in parts}) > 1:
        raise ValueError("[GradMonitor.record] stats: expected parts of one norm_type, and at least one")
    seen: dict[int, str] = {}
    for part in parts:
        for identity, name in zip(part._identities, part.names):
            if identity in seen:
                raise ValueError(f"[GradMonitor.record] stats: {name!r} is in two parts of the step")
        seen.update(zip(part._identities, part.names))
    return list(parts)


def _check_contradictions(stats: GradStats, inv_scale: float | None, after_clip: Any) -> None:
    if after_clip and stats.clip_coef is not None:
        raise ValueError(
            "[GradMonitor.record] after_clip: expected False for statistics that come from clip_(), "
            "which are from before clipping; got True"
        )
    if inv_scale is None:
        return
    if isinstance(stats.inv_scale, Tensor):
        raise ValueError(
            "[GradMonitor.record] inv_scale: expected None with statistics that know the scaler's, got "
            f"{inv_scale!r}"
        )
    if inv_scale != stats.inv_scale:
        raise ValueError(
            f"[GradMonitor.record] inv_scale: expected that of the statistics, {stats.inv_scale!r}, got "
            f"{inv_scale!r}; give it to measure()"
        )


def as_optimizer(optimizer: Any) -> torch.optim.Optimizer | None:
    """The optimizer that takes hooks (see `innermost`); where there is none, the object that has the learning
    rates in its `param_groups` (fastai's own optimizers).

    Raises:
        TypeError: no optimizer (a scheduler, a list, a folder in its place).
    """
    if optimizer is None:
        return None
    found: torch.optim.Optimizer | None = innermost(optimizer)
    if found is None:
        found = optimizer
    if not hasattr(found, "param_groups"):
        raise TypeError(
            f"[GradMonitor] optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}; a "
            "run's folder is run_dir="
        )
    return found


def as_optimizers(optimizer: Any) -> dict[str, torch.optim.Optimizer]:
    """One optimizer, or several in a list or by name, as a dict; "" is the name of the only one.

    Raises:
        TypeError: an entry is no optimizer.
    """
    if isinstance(optimizer, Mapping):
        given = {str(name): one for name, one in optimizer.items()}
    elif isinstance(optimizer, (list, tuple)):
        given = {str(index): one for index, one in enumerate(optimizer)}
    else:
        given = {"": optimizer}
    found = {name: as_optimizer(one) for name, one in given.items()}
    return {name: one for name, one in found.items() if one is not None}
