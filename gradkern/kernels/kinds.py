"""Errors that name the gradient which torch's own operations do not support."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

#: The dtypes that torch's operations support on every device.
_USUAL = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
_BUILTIN = (NotImplementedError, RuntimeError, TypeError, ValueError)


def place(operation: str, what: str, index: int, names: Sequence[str] | None = None) -> str:
    """``[measure] params[3] ('layers.2.weight')``."""
    return f"[{operation}] {what}[{index}]" + ("" if names is None else f" ('{names[index]}')")


def check_readable(where: str, grad: Tensor) -> None:
    """Check that a gradient has data and a dtype with a norm.

    Raises:
        TypeError: the gradient is a meta tensor, or neither floating-point nor complex.
    """
    if type(grad) is Tensor and grad.is_meta:
        raise TypeError(f"{where}: expected a gradient with data, got a meta tensor")
    if not (grad.dtype.is_floating_point or grad.dtype.is_complex):
        raise TypeError(f"{where}: expected a floating-point or complex gradient, got {grad.dtype}")


def check_writable(operation: str, grads: Sequence[Tensor | None], write: Callable[[Tensor], object]) -> None:
    """Try an in-place operation on copies of the unusual gradients, before any gradient is changed.

    Raises:
        TypeError, RuntimeError: torch does not support the operation for one of them, or it is expanded.
    """
    for index, grad in enumerate(grads):
        if grad is None:
            continue
        if grad.layout is torch.strided and any(n > 1 and s == 0 for n, s in zip(grad.shape, grad.stride())):
            raise RuntimeError(
                f"{place(operation, 'parameters', index)}: torch's operations do not write to an expanded "
                "gradient, whose elements share memory; call .contiguous() on it"
            )
        if _is_unusual(grad):
            with naming(place(operation, "parameters", index), grad):
                write(grad.detach().clone())


@contextlib.contextmanager
def naming(where: str, grad: Tensor) -> Iterator[None]:
    """Name the gradient in errors that torch raises about it."""
    try:
        yield
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        if str(error).startswith("["):
            raise
        kind = next(k for k in _BUILTIN if isinstance(error, k))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise kind(
            f"{where}: torch's operations do not support this gradient ({type(grad).__name__}, {grad.dtype}, "
            f"{grad.layout}): {reason}. Convert it to a dense floating-point tensor, or leave it out"
        ) from error


@contextlib.contextmanager
def naming_one_of(
    operation: str, what: str, grads: Sequence[Tensor | None], read: Callable[[Tensor], object]
) -> Iterator[None]:
    """Name the gradient in errors that torch raises about a list: the first for which `read` fails."""
    try:
        yield
    except (RuntimeError, TypeError):
        for index, grad in enumerate(grads):
            if grad is not None and _is_unusual(grad):
                with naming(place(operation, what, index), grad):
                    read(grad)
                if grad.is_meta:  # in a list with tensors that have data
                    check_readable(place(operation, what, index), grad)
        raise


def _is_unusual(grad: Tensor) -> bool:
    plain = type(grad) in (Tensor, torch.nn.Parameter) and grad.layout is torch.strided
    return not plain or grad.is_nested or grad.is_meta or grad.dtype not in _USUAL
