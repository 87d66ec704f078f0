"""Memory that tensors of different named groups share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradkern._util.warning import warn
from gradkern.clipping.route import written_shards
from gradkern.kernels.backend import C


def check_no_overlap(
    members: Mapping[str, Sequence[int]],
    grads: Sequence[Tensor | None],
    names: Sequence[str],
    rows: Sequence[Tensor] | None = None,
    operation: str = "GradClipper.clip_",
) -> None:
    """Check that gradients of different groups share no memory, which both groups would scale.

    Args:
        members: the rows of each group.
        grads: what is written to for each row: the gradient, or this rank's shard of it.
        rows: `members` as int64 tensors on the CPU, if they exist already.

    Raises:
        ValueError: two gradients do. The message names them.
    """
    shared = _shared(members, grads, rows)
    if shared is not None:
        raise_shared(operation, shared, members, names)


def raise_shared(
    operation: str, shared: tuple[int, int], members: Mapping[str, Sequence[int]], names: Sequence[str]
) -> NoReturn:
    """Raise the error for two rows of different groups whose gradients share memory."""
    raise ValueError(
        f"[{operation}] groups: the gradients of {_pair(shared, members, names)} share memory, which both "
        "groups would scale; put them into one group"
    )


def check_at_first(
    members: Mapping[str, Sequence[int]],
    params: Sequence[Tensor],
    names: Sequence[str],
    rows: Sequence[Tensor],
) -> None:
    """Check what is known of shared memory when the clipper is built.

    Raises:
        ValueError: gradients of different groups exist already and share memory.

    Warns:
        GradkernWarning: parameters of different groups do.
    """
    grads = written_shards([param.grad for param in params])
    check_no_overlap(members, _plain(grads), names, rows, "GradClipper")
    held = written_shards([None if is_lazy(param) else param.detach() for param in params])
    shared = _shared(members, _plain(held), rows)
    if shared is not None:
        warn(
            "[GradClipper] groups: parameters of different groups share memory: "
            f"{_pair(shared, members, names)}. Each is clipped with its own group, but a step of one changes "
            "the other. Use one Parameter in both places to tie weights"
        )


def _plain(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors, with None for those that have no memory or are of another kind than strided ones."""
    return [t if t is not None and type(t) is Tensor and _has_memory(t) else None for t in tensors]


def _has_memory(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return False
    return tensor.untyped_storage().nbytes() > 0


def _pair(shared: tuple[int, int], members: Mapping[str, Sequence[int]], names: Sequence[str]) -> str:
    first, second = (
        f"'{names[row]}' of '{next(group for group, rows in members.items() if row in rows)}'"
        for row in shared
    )
    return f"{first} and {second}"


def _shared(
    members: Mapping[str, Sequence[int]],
    tensors: Sequence[Tensor | None],
    rows: Sequence[Tensor] | None = None,
) -> tuple[int, int] | None:
    """Two rows of different groups whose tensors share memory."""
    if rows is None:
        rows = [torch.tensor(own, dtype=torch.int64, device="cpu") for own in members.values()]
    found: tuple[int, int] | bool | None = C.shared_memory(tensors, rows)
    if found is None:
        return _shared_spans(members, tensors)
    return found if isinstance(found, tuple) else None


def _shared_spans(
    members: Mapping[str, Sequence[int]], tensors: Sequence[Tensor | None]
) -> tuple[int, int] | None:
    """Two rows of different groups between whose first and last elements the other lies."""
    spans = []
    for group, rows in members.items():
        for row in rows:
            tensor = tensors[row]
            if type(tensor) is Tensor and tensor.layout is torch.strided and tensor.numel():
                reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) + 1
                begin = tensor.data_ptr()
                spans.append((str(tensor.device), begin, begin + reach * tensor.element_size(), group, row))
    end, last = 0, None
    for span in sorted(spans):
        if last is not None and span[0] == last[0] and span[1] < end and span[3] != last[3]:
            return last[4], span[4]
        if last is None or span[0] != last[0] or span[2] > end:
            end, last = span[2], span
    return None
