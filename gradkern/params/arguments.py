"""Conversion and checks of arguments."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradkern._util.warning import warn
from gradkern.kernels.dtensors import gathered
from gradkern.kernels.torch_scale import known_bool


def as_list(
    operation: str, parameters: Tensor | Iterable[Tensor], what: str = "parameters"
) -> Sequence[Tensor]:
    """The parameters as a list or tuple: one that is given, a single tensor in a list, or the items of any
    other iterable.

    Raises:
        TypeError: `parameters` is not iterable, or is a Module.

    Warns:
        GradkernWarning: an iterator yields nothing.
    """
    if isinstance(parameters, (list, tuple)):
        return parameters
    if isinstance(parameters, torch.Tensor):
        return [parameters]
    # A ParameterList is a Module that iterates over its parameters, and torch accepts it.
    listed: object = parameters
    if isinstance(listed, torch.nn.Module) and not isinstance(listed, torch.nn.ParameterList):
        raise TypeError(
            f"[{operation}] {what}: expected an iterable of Parameters, got the Module "
            f"{type(listed).__name__}; pass {what}=model.parameters()"
        )
    fresh = is_fresh(parameters)
    try:
        items = list(parameters)
    except TypeError as error:
        raise TypeError(
            f"[{operation}] {what}: expected a Tensor or an iterable of Tensors, got "
            f"{type(parameters).__name__}"
        ) from error
    if not items:
        warn_of_nothing(operation, what, parameters, fresh)
    return items


def check_entries(operation: str, listed: Sequence[Any], what: str = "parameters") -> None:
    """Check that every entry can have a gradient. The extension does this for the lists that it takes.

    Raises:
        TypeError: one cannot. The message gives its position.
    """
    for i, entry in enumerate(listed):
        if not hasattr(entry, "grad"):
            raise TypeError(
                f"[{operation}] {what}[{i}]: expected a Tensor or Parameter, got {type(entry).__name__}"
            )


def is_fresh(items: object) -> bool:
    """Whether `items` is a generator that nothing has been read from. Of other iterators it is not known."""
    return inspect.isgenerator(items) and inspect.getgeneratorstate(items) == inspect.GEN_CREATED


def warn_of_nothing(operation: str, what: str, empty: object, fresh: bool) -> None:
    """Warn about an iterator (generator, ``filter``, ``map``, ``chain``, …) that yielded nothing.

    Args:
        fresh: whether nothing had been read from it before, see `is_fresh`.
    """
    if not isinstance(empty, Iterator) or torch.compiler.is_compiling():
        return
    start = f"[{operation}] {what}: this {type(empty).__name__} yields nothing, so nothing is done. "
    if fresh:
        warn(
            f"{start}Nothing has been read from it before: its source is empty, or its condition "
            "leaves out everything (``if p.grad is not None`` before backward(), or after zero_grad())"
        )
    else:
        warn(
            f"{start}An iterator can be read only once. If an optimizer or an earlier call has read it, pass "
            f"a list, {what}=list(...), to both"
        )


def as_order(operation: str, value: Any) -> float:
    """The order of a norm: a number, or text such as "inf", which torch accepts.

    Raises:
        TypeError, ValueError, OverflowError: as `as_number`.
    """
    if type(value) is float and value == value:
        return value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    return as_number(operation, "norm_type", value)


def _is_text(value: object) -> bool:
    """Whether `float` would parse `value`: text, bytes, and NumPy's arrays of them."""
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return True
    return isinstance(value, np.ndarray) and value.dtype.kind in "SU"


def as_number(operation: str, name: str, value: Any) -> float:
    """``float(value)``, which is what torch does, but not of text. NaN is an error, except while a graph is
    traced.

    Raises:
        TypeError, ValueError, OverflowError: `value` cannot be converted, is text, or is NaN.
    """
    if type(value) is not float and _is_text(value):
        raise TypeError(f"[{operation}] {name}: expected a number, got {value!r} ({type(value).__name__})")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(
            f"[{operation}] {name}: expected a number, got {value!r} ({type(value).__name__})"
        ) from error
    except RuntimeError as error:  # a tensor with several elements, or with none that has a value
        valueless = "a meta tensor, which has no value"
        got = valueless if value.is_meta else f"a tensor of shape {tuple(value.shape)}"
        raise ValueError(f"[{operation}] {name}: expected a number, got {got}") from error
    # While a graph is traced, a number may have no value yet.
    if not torch.compiler.is_compiling() and math.isnan(number):
        raise ValueError(f"[{operation}] {name}: expected a number, got NaN")
    return number


def as_positive(operation: str, name: str, value: Any) -> float:
    """A positive, finite number; while a graph is traced, any number.

    Raises:
        TypeError, ValueError, OverflowError: `value` is not such a number.
    """
    number = as_number(operation, name, value)
    if not torch.compiler.is_compiling() and not 0 < number < math.inf:
        raise ValueError(f"[{operation}] {name}: expected a positive finite number, got {number!r}")
    return number


def as_limit(operation: str, name: str, value: Any) -> Any:
    """A number that is not negative. While a graph is traced a tensor stays a tensor, an input of the graph.

    Raises:
        TypeError, ValueError, OverflowError: `value` cannot be converted, is NaN, or is negative, which would
            flip the signs of gradients.
    """
    # The usual case first: after a backward pass every line is a cache miss.
    if type(value) is float and value >= 0:
        return value + 0.0
    if torch.compiler.is_compiling() and isinstance(value, torch.Tensor):
        return value
    number = as_number(operation, name, value)
    if number < 0:
        raise ValueError(f"[{operation}] {name}: expected a number that is not negative, got {number!r}")
    return number + 0.0  # -0.0 becomes 0.0, which keeps signs


def as_norm(operation: str, total_norm: Any) -> Tensor:
    """A total norm as a tensor. NaN is allowed. The sign of a tensor that is not on the CPU is not checked,
    because that would synchronise.

    Raises:
        TypeError, ValueError: `total_norm` cannot be converted, is negative, or has no value.
    """
    if not isinstance(total_norm, Tensor):
        number = total_norm if total_norm != total_norm else as_limit(operation, "total_norm", total_norm)
        return torch.tensor(number, dtype=torch.float64, device="cpu")
    if torch.compiler.is_compiling():
        return total_norm
    if total_norm.device.type == "meta":
        raise ValueError(f"[{operation}] total_norm: expected a value, got a meta tensor, which has none")
    total_norm = gathered(total_norm)
    norm: Tensor = total_norm
    if norm.numel() != 1:
        raise ValueError(
            f"[{operation}] total_norm: expected one number, got a tensor of shape {tuple(norm.shape)}"
        )
    if norm.is_cpu and known_bool(norm.detach().reshape(()).double() < 0):
        raise ValueError(
            f"[{operation}] total_norm: expected a number that is not negative, got {norm.item()!r}"
        )
    return norm


#: Where wrappers keep the optimizer that steps: Accelerate and DeepSpeed, Opacus, fastai, torch's ZeRO, SAM.
_WITHIN = ("optimizer", "original_optimizer", "opt", "optim", "base_optimizer")


def unwrap_optimizer(optimizer: Any) -> Any:
    """The torch optimizer that steps and takes hooks, inside any wrappers (some of which are optimizers by
    class); None if there is none."""
    found = optimizer
    while not (isinstance(found, torch.optim.Optimizer) and hasattr(found, "_optimizer_step_pre_hooks")):
        if not hasattr(
            found, "param_groups"
        ):  # a learning rate scheduler, say, which has an `.optimizer` too
            return None
        found = next((vars(found)[name] for name in _WITHIN if name in vars(found)), None)
    return found


def check_group(operation: str, name: str, group: Any) -> None:
    """Check that this rank belongs to a process group.

    Raises:
        TypeError: `group` is not a process group.
        ValueError: this rank does not belong to it.
    """
    if group is None:
        return
    import torch.distributed as dist

    if dist.is_available() and isinstance(group, dist.ProcessGroup):
        return
    if dist.is_available() and group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"[{operation}] {name}: this rank is not in the group (new_group() returns a placeholder to "
            "ranks outside it); pass it only on the ranks of the group"
        )
    hint = "; pass mesh.get_group()" if type(group).__name__ == "DeviceMesh" else ""
    raise TypeError(
        f"[{operation}] {name}: expected a torch.distributed.ProcessGroup, got {type(group).__name__}{hint}"
    )


def check_selections(
    operation: str,
    process_group: Any,
    in_process_group: Callable[[str], bool] | None,
    counted_elsewhere: Callable[[str], bool] | None,
) -> None:
    """Check the functions that select parameters by name.

    Raises:
        TypeError: one is not callable.
        ValueError: `in_process_group` is given without `process_group`.
    """
    selections = {"in_process_group": in_process_group, "counted_elsewhere": counted_elsewhere}
    for name, selection in selections.items():
        if selection is not None and not callable(selection):
            raise TypeError(
                f"[{operation}] {name}: expected a function of a parameter's name, got "
                f"{type(selection).__name__}"
            )
    if in_process_group is not None and process_group is None:
        raise ValueError(
            f"[{operation}] in_process_group: has no effect without process_group, because every parameter "
            "is then counted as a replica; pass process_group too"
        )
