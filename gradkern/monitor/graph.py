"""Facts from the autograd graph of a loss: order of execution, operations, serial and unused parameters."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradkern._util.warning import LOGGER

#: Walks for each part of a run.
WALKS = 4
#: Bounds on all walks of a run together: a walk takes about 5 µs a node on the training thread.
NODES, SECONDS = 50_000, 0.05
#: Operations that only change shape or type say nothing of the model.
LAYOUT_OPERATIONS = frozenset(
    {"t", "view", "unsafe_view", "transpose", "permute", "reshape", "reshape_alias", "expand", "clone"}
    | {"select", "slice", "squeeze", "unsqueeze", "alias", "as_strided", "split", "unsafe_split", "unbind"}
    | {"to_copy", "contiguous", "stack", "cat", "view_as_real"}
)
#: Losses whose operation has no "loss" in its name.
LOSSES = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "cross_entropy"})
#: Nodes behind which there is a graph that cannot be seen: torch.compile, re-entrant checkpointing.
OPAQUE = ("CompiledFunction", "CheckpointFunction")
MOST_OPERATIONS = 4096
_PRIME = 2**61 - 1
_CHECK = 256  # nodes between two checks of the clock


class GraphFacts:
    """Walks the graphs of a run's first losses; keeps names, never a node.

    Several walks, because an expert may be unused in the first step.
    """

    def __init__(self) -> None:
        self._left: dict[str, int] = {}
        self._nodes, self._seconds = NODES, SECONDS
        self._walks = 0
        self._parts: dict[str, Seen] = {}

    def left(self, part: str) -> int:
        """How many losses of a part are to be walked."""
        return self._left.get(part, WALKS)

    def add(self, loss: Any, names: Mapping[int, str], part: str = "") -> bool:
        """Walk the graph of a loss, if it has one; returns whether something was found.

        Args:
            names: of the parameters, by their ids.
            part: of the step that the loss belongs to.
        """
        self._left[part] = self.left(part) - 1
        root = loss.grad_fn if isinstance(loss, Tensor) else None
        return root is not None and self.take([self.look(root, names)], part)

    def look(self, root: Any, names: Mapping[int, str]) -> Seen | None:
        """Walk the graph behind the node of a loss; None if nothing is found. It runs inside of `backward`,
        so that no error may leave it."""
        if self._seconds <= 0:
            return None
        start = time.perf_counter()
        walk = _Walk(self._nodes, start + self._seconds)
        try:
            seen = walk.run(root, names)
        except Exception:
            LOGGER.debug("the graph of the loss cannot be read", exc_info=True)
            seen = None
        self._nodes -= len(walk.order)
        self._seconds -= time.perf_counter() - start
        return seen

    def take(self, seen: Sequence[Seen | None], part: str = "") -> bool:
        """Add what was seen at one step, behind each of its losses; returns whether the fact changes.

        Micro-batches have one graph each, all alike. Losses that differ are no single one: then nothing is
        said of the part, and its graphs are not walked any more.
        """
        known = [one for one in seen if one is not None]
        if len({(one.loss, frozenset(one.order)) for one in known}) > 1:
            self._left[part] = 0
            return self._parts.pop(part, None) is not None
        if not known or len(known) < len(seen):
            return False
        self._walks += 1
        for one in known:
            self._parts[part] = one.after(self._parts.get(part))
        return True

    def to_json(self, trainable: list[str]) -> dict[str, Any]:
        """The fact "graph"; empty if no graph could be seen.

        Args:
            trainable: parameters that are unused if no graph has them, as far as the graphs of all parts are
                known.
        """
        if not self._parts:
            return {}
        parts = [part for part in self._parts.values() if part.order]
        if not parts:
            ending = next(iter(self._parts.values()))
            return {"ending": list(ending.operations), "loss": ending.loss, "walks": self._walks}
        order = list(dict.fromkeys(name for part in parts for name in part.order))
        reached = set(order)
        complete = all(part in self._parts and self._parts[part].order for part in self._left)
        half = [name for name in order if any(name in part.half for part in parts)]
        return {
            "order": order,
            "operations": [name for part in parts for name in part.operations][:MOST_OPERATIONS],
            "serial": [name for name in order if any(name in part.serial for part in parts)],
            "loss": parts[0].loss,
            **({"unused": [name for name in trainable if name not in reached]} if complete else {}),
            "walks": self._walks,
            **({"float16": half} if half else {}),
        }


@dataclass(frozen=True)
class Seen:
    """What was found in one graph, or in several of one part."""

    order: tuple[str, ...]
    """Parameters; empty if a part of the graph is opaque, or if all of them are other tensors (FSDP gathers
    them). Then only the operations behind that are known."""
    operations: tuple[str, ...]
    serial: frozenset[str]
    loss: str
    half: frozenset[str]
    """Parameters whose gradients are cast from float16, as under autocast."""

    def after(self, before: Seen | None) -> Seen:
        """Joined with earlier graphs: serial parameters are serial in all of them."""
        if before is None or not before.order:
            return self
        if not self.order:
            return before
        first, second = (before, self) if len(before.order) >= len(self.order) else (self, before)
        order = tuple(dict.fromkeys(first.order + second.order))
        return Seen(
            order, first.operations, first.serial & second.serial, first.loss, first.half | second.half
        )


@dataclass
class _Walk:
    """One pass over a graph: its nodes, inputs first."""

    most: int
    deadline: float
    order: list[Any] = field(default_factory=list)
    inputs: dict[Any, list[Any]] = field(default_factory=dict)
    users: dict[Any, list[Any]] = field(default_factory=dict)
    width: dict[Any, int] = field(default_factory=dict)
    opaque: set[Any] = field(default_factory=set)

    def run(self, root: Any, names: Mapping[int, str]) -> Seen | None:
        """What is found; None if the graph is too large, or of other parameters."""
        if not self._collect(root):
            return None
        leaves: dict[str, Any] = {}
        operations: list[tuple[int, str]] = []
        loss, views = "", False
        for node in reversed(self.order):  # the loss first
            if node in self.opaque:
                continue
            if hasattr(type(node), "variable"):
                name = names.get(id(node.variable))
                if name is not None:
                    leaves[name] = node
                views |= name is None and isinstance(node.variable, torch.nn.Parameter)
                continue
            name = operation_of(node)
            loss = loss or (name if "loss" in name or name in LOSSES else "")
            if name not in LAYOUT_OPERATIONS:
                operations.append((number_of(node), name))
        in_order = tuple(name for _, name in sorted(operations, key=lambda pair: pair[0]))
        if not leaves or self.opaque:
            ends = in_order and (self.opaque or views)
            return Seen((), in_order, frozenset(), loss or in_order[-1], frozenset()) if ends else None
        order = sorted(leaves, key=lambda name: min(number_of(n) for n in self.users[leaves[name]]))
        half = (name for name, leaf in leaves.items() if any(map(_casts_float16, self.users[leaf])))
        return Seen(
            order=tuple(order),
            operations=in_order,
            serial=self._serial(leaves),
            loss=loss or in_order[-1],
            half=frozenset(half),
        )

    def _collect(self, root: Any) -> bool:
        """Visit all nodes, depth first without recursion; False if that takes too long or is not possible."""
        stack: list[tuple[Any, Iterator[Any]]] = [(root, self._enter(root))]
        while stack:
            node, rest = stack[-1]
            child = next(rest, None)
            if child is None:
                stack.pop()
                self.order.append(node)
                continue
            self.users.setdefault(child, []).append(node)
            if child in self.inputs:
                continue
            if len(self.inputs) >= self.most:
                return False
            if not len(self.inputs) % _CHECK and time.perf_counter() > self.deadline:
                return False
            stack.append((child, self._enter(child)))
        return True

    def _is_opaque(self, node: Any) -> bool:
        """Whether nothing can be seen behind a node; it is noted."""
        found = _name_of(node).startswith(OPAQUE)
        if found:
            self.opaque.add(node)
        return found

    def _enter(self, node: Any) -> Iterator[Any]:
        below = () if self._is_opaque(node) else node.next_functions
        self.width[node] = len(below)
        self.inputs[node] = [child for child, _ in below if child is not None]
        return iter(self.inputs[node])

    def _serial(self, leaves: Mapping[str, Any]) -> frozenset[str]:
        """Parameters used by a node that lies on every path from the loss to the first layer, which is the
        operation with a parameter that is furthest from the loss.

        A node is on every path if the number of paths to it times the number from it is the number of all
        paths. They are counted modulo a prime, because there can be exponentially many.
        """
        depth: dict[Any, int] = {self.order[-1]: 0}
        above: dict[Any, int] = {self.order[-1]: 1}
        for node in reversed(self.order):
            for child in self.inputs[node]:
                depth[child] = max(depth.get(child, 0), depth[node] + 1)
                above[child] = (above.get(child, 0) + above[node]) % _PRIME
        touching = {node for leaf in leaves.values() for node in self.users[leaf]}
        furthest = max(touching, key=lambda node: (depth[node], -number_of(node)))
        below: dict[Any, int] = {}
        for node in self.order:
            paths = sum(below[child] for child in self.inputs[node]) % _PRIME
            below[node] = 1 if node is furthest else paths
        total = above[furthest]
        return frozenset(
            name
            for name, leaf in leaves.items()
            if any(below[n] and above[n] * below[n] % _PRIME == total for n in self._uses(leaf))
        )

    def _uses(self, leaf: Any) -> Iterator[Any]:
        """The nodes in which a parameter meets another tensor, reached through its transposes, casts and
        look-ups."""
        stack = [leaf]
        found = {leaf}
        while stack:
            for node in self.users.get(stack.pop(), ()):
                if node in found:
                    continue
                found.add(node)
                if self.width[node] > 1 or node not in self.users:
                    yield node
                else:
                    stack.append(node)


def _casts_float16(node: Any) -> bool:
    """Whether a node receives a float16 gradient and casts it; False where torch does not tell."""
    received = getattr(node, "_input_metadata", None) or ()
    return operation_of(node) == "to_copy" and any(one.dtype == torch.float16 for one in received)


def number_of(node: Any) -> int:
    """The number of a node in the order in which the operations of a thread ran."""
    return int(type(node)._sequence_nr(node))


def _name_of(node: Any) -> str:
    """The name that torch gives to a node. The node of a `torch.autograd.Function` is its `ctx`, whose
    attributes may be anything; those of its class are torch's."""
    return str(type(node).name(node))


def operation_of(node: Any) -> str:
    """The operation of a node as torch names it: "addmm" for "AddmmBackward0"."""
    name = re.sub(r"Backward\d*$", "", _name_of(node).rpartition("::")[2])
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
