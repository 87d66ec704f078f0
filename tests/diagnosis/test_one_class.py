"""Batches of one class each, and steps of two kinds in turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradkern.diagnosis import diagnose
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.rules.every_other import BOTH, contrast, differs_at_every_other
from gradkern.diagnosis.rules.one_class import batches_of_one_class
from tests.support.runs import changed, healthy

STEPS, WIDTH = 80, 16


def alarms(run):
    return [finding for finding in diagnose(run) if finding.is_alarm]


def learned(batches, classes=5, factor=1.0):
    """The losses, and the largest elements of the last bias's gradients, of a linear classifier."""
    random = torch.Generator().manual_seed(0)
    means = torch.randn(classes, WIDTH, generator=random)
    weight, bias = torch.zeros(WIDTH, classes, requires_grad=True), torch.zeros(classes, requires_grad=True)
    losses, largest = [], []
    for targets in batches:
        inputs = means[targets] + torch.randn(len(targets), WIDTH, generator=random)
        loss = torch.nn.functional.cross_entropy(inputs @ weight + bias, targets)
        grads = torch.autograd.grad(factor * loss, (weight, bias))
        losses.append(float(loss.detach()))
        largest.append(float(grads[1].abs().max()))
        with torch.no_grad():
            for p, grad in zip((weight, bias), grads):
                p -= 0.02 / factor * grad
    return np.array(losses), np.array(largest)


def classifying(batches, classes=5, factor=1.0):
    """A run with the losses and the last bias of such a classifier."""
    run = healthy(steps=len(batches))
    losses, largest = learned(batches, classes, factor)
    max_abs, last = run.max_abs.copy(), len(run.names) - 1
    max_abs[:, last] = largest
    params = {**run.params, run.names[last - 1]: {**run.params[run.names[last - 1]], "shape": [classes, 32]}}
    facts = {**run.facts, "graph": {"operations": ["relu", "nll_loss"], "loss": "nll_loss"}}
    return changed(run, loss=losses, max_abs=max_abs, params=params, facts=facts)


def of_one_class(size, steps=STEPS, classes=5):
    return [torch.full((size,), step % classes) for step in range(steps)]


def mixed(size, steps=STEPS, classes=5):
    random = torch.Generator().manual_seed(1)
    return list(torch.randint(classes, (steps, size), generator=random))


class TestOneClass:
    @pytest.mark.parametrize("factor", [1.0, 1e-5])
    def test_batches_of_one_class(self, factor):
        """Also if the loss is multiplied by a constant before backward()."""
        (finding,) = alarms(classifying(of_one_class(16), factor=factor))
        assert finding.kind == "loss_oscillating" and "one class only" in finding.why
        assert finding.remedies[0].action == "shuffle"
        assert (
            finding.evidence["batches_of_one_class"] > 0.9
            and "part of the batches of one class" in finding.numbers
        )

    @pytest.mark.parametrize("size", [2, 4, 16])
    def test_batches_of_several_classes(self, size):
        assert not batches_of_one_class(Case(classifying(mixed(size))))

    @pytest.mark.parametrize(("size", "found"), [(16, True), (2, False)])
    def test_two_classes(self, size, found):
        """Two examples at random are of one class in half of the steps; here they are in two of three."""
        batches = of_one_class(size, classes=2) if found else mixed(size, classes=2)
        batches = [b if found or step % 3 else b[:1].repeat(2) for step, b in enumerate(batches)]
        assert bool(batches_of_one_class(Case(classifying(batches, classes=2)))) == found

    def test_batches_of_one_example(self):
        """They have one class each in any case."""
        assert not batches_of_one_class(Case(classifying(of_one_class(1))))

    def test_some_batches_of_several_classes(self):
        batches = [b if step % 5 else m for step, (b, m) in enumerate(zip(of_one_class(16), mixed(16)))]
        assert batches_of_one_class(Case(classifying(batches)))
        assert not batches_of_one_class(Case(classifying(batches[:16])))
        batches = [b if step % 2 else m for step, (b, m) in enumerate(zip(of_one_class(16), mixed(16)))]
        assert not batches_of_one_class(Case(classifying(batches)))

    def test_a_class_that_nearly_all_examples_have(self):
        assert not batches_of_one_class(Case(classifying([torch.zeros(16, dtype=torch.long)] * 200)))

    def test_it_comes_before_steps_that_are_too_large(self):
        run = classifying(of_one_class(16))
        found = alarms(changed(run, update_ratio=np.full_like(run.update_ratio, 0.9)))
        assert [f.kind for f in found][:2] == ["loss_oscillating", "update_too_large"]


class TestEveryOther:
    def turned(self, first=0.0, later=0.02, noise=0.005, steps=STEPS):
        """A loss that falls, and is higher at every other step, at first or later."""
        random = np.random.default_rng(0)
        height = np.where(np.arange(steps) < 6, first, later) * np.where(np.arange(steps) % 2, 1.0, -1.0)
        loss = 1.0 + 0.3 * np.exp(-np.arange(steps) / 20) + height + noise * random.standard_normal(steps)
        moved = np.full_like(healthy(steps=steps).update_ratio, 0.02)
        return changed(healthy(steps=steps), loss=loss, update_ratio=moved)

    def test_two_kinds_in_turn(self):
        (finding,) = alarms(self.turned())
        assert finding.kind == "loss_oscillating" and "every other step" in finding.why
        assert [r.action for r in finding.remedies][:2] == ["shuffle", "check_labels"]

    @pytest.mark.parametrize(
        "changes",
        [{"first": 0.05}, {"later": 0.0}, {"noise": 0.3}, {"steps": 30}, {"later": 1e-4}],
    )
    def test_what_differs_from_the_start_or_hardly(self, changes):
        """Two data sets have losses of their own before the first step."""
        assert not differs_at_every_other(Case(self.turned(**changes)))

    def test_what_the_first_step_drives_apart(self):
        """Two data sets keep a part of their difference, or both their losses fall."""
        height = np.where(np.arange(STEPS) % 2, 1.0, -1.0) * (0.3 * np.exp(-np.arange(STEPS) / 4) + 0.01)
        loss = 1.0 + height + 0.002 * np.random.default_rng(0).standard_normal(STEPS)
        assert differs_at_every_other(Case(changed(healthy(steps=STEPS), loss=loss)))
        assert differs_at_every_other(
            Case(changed(healthy(steps=STEPS), loss=loss - 0.001 * np.arange(STEPS)))
        )
        falling = loss - np.linspace(0, 0.5, STEPS)
        assert not differs_at_every_other(Case(changed(healthy(steps=STEPS), loss=falling)))

    def test_losses_and_norms_together(self):
        """Neither is enough alone."""
        run = self.turned(noise=0.05)
        assert not differs_at_every_other(Case(run))
        norm = run.total_norm * np.where(np.arange(STEPS) % 2, 1.2, 0.8)
        assert differs_at_every_other(Case(changed(run, total_norm=norm)))

    def test_parts_that_are_trained_in_turn(self):
        """A generator and its critic."""
        run = self.turned()
        there = run.has_grad.copy()
        there[0::2, :4], there[1::2, 4:] = False, False
        assert not differs_at_every_other(Case(changed(run, has_grad=there)))

    @pytest.mark.parametrize("epochs", [4, 10])
    def test_a_batch_that_is_used_for_several_steps(self, epochs):
        """Its losses fall while it is used, so that those of odd steps are lower."""
        used = 0.02 * (np.arange(400) % epochs)
        loss = 0.5 - used + 0.002 * np.random.default_rng(0).standard_normal(400)
        run = changed(healthy(steps=400), loss=loss)
        assert abs(contrast(loss)[1]) > BOTH
        assert not differs_at_every_other(Case(changed(run, total_norm=np.exp(loss))))

    def test_two_aims_of_which_one_starts_at_zero(self):
        """A cross-entropy, and a consistency of outputs that agree at first."""
        at, odd = np.arange(STEPS), np.arange(STEPS) % 2 == 1
        loss = np.where(odd, 2.3 * np.exp(-at / 30), 0.05 * (1 - np.exp(-at / 10)) + 1e-3)
        loss *= np.exp(0.05 * np.random.default_rng(0).standard_normal(STEPS))
        assert not differs_at_every_other(Case(changed(healthy(steps=STEPS), loss=loss)))

    def test_steps_that_were_left_out(self):
        assert not differs_at_every_other(Case(changed(self.turned(), steps=2 * np.arange(1, STEPS + 1))))

    def test_contrast(self):
        values = 3.0 - 0.5 * np.arange(20) + np.where(np.arange(20) % 2, -0.25, 0.25)
        assert contrast(values)[0] == pytest.approx(0.25)
        assert contrast(np.ones(20)) == (0.0, 0.0)
