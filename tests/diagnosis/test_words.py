"""Properties of a model from the names of its modules and operations, compared with torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradkern.diagnosis.model import Model
from gradkern.monitor.graph import GraphFacts
from tests.support.runs import changed, healthy

GATES = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink)
LEAKS = (nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish)
LEAKS += (nn.Softplus, nn.Hardswish, nn.GLU)
SQUASHES = (nn.Sigmoid, nn.Tanh)
NORMS = (nn.BatchNorm1d, nn.LayerNorm)


def walked(*layers: nn.Module | object) -> Model:
    """The model as seen in the graph of its loss, without the kinds of its modules."""
    x = torch.randn(4, 8)
    first = nn.Linear(8, 8)
    y: Tensor = first(x)
    for layer in layers:
        y = layer(y)  # type: ignore[operator]
    facts = GraphFacts()
    assert facts.add(y.square().mean(), {id(p): f"0.{n}" for n, p in first.named_parameters()})
    run = healthy()
    return Model(changed(run, facts={"graph": facts.to_json([])}, params={}))


def built(layer: nn.Module) -> Model:
    """The model as seen in its modules, without a graph."""
    return Model(changed(healthy(), facts={"modules": {"0": "Linear", "1": type(layer).__name__}}, params={}))


def told(model: Model) -> tuple[bool, bool, bool]:
    return model.gates, model.leaks, model.squashes


@pytest.mark.parametrize("look", [walked, built])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [(k, (True, False, False)) for k in GATES]
    + [(k, (False, True, False)) for k in LEAKS]
    + [(k, (False, False, True)) for k in SQUASHES],
)
def test_activations(look, kind, expected):
    assert told(look(kind())) == expected


def test_a_threshold_gates():
    assert told(walked(nn.Threshold(0.1, 0.0))) == told(built(nn.Threshold(0.1, 0.0))) == (True, False, False)


def test_softsign_has_no_operation_of_its_own():
    assert told(walked(nn.Softsign())) == (False, False, False)
    assert told(built(nn.Softsign())) == (False, False, True)


def test_a_clamp_is_a_relu_only_where_there_is_no_other_activation():
    assert walked(lambda x: x.clamp(min=0)).gates
    assert told(walked(nn.Tanh(), lambda x: x.clamp(0.8, 1.2))) == (False, False, True)


@pytest.mark.parametrize("kind", NORMS)
def test_normalizations(kind):
    assert walked(kind(8)).normalizes and built(kind(8)).normalizes


def test_a_plain_model_has_none_of_it():
    plain = walked()
    assert told(plain) == (False, False, False) and not plain.normalizes and plain.knows_activations


@pytest.mark.parametrize(("head", "last"), [("head", True), ("model.lm_head", True), ("header", False)])
def test_a_head_that_is_registered_first_is_the_last_layer(head, last):
    run = healthy(layers=3)
    names = tuple(name.replace("0.", f"{head}.") for name in run.names)
    model = Model(changed(run, names=names, params=dict(zip(names, run.params.values()))))
    assert (names[model.layers[-1].weight] == f"{head}.weight") == last
    walked = {"order": list(names), "operations": ["addmm"]}
    seen = changed(run, names=names, facts={"graph": walked})
    assert names[Model(seen).layers[-1].weight] == "4.weight"  # what was seen counts
