"""`Model`: facts about the model of a run: the order of its parameters, activations, chains of layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gradkern.diagnosis.evidence import RunEvidence
from gradkern.diagnosis.losses import LOSS_MODULES

#: Modules, and operations of the graph, in lower case, by what they do to a gradient: zero for a part of the
#: inputs; never quite zero; nearly zero at both ends. LogSigmoid and Softplus are also losses.
GATING = {"relu", "relu6", "threshold", "hardtanh", "hardsigmoid", "hardshrink", "softshrink"}
LEAKY = {
    "leakyrelu",
    "leaky_relu",
    "prelu",
    "prelu_kernel",
    "rrelu",
    "rrelu_with_noise",
    "elu",
    "selu",
    "celu",
}
LEAKY |= {"gelu", "silu", "mish", "softplus", "hardswish", "glu"}
SQUASHING = {"sigmoid", "tanh", "softsign"}
#: Other names of ReLU. They count only in a model without another activation, because they may also bound a
#: ratio or a variance.
CLAMPING = {"clamp", "clamp_min"}
#: Operations and modules that multiply by the result of a softmax (attention, mixtures).
ATTENDING = re.compile("attention|attn|bmm|matmul|^mul$|einsum")
#: Operations that multiply by a matrix or a filter.
MATRICES = re.compile(r"mm$|^mv$|^linear$|convolution|einsum|rnn|lstm|gru|attention|^matmul$|bilinear")
NORMALIZING = re.compile(r"(batch|layer|group|instance|rms|local_?response)_?norm|^norm$", re.IGNORECASE)
RECURRENT = re.compile(r"^(RNN|LSTM|GRU)(Cell)?$", re.IGNORECASE)
LOOKUP = re.compile(r"embedding", re.IGNORECASE)
#: Names that models give to the layer of their outputs, which some register before others.
HEAD = re.compile(r"(module\.|model\.)?(head|lm_head|classifier|logits|readout|fc|fc_out|output)\.")
#: How torch.nn.utils names what a weight is made of: "0.parametrizations.weight.original1", "0.weight_orig".
PARAMETRIZED = re.compile(r"(?:parametrizations\.)?(weight\w*?)(?:\.original\d*|_orig|_v)$")


@dataclass(frozen=True)
class Layer:
    """The matrix of a module and its bias, if it has one, as columns of the evidence."""

    weight: int
    bias: int | None
    kind: str
    """Class of the module, "" where not known."""
    shape: tuple[int, ...]


class Model:
    """The model of some evidence: from `facts` if there are any, else from names and kinds."""

    def __init__(self, evidence: RunEvidence) -> None:
        self._evidence = evidence
        self._column = {name: i for i, name in enumerate(evidence.names)}
        self._graph: dict[str, Any] = dict(evidence.facts.get("graph") or {})

    @cached_property
    def order(self) -> list[int]:
        """Columns in the order of execution if it is known, else in the order of the model, with a layer that
        is named as that of the outputs at the end."""
        first = [self._column[n] for n in self._graph.get("order", ()) if n in self._column]
        seen = set(first)
        if not first:
            return sorted(self._column.values(), key=lambda i: bool(HEAD.match(self._evidence.names[i])))
        return first + [i for i in range(len(self._evidence.names)) if i not in seen]

    @cached_property
    def layers(self) -> list[Layer]:
        """Every matrix (or filter) in the order of execution, lookup tables and recurrent layers left out."""
        return [layer for layer in self._all_layers() if not LOOKUP.search(layer.kind)]

    def _all_layers(self) -> Iterator[Layer]:
        names = self._evidence.names
        for column in self.order:
            name, shape = names[column], self.shape(column)
            if not self._is_matrix(name, shape):
                continue
            bias = self._bias(name)
            yield Layer(column, bias if bias != column else None, self.kind(column), shape)

    def _bias(self, name: str) -> int | None:
        """The bias beside a matrix, also of one that is parametrized or pruned."""
        plain = PARAMETRIZED.sub(r"\1", name)
        module, _, leaf = plain.rpartition(".")
        return self._column.get(f"{module}.{leaf.replace('weight', 'bias')}" if module else "bias")

    def _is_matrix(self, name: str, shape: tuple[int, ...]) -> bool:
        if shape:
            return (len(shape) >= 2 and min(shape[0], _product(shape[1:])) > 1) or (
                len(shape) >= 2 and _product(shape) > 1 and name.endswith("weight")
            )
        return name.endswith("weight") and not self._known(name, "kind", "").endswith("Norm")

    def shape(self, column: int) -> tuple[int, ...]:
        return tuple(self._known(self._evidence.names[column], "shape", ()))

    def kind(self, column: int) -> str:
        """Class of the module that owns a parameter, "" where it is not known."""
        name = self._evidence.names[column]
        module = name.rpartition(".")[0]
        return str(self._known(name, "kind", "") or self._evidence.facts.get("modules", {}).get(module, ""))

    def trainable(self, column: int) -> bool:
        return bool(self._known(self._evidence.names[column], "trainable", True))

    def _known(self, name: str, key: str, default: Any) -> Any:
        value = self._evidence.params.get(name, {}).get(key)
        return default if value is None else value

    @cached_property
    def matrices(self) -> list[int]:
        """Columns of everything with two or more dimensions."""
        shapes = [self.shape(i) for i in range(len(self._evidence.names))]
        known = [i for i, s in enumerate(shapes) if len(s) >= 2]
        return known or [layer.weight for layer in self._all_layers()]

    @property
    def knows_order(self) -> bool:
        """Whether the order of execution is known, from the graph or from a model that is a Sequential."""
        return (
            bool(self._graph.get("order")) or self._evidence.facts.get("modules", {}).get("") == "Sequential"
        )

    # ---- modules and operations ----

    @cached_property
    def loss(self) -> str:
        """The operation of the loss, from the graph or else from the only module that is a loss; "" if it is
        not known."""
        modules = {str(kind) for kind in self._evidence.facts.get("modules", {}).values()}
        owned = modules & LOSS_MODULES.keys()
        of_module = LOSS_MODULES[owned.pop()] if len(owned) == 1 else ""
        return str(self._graph.get("loss") or of_module).lower()

    @cached_property
    def ending(self) -> list[str]:
        """The operations up to the loss, in the order of execution; those behind what is opaque at least."""
        return [str(o).lower() for o in self._graph.get("operations") or self._graph.get("ending") or ()]

    @cached_property
    def last_module(self) -> str:
        """The class, in lower case, of the module that ends a Sequential model; "" of other models, which may
        use their modules in any order."""
        modules = {str(n): str(k) for n, k in self._evidence.facts.get("modules", {}).items()}
        at = ""
        while modules.get(at) == "Sequential":
            children = [name for name in modules if name and name.rpartition(".")[0] == at]
            if not children:
                break
            at = children[-1]
        return modules.get(at, "").lower() if at else ""

    @cached_property
    def words(self) -> set[str]:
        """Classes of its modules and names of its operations, in lower case."""
        modules = {str(kind).lower() for kind in self._evidence.facts.get("modules", {}).values()}
        operations = {str(o).lower().removesuffix("backward0") for o in self._graph.get("operations", ())}
        kinds = {self.kind(i).lower() for i in range(len(self._evidence.names))}
        return {w for w in modules | operations | kinds if w}

    @cached_property
    def _between(self) -> set[str]:
        """`words` without the operations behind the last matrix, which belong to the loss: its softplus, tanh
        or clamp says nothing of the units."""
        names = [str(o).lower().removesuffix("backward0") for o in self._graph.get("operations", ())]
        matrices = [i for i, name in enumerate(names) if MATRICES.search(name)]
        last = matrices[-1] if len(matrices) > 1 else len(names) - 1
        modules = {str(kind).lower() for kind in self._evidence.facts.get("modules", {}).values()}
        return self.words - (set(names[last + 1 :]) - set(names[: last + 1]) - modules)

    @property
    def knows_operations(self) -> bool:
        """Whether all operations are known, from the graph."""
        return bool(self._graph.get("operations"))

    @property
    def knows_activations(self) -> bool:
        """Whether the activations are known, from the graph or from modules."""
        return self.knows_operations or self.gates or self.leaks or self.squashes

    @property
    def gates(self) -> bool:
        """It has activations with a derivative of exactly 0 (ReLU)."""
        others = self._between & (LEAKY | SQUASHING)
        return bool(self._between & GATING) or (bool(self._between & CLAMPING) and not others)

    @property
    def leaks(self) -> bool:
        """It has activations that always let some gradient through."""
        return bool(self._between & LEAKY)

    @property
    def squashes(self) -> bool:
        """It has activations that saturate (sigmoid, tanh)."""
        return bool(self._between & SQUASHING)

    @property
    def selects(self) -> bool:
        """A softmax is its only activation, and nothing is weighted by it."""
        others = self.gates or self.leaks or self.squashes or any(ATTENDING.search(w) for w in self.words)
        return "softmax" in self.words and not others

    @property
    def normalizes(self) -> bool:
        return any(NORMALIZING.search(w) for w in self.words)

    @property
    def recurs(self) -> bool:
        return any(RECURRENT.search(w) for w in self.words)

    # ---- chains ----

    @cached_property
    def chains(self) -> list[list[Layer]]:
        """Layers that follow one another: those of one role (names without their digits), and all of one
        kind in a model. At least three each; only those on every path from the loss where that is known."""
        members = [layer for layer in self.layers if self._may_link(layer)]
        by_role: dict[str, list[Layer]] = {}
        by_kind: dict[str, list[Layer]] = {}
        for layer in members:
            by_role.setdefault(role_of(self._evidence.names[layer.weight]), []).append(layer)
            by_kind.setdefault(f"{self._part_of(layer)} {layer.kind or 'matrix'}", []).append(layer)
        found = [*by_role.values(), *filter(self._follow, by_kind.values())]
        return _distinct([chain for chain in found if len(chain) >= 3])

    @cached_property
    def bypassed(self) -> list[list[Layer]]:
        """Layers of one role, at least four, that are not on every path from the loss, because of
        straight-through estimators or several passes, as far as `chains` does not have them."""
        by_role: dict[str, list[Layer]] = {}
        for layer in self.layers:
            if not RECURRENT.search(layer.kind) and self._is_always_there(layer):
                by_role.setdefault(role_of(self._evidence.names[layer.weight]), []).append(layer)
        return [chain for chain in by_role.values() if len(chain) >= 4 and chain not in self.chains]

    def _follow(self, chain: list[Layer]) -> bool:
        """Whether layers of one kind are known to follow one another: by the order of execution, or because
        half of them have one role. Others may be a branch that starts without effect (attention pooling)."""
        roles = [role_of(self._evidence.names[layer.weight]) for layer in chain]
        return bool(self._graph.get("order")) or 2 * max(map(roles.count, roles)) >= len(chain)

    def _part_of(self, layer: Layer) -> str:
        """The model that a layer belongs to, in a run of several; where the order of execution is unknown,
        the child of the model, since two of them may be two models (a generator and its critic)."""
        parts = self._evidence.facts.get("parts")
        name = self._evidence.names[layer.weight]
        named = parts if isinstance(parts, list) else []
        part = next((str(part) for part in named if name.startswith(f"{part}.")), "")
        inner = name.removeprefix(f"{part}.").split(".")
        return part if self._graph.get("order") or len(inner) < 3 else f"{part}.{inner[0]}"

    def _may_link(self, layer: Layer) -> bool:
        if RECURRENT.search(layer.kind):
            return False
        serial = self._graph.get("serial")
        if serial and self._evidence.names[layer.weight] not in serial:
            return False
        return self._is_always_there(layer)

    def _is_always_there(self, layer: Layer) -> bool:
        seen = self._evidence.has_grad[:, layer.weight]
        return bool(len(seen)) and float(seen.mean()) >= 0.9


def role_of(name: str) -> str:
    """The role of a parameter: its name without digits."""
    return re.sub(r"\d+", "", name)


def _product(sides: Sequence[int]) -> int:
    total = 1
    for side in sides:
        total *= side
    return total


def _distinct(chains: list[list[Layer]]) -> list[list[Layer]]:
    kept: dict[tuple[int, ...], list[Layer]] = {}
    for chain in chains:
        kept.setdefault(tuple(layer.weight for layer in chain), chain)
    return list(kept.values())
