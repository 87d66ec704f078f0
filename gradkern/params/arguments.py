"""What callers pass, converted as torch converts it, with errors that say what was wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern._util.warning import warn
from gradkern.kernels.dtensors import gathered


def as_list(
    operation: str, parameters: Tensor | Iterable[Tensor], what: str = "parameters"
) -> Sequence[Tensor]:
    """A list or tuple as it is, a single tensor in a list, any other iterable materialised once.

    Raises:
        TypeError: `parameters` is not iterable (a Module, say).

    Warns:
        GradkernWarning: an iterator yields nothing, most likely because it was used up before.
    """
    if isinstance(parameters, (list, tuple)):
        return parameters
    if isinstance(parameters, torch.Tensor):
        return [parameters]
    # A ParameterList is a Module and iterates over its parameters; torch takes it, so do we.
    listed: object = parameters
    if isinstance(listed, torch.nn.Module) and not isinstance(listed, torch.nn.ParameterList):
        raise TypeError(
            f"[{operation}] {what}: expected an iterable of Parameters, got the Module "
            f"{type(listed).__name__}; pass {what}=model.parameters()"
        )
    try:
        items = list(parameters)
    except TypeError as error:
        raise TypeError(
            f"[{operation}] {what}: expected a Tensor or an iterable of Tensors, got "
            f"{type(parameters).__name__}"
        ) from error
    if not items:
        warn_of_used_up(operation, what, parameters)
    return items


def warn_of_used_up(operation: str, what: str, empty: object) -> None:
    """Warn of an iterator (generator, ``filter``, ``map``, ``chain``, …) that yielded nothing."""
    if isinstance(empty, Iterator) and not torch.compiler.is_compiling():
        warn(
            f"[{operation}] {what}: this {type(empty).__name__} yields nothing, so nothing is done. An "
            f"iterator can be read only once: if an optimizer or an earlier call has read it, pass a list, "
            f"{what}=list(...), to both"
        )


def as_number(operation: str, name: str, value: Any) -> float:
    """`float(value)`, as torch does it; NaN is refused, except in compiled code.

    Raises:
        TypeError, ValueError, OverflowError: `value` cannot be converted, or is NaN.
    """
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
    # A traced number has no value yet.
    if not torch.compiler.is_compiling() and math.isnan(number):
        raise ValueError(f"[{operation}] {name}: expected a number, got NaN")
    return number


def as_positive(operation: str, name: str, value: Any) -> float:
    """`as_number` above zero and finite; in compiled code any number.

    Raises:
        TypeError, ValueError, OverflowError: `value` is not such a number.
    """
    number = as_number(operation, name, value)
    if not torch.compiler.is_compiling() and not 0 < number < math.inf:
        raise ValueError(f"[{operation}] {name}: expected a positive finite number, got {number!r}")
    return number


def as_limit(operation: str, name: str, value: Any) -> Any:
    """`as_number` that is not negative; but while a graph is traced a tensor stays one: its value is the
    graph's input.

    Raises:
        TypeError, ValueError, OverflowError: `value` cannot be converted, is NaN, or is negative (gradients
            would change their signs).
    """
    if torch.compiler.is_compiling() and isinstance(value, torch.Tensor):
        return value
    number = as_number(operation, name, value)
    if number < 0:
        raise ValueError(f"[{operation}] {name}: expected a number that is not negative, got {number!r}")
    return number


def as_norm(operation: str, total_norm: Any) -> Tensor:
    """A total norm as a tensor; NaN is one. Of a tensor on another device than the CPU the sign is not looked
    at, which would synchronise.

    Raises:
        TypeError, ValueError: it cannot be converted, is negative, or has no value.
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
    if type(norm) is Tensor and norm.is_cpu and norm.numel() == 1 and norm.item() < 0:
        raise ValueError(
            f"[{operation}] total_norm: expected a number that is not negative, got {norm.item()!r}"
        )
    return norm


#: Where wrappers keep the optimizer that steps: Accelerate and DeepSpeed, Opacus, fastai, torch's ZeRO, SAM.
_WITHIN = ("optimizer", "original_optimizer", "opt", "optim", "base_optimizer")


def innermost(optimizer: Any) -> Any:
    """The torch optimizer that takes hooks and steps; wrappers have theirs within, and some of them are
    optimizers by class. None where there is none."""
    found = optimizer
    while not (isinstance(found, torch.optim.Optimizer) and hasattr(found, "_optimizer_step_pre_hooks")):
        if not hasattr(found, "param_groups"):  # no optimizer: a scheduler has one as `.optimizer` too
            return None
        found = next((vars(found)[name] for name in _WITHIN if name in vars(found)), None)
    return found


def check_group(operation: str, name: str, group: Any) -> None:
    """That a process group is one that this rank is part of.

    Raises:
        TypeError, ValueError: `group` is not a process group, or one of other ranks.
    """
    if group is None:
        return
    import torch.distributed as dist

    if dist.is_available() and isinstance(group, dist.ProcessGroup):
        return
    if dist.is_available() and group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"[{operation}] {name}: expected a group that this rank is part of, got the one that new_group() "
            "returns to the others"
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
    """That what selects parameters by name can, and selects for a group.

    Raises:
        TypeError: it is not callable.
        ValueError: `in_process_group` without `process_group`.
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
            f"[{operation}] in_process_group: expected together with process_group, got process_group=None: "
            "every parameter would count as a replica"
        )
