"""Whether the ranks of a group were given the same: compared as digests when a clipper is built."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from gradkern.distributed.groups import group_device
from gradkern.distributed.reduce import all_reduce_


def differing(facts: Sequence[object], groups: Sequence[dist.ProcessGroup]) -> list[int]:
    """The positions of the facts that are not the same on every rank of the groups, on every rank of them. A
    collective of 16 bytes per fact over each group.

    Args:
        facts: what to compare, by its `repr`; as many on every rank.
    """
    digests = [hashlib.blake2b(repr(fact).encode(), digest_size=7).digest() for fact in facts]
    numbers = [int.from_bytes(digest, "big") for digest in digests]
    extremes = torch.tensor([numbers, [-number for number in numbers]], dtype=torch.int64, device="cpu")
    for group in groups:
        extremes = extremes.to(group_device(group))
        all_reduce_(extremes, dist.ReduceOp.MAX, group)
    largest, smallest = extremes.tolist()
    return [i for i, (most, least) in enumerate(zip(largest, smallest)) if most != -least]


def differing_settings(
    operation: str, settings: Mapping[str, object], groups: Sequence[dist.ProcessGroup], where: str
) -> str | None:
    """A message about the first setting that differs between ranks; None if all are the same. A collective
    over each group.

    Args:
        settings: the values by argument, with the same arguments on every rank.
        where: the ranks in words.
    """
    found = differing(list(settings.values()), groups)
    if not found:
        return None
    name = list(settings)[found[0]]
    return (
        f"[{operation}] {name}: expected the same on every rank of {where}, got {settings[name]} on this one"
    )


def agree_on_settings(
    operation: str, settings: Mapping[str, object], groups: Mapping[str, dist.ProcessGroup | None]
) -> None:
    """Check that all ranks of process groups have the same settings.

    Args:
        settings: the values by argument.
        groups: the process groups by argument.

    Raises:
        ValueError: they differ. Raised on every rank.
    """
    over = {name: group for name, group in groups.items() if group is not None}
    if not over:
        return
    where = " and ".join(over)
    if differing([list(settings)], list(over.values())):
        raise ValueError(
            f"[{operation}] groups: expected the same names in the same order on every rank of {where}, got "
            f"{', '.join(settings)} on this one"
        )
    message = differing_settings(operation, settings, list(over.values()), where)
    if message is not None:
        raise ValueError(message)


def check_held(
    operation: str, sizes: Mapping[str, int], groups: Mapping[str, dist.ProcessGroup | None]
) -> None:
    """Check that a rank of the process groups has parameters of every named group.

    Args:
        sizes: the number of parameters that this rank has, by named group.
        groups: the process groups by argument.

    Raises:
        ValueError: no rank has a parameter of the group. Raised on every rank.
    """
    over = {name: group for name, group in groups.items() if group is not None}
    if not over or not sizes:
        return
    largest = torch.tensor(list(sizes.values()), dtype=torch.int64, device="cpu")
    for group in over.values():
        largest = largest.to(group_device(group))
        all_reduce_(largest, dist.ReduceOp.MAX, group)
    for name, size in zip(sizes, largest.tolist()):
        if not size:
            raise ValueError(
                f"[{operation}] groups['{name}']: has no parameters on any rank of {' and '.join(over)}; its "
                "selector matches none, or only those of groups before it"
            )
