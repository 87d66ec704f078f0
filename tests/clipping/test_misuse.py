"""Warnings of the drop-in functions, given once: no gradient, or gradients that a step has used."""

from __future__ import annotations

import textwrap
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import gradkern
from gradkern.policies import AutoClip

ABSENT = "no parameter has a gradient, so there is nothing to clip"
USED = "an optimizer has stepped with these gradients already, so it is too late to clip them"

CLIPS = {
    "clip_grad_norm_": lambda params: gradkern.clip_grad_norm_(params, 1.0),
    "clip_grads_with_norm_": lambda params: gradkern.clip_grads_with_norm_(params, 1.0, 0.0),
    "clip_grad_value_": lambda params: gradkern.clip_grad_value_(params, 1.0),
}


def said(body, times=3):
    """The warnings that `body` gives when it is called several times."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            body()
    assert all(w.category is gradkern.GradkernWarning for w in caught)
    assert {Path(w.filename).name for w in caught} <= {"test_misuse.py"}
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("name", CLIPS)
class TestDropIn:
    def test_nothing_has_a_gradient(self, name):
        for _ in range(2):  # one warning for each model
            model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
            (message,) = said(partial(CLIPS[name], list(model.parameters())))
            assert message.startswith(f"[{name}] {ABSENT}")

    def test_some_have_a_gradient(self, name):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        model[1](torch.ones(1, 3)).sum().backward()
        assert said(lambda: CLIPS[name](model.parameters())) == []
        model[1].zero_grad(set_to_none=False)  # gradients of zero are gradients, too
        assert said(lambda: CLIPS[name](model.parameters())) == []

    def test_what_is_frozen_has_none_by_right(self, name):
        model = nn.Linear(3, 1).requires_grad_(False)
        assert said(lambda: CLIPS[name](model.parameters())) == []
        assert said(lambda: CLIPS[name]([])) == []

    @pytest.mark.parametrize("keep", [False, True])
    def test_the_order_of_clip_and_step(self, name, keep):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        model[0].weight.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(late):
            optimizer.zero_grad(set_to_none=not keep)
            model(torch.ones(2, 3)).sum().backward()
            if late:
                optimizer.step()
            CLIPS[name](model.parameters())
            if not late:
                optimizer.step()

        assert said(lambda: step(late=False)) == []
        (message,) = said(lambda: step(late=True))
        assert message.startswith(f"[{name}] {USED}")

    def test_in_the_closure_of_a_step(self, name):
        model = nn.Linear(3, 1)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

        def closure():
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).square().sum()
            loss.backward()
            CLIPS[name](model.parameters())
            return loss

        assert said(lambda: optimizer.step(closure)) == []

    def test_two_optimizers_in_turn(self, name):
        models = [nn.Linear(3, 1), nn.Linear(3, 1)]
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]

        def body():
            for model, optimizer in zip(models, optimizers):
                model(torch.ones(2, 3)).sum().backward()
                CLIPS[name](model.parameters())
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()

        assert said(body) == []


def test_measuring_after_a_step_is_no_mistake():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def body():
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        gradkern.get_total_norm([p.grad for p in model.parameters()])

    assert said(body) == []


def test_in_compiled_code_nothing_is_said():
    model = nn.Linear(3, 1)
    clip = torch.compile(lambda: gradkern.clip_grad_norm_(model.parameters(), 1.0), backend="eager")
    assert said(clip) == []


def test_through_torchs_own_operations(run_with_torch):
    code = """
        import warnings, torch, gradkern
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                gradkern.clip_grad_norm_(model.parameters(), 1.0)
            for _ in range(3):
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
                gradkern.clip_grad_value_(model.parameters(), 1.0)
                optimizer.zero_grad()
        print(*(str(w.message)[:30] for w in caught), sep="\\n")
        """
    found = run_with_torch(textwrap.dedent(code), GRADKERN_DISABLE="1").stdout.splitlines()
    assert found == ["[clip_grad_norm_] no parameter", "[clip_grad_value_] an optimize"]


def test_through_a_patched_torch():
    model = nn.Linear(3, 1)
    with gradkern.patched_torch():
        (message,) = said(lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    assert message.startswith(f"[clip_grad_norm_] {ABSENT}")


@pytest.mark.parametrize("keyword", [False, True])
def test_gradients_of_a_closure_are_used_by_the_step(keyword):
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    with pytest.warns(gradkern.GradkernWarning, match="an optimizer has stepped with these gradients"):
        gradkern.clip_grad_norm_(model.parameters(), 1.0)


@pytest.mark.parametrize("name", CLIPS)
def test_each_of_several_models_is_told_of_once(name):
    models = [nn.Linear(3, 1), nn.Linear(3, 1)]

    def body():
        for model in models:
            CLIPS[name](model.parameters())

    assert len(said(body)) == 2


def test_a_generator_that_nothing_was_read_from_is_not_called_used_up():
    model = nn.Linear(3, 1)

    def fresh():
        gradkern.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)

    (message,) = said(fresh, times=1)
    assert "Nothing has been read from it before" in message and "only once" not in message
    params = model.parameters()
    list(params)
    (message,) = said(lambda: gradkern.clip_grad_norm_(params, 1.0), times=1)
    assert "this generator yields nothing" in message and "can be read only once" in message


def test_a_used_up_iterator_in_param_groups_is_told():
    params = iter([torch.nn.Parameter(torch.ones(2))])
    list(params)
    with pytest.warns(gradkern.GradkernWarning, match=r"parameters\[0\]\['params'\]: this list_iterator"):
        gradkern.clip_grad_norm_([{"params": params, "max_norm": 1.0}], 1.0)


FROZEN = "all parameters are frozen (requires_grad is False), so there is nothing to"


def test_a_frozen_model():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).requires_grad_(False)
    clipper = gradkern.GradClipper(model, max_norm=1.0)
    (message,) = said(clipper.clip_)
    assert message.startswith(f"[GradClipper.clip_] {FROZEN} clip")
    (message,) = said(lambda: gradkern.measure(model))
    assert message.startswith(f"[measure] {FROZEN} measure")


def test_a_model_that_is_frozen_in_part():
    model = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 1))
    clipper = gradkern.GradClipper(model, max_norm=1.0)
    assert said(lambda: gradkern.measure(model)) == []
    model(torch.ones(1, 3)).sum().backward()
    model.requires_grad_(False)  # its gradients are there
    assert said(clipper.clip_) == said(lambda: gradkern.measure(model)) == []


def test_a_percentile_that_is_a_fraction():
    (message,) = said(lambda: AutoClip(0.9), times=1)
    assert message == "[AutoClip] percentile is 0.9 of 100; did you mean 90?"
    for fine in (0.0, 1.0, 10, 90.0, 100):
        assert said(lambda percentile=fine: AutoClip(percentile)) == []
