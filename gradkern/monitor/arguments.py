"""Numbers that callers pass to a monitor, checked: counts, losses, extra values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradkern._util import moved
from gradkern._util.names import as_index
from gradkern.history.named import LOSS, loss_of

#: Elements of a tensor among the extra values; each becomes a curve of its own.
MOST_ELEMENTS = 64


def as_count(key: str, value: Any, least: int, operation: str = "GradMonitor") -> int:
    """An integer of any type.

    Raises:
        ValueError: `value` is not an integer, or less than `least`.
    """
    number = as_index(value)
    if number < least or number >= 2**62:
        raise ValueError(f"[{operation}] {key}: expected an integer of at least {least}, got {value!r}")
    return number


def as_step(step: Any, operation: str = "GradMonitor") -> int:
    """The number of a step.

    Raises:
        ValueError: `step` is not an integer of at least 0.
    """
    return as_count("step", step, 0, operation)


def as_loss(loss: Any, operation: str = "GradMonitor.record") -> float | Tensor | None:
    """A loss as a float where that needs no synchronisation, else as a tensor of one element on its device.

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
        return _of_tensor(loss, operation)
    if isinstance(loss, (str, bytes, bytearray)) or getattr(loss, "size", 1) != 1:
        raise _no_number(loss, operation)
    try:  # NumPy's numbers and arrays of one element have `item`
        return float(loss.item() if hasattr(loss, "item") else loss)
    except OverflowError as error:
        raise ValueError(
            f"[{operation}] loss: expected a number that a float can hold, got one that is too large"
        ) from error
    except (TypeError, ValueError) as error:
        raise _no_number(loss, operation) from error


def _of_tensor(loss: Tensor, operation: str) -> float | Tensor:
    if loss.numel() != 1:
        raise ValueError(
            f"[{operation}] loss: expected one number, got a tensor of shape {tuple(loss.shape)}"
        )
    if loss.is_complex():
        raise _no_number(loss, operation)
    return float(loss.item()) if loss.is_cpu else loss.detach()


def _no_number(loss: Any, operation: str) -> TypeError:
    what = f"{loss!r:.80}" if not isinstance(loss, Tensor) else f"a tensor of {loss.dtype}"
    return TypeError(f"[{operation}] loss: expected one real number, got {what} ({type(loss).__name__})")


def as_extra(operation: str, extra: Any, parts: Sequence[str] = ()) -> dict[str, float | Tensor]:
    """The caller's own numbers by name: floats, or detached real tensors on their devices.

    Raises:
        TypeError: `extra` is not a mapping of names to numbers or dense tensors.
        ValueError: a tensor has more than 64 elements; or a name is that of the loss, or of the loss of one
            of `parts`.
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
            raise TypeError(f"[{operation}] extra: names must be non-empty strings, got {name!r}")
        if name == LOSS:
            raise ValueError(f"[{operation}] extra: give the loss of the step as loss=, not in extra")
        part = next((part for part in parts if name == loss_of(part)), None)
        if part is not None:
            raise ValueError(
                f"[{operation}] extra: give the loss of a part as part={part!r}, loss=…, not as {name!r} in "
                "extra"
            )
        found[name] = _as_extra(operation, name, value)
    return found


def _as_extra(operation: str, name: str, value: Any) -> float | Tensor:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise TypeError(
                f"[{operation}] extra[{name!r}]: expected a dense tensor, got one of {value.layout}; call "
                ".to_dense() on it"
            )
        if value.numel() > MOST_ELEMENTS or value.numel() == 0 or value.is_complex():
            raise ValueError(
                f"[{operation}] extra[{name!r}]: expected a real tensor of 1 to {MOST_ELEMENTS} elements, "
                f"got shape {tuple(value.shape)} of {value.dtype}; reduce it first, by .mean() or .amax()"
            )
        # A copy: the caller may change the tensor in place before it is read.
        return value.item() if value.is_cpu and value.numel() == 1 else value.detach().clone()
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"[{operation}] extra[{name!r}]: expected a number or a tensor, got {value!r:.80} "
            f"({type(value).__name__})"
        ) from error


def unknown_argument(name: str, *_: str) -> TypeError:
    """The error for an argument that `record` does not have."""
    return TypeError(
        f"[GradMonitor.record] {name}: there is no such argument; your own numbers go into "
        f"extra={{{name!r}: …}}"
    )


if not TYPE_CHECKING:
    __getattr__ = moved.forward(__name__)  # names of 0.1
