"""gradkern's own clips, several clips in a step, and overlapping blocks, recorded through the bridge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from gradkern.clipping import observing
from gradkern.integrations import bridge

STEPS = 4
LIMIT = 0.05


@pytest.fixture(autouse=True)
def _unpatched():
    yield
    gradkern.unpatch_torch()
    assert observing.observer is None


class Loop:
    """A model that trains; `clip` is called between backward and step."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.norms, self.losses = [], []
        self.data = torch.Generator().manual_seed(1)

    def train(self, clip, steps=STEPS, set_to_none=True):
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none)
            loss = self.model(torch.randn(5, 6, generator=self.data)).square().mean()
            loss.backward()
            self.losses.append(loss.item())
            self.norms.append([p.grad.double().norm().item() for p in self.model.parameters()])
            clip(self)
            self.optimizer.step()
        return self

    def assert_recorded(self, folder, threshold=LIMIT):
        history = gradkern.History.open(folder)
        assert history.steps.tolist() == list(range(1, len(self.norms) + 1))
        assert history.names == tuple(name for name, _ in self.model.named_parameters())
        np.testing.assert_allclose(history.norm, self.norms, rtol=1e-6)
        np.testing.assert_allclose(history.total_norm, np.linalg.norm(self.norms, axis=1), rtol=1e-6)
        assert set(history.phase) == {"before_clip"}
        np.testing.assert_array_equal(history.threshold, [threshold] * len(self.norms))
        return history


def monitored(loop, folder, clip, **options):
    with gradkern.GradMonitor(loop.model, loop.optimizer, folder) as monitor, gradkern.patched_torch(monitor):
        loop.train(clip, **options)
    return loop


def split(loop):
    total = gradkern.get_total_norm([p.grad for p in loop.model.parameters()])
    gradkern.clip_grads_with_norm_(loop.model.parameters(), LIMIT, total)


OWN = {
    "clip_grad_norm_": (lambda loop: gradkern.clip_grad_norm_(loop.model.parameters(), LIMIT), LIMIT),
    "split": (split, LIMIT),
    "clip_grad_value_": (lambda loop: gradkern.clip_grad_value_(loop.model.parameters(), 0.01), np.nan),
    "adaptive_clip_grad_": (lambda loop: gradkern.adaptive_clip_grad_(loop.model.parameters()), np.nan),
    "parameter groups": (
        lambda loop: gradkern.clip_grad_norm_(
            [
                {"params": list(loop.model[0].parameters()), "max_norm": 0.02},
                {"params": list(loop.model[2].parameters())},
            ],
            0.01,
        ),
        np.nan,
    ),
    "parameter groups without limits": (
        lambda loop: gradkern.clip_grad_norm_(loop.optimizer.param_groups, LIMIT),
        LIMIT,
    ),
}


@pytest.mark.parametrize(("clip", "threshold"), OWN.values(), ids=OWN)
def test_own_functions(tmp_path, clip, threshold):
    monitored(Loop(), tmp_path, clip).assert_recorded(tmp_path, threshold)


def test_groups_have_their_factors(tmp_path):
    loop = monitored(Loop(), tmp_path, OWN["parameter groups"][0])
    history = gradkern.History.open(tmp_path)
    first = np.linalg.norm(np.array(loop.norms)[:, :2], axis=1)
    second = np.linalg.norm(np.array(loop.norms)[:, 2:], axis=1)
    factors = np.stack([0.02 / (first + 1e-6), 0.01 / (second + 1e-6)]).min(axis=0)
    np.testing.assert_allclose(history.clip_coef, np.minimum(1.0, factors), rtol=1e-5)


def clipper_of(kind, loop):
    groups = {"first": ("0.*", LIMIT), "others": ("*", LIMIT)}
    return {
        "max_norm": lambda: gradkern.GradClipper(loop.model, LIMIT),
        "policy": lambda: gradkern.GradClipper(loop.model, policy=gradkern.policies.GlobalNorm(LIMIT)),
        "groups": lambda: gradkern.GradClipper(loop.model, groups=groups),
        "in steps": lambda: gradkern.GradClipper(loop.model, LIMIT, on_nonfinite="raise_later"),
    }[kind]()


@pytest.mark.parametrize("recorded", [False, True], ids=["by the bridge", "by record(stats)"])
@pytest.mark.parametrize("kind", ["max_norm", "policy", "groups", "in steps"])
def test_a_clipper(tmp_path, kind, recorded):
    """Statistics that the loop records itself are the same step, not another one."""
    loop = Loop()
    clipper = clipper_of(kind, loop)
    with gradkern.GradMonitor(loop.model, loop.optimizer, tmp_path) as monitor:

        def clip(one):
            stats = clipper.clip_()
            if recorded:
                monitor.record(stats, loss=one.losses[-1])

        with gradkern.patched_torch(monitor):
            loop.train(clip)
    history = loop.assert_recorded(tmp_path, np.nan if kind == "groups" else LIMIT)
    if recorded:
        np.testing.assert_allclose(history.loss, loop.losses, rtol=1e-6)


def test_a_clipper_that_unscales(tmp_path):
    loop, scaler = Loop(), torch.amp.GradScaler("cpu", init_scale=4.0)
    clipper = gradkern.GradClipper(loop.model, LIMIT, optimizer=None)
    monitor = gradkern.GradMonitor(loop.model, loop.optimizer, tmp_path)
    with monitor, gradkern.patched_torch(monitor):
        for row in range(STEPS):
            loop.optimizer.zero_grad()
            scaler.scale(loop.model(torch.randn(5, 6)).square().mean()).backward()
            if row == 1:
                loop.model[0].weight.grad[0, 0] = float("inf")
            scale = scaler.get_scale()
            loop.norms.append([p.grad.norm().item() / scale for p in loop.model.parameters()])
            clipper.clip_(scaler=scaler, optimizer=loop.optimizer)
            scaler.step(loop.optimizer)
            scaler.update()
    history = gradkern.History.open(tmp_path)
    np.testing.assert_allclose(history.norm, loop.norms, rtol=1e-6)
    assert history.skipped.tolist() == [False, True, False, False]


def test_two_clippers_of_one_model_are_one_step(tmp_path):
    loop = Loop()
    clippers = [gradkern.GradClipper(loop.model[layer], LIMIT) for layer in (0, 2)]

    with gradkern.GradMonitor(loop.model, loop.optimizer, tmp_path) as monitor:

        def clip(loop):
            pieces = [clipper.clip_() for clipper in clippers]
            if len(loop.norms) % 2:
                monitor.record(pieces, loss=loop.losses[-1])

        with gradkern.patched_torch(monitor):
            loop.train(clip)
    loop.assert_recorded(tmp_path)


def test_every_leaves_out_clips_that_are_recorded_by_hand(tmp_path):
    loop = Loop()
    clipper = gradkern.GradClipper(loop.model, LIMIT)
    monitor = gradkern.GradMonitor(loop.model, loop.optimizer, tmp_path, every=2)
    with monitor, gradkern.patched_torch(monitor):
        loop.train(lambda _: monitor.record(clipper.clip_()))
    assert monitor.step == STEPS
    history = gradkern.History.open(tmp_path)
    assert history.steps.tolist() == [2, 4]
    np.testing.assert_allclose(history.norm, loop.norms[1::2], rtol=1e-6)


@pytest.mark.parametrize("way", ["function", "clipper"])
def test_a_monitor_is_opened_for_own_clips_of_a_script(tmp_path, way):
    """As `gradkern run --monitor` does for a script that clips with gradkern."""
    loop, opened = Loop(), []
    clipper = gradkern.GradClipper(loop.model, LIMIT)

    def open_for(params):
        assert {id(p) for p in params} == {id(p) for p in loop.model.parameters()}
        opened.append(gradkern.GradMonitor(loop.model, loop.optimizer, tmp_path))
        return opened[-1]

    gradkern.patch_torch()
    bridge.on_unknown(open_for)
    loop.train(OWN["clip_grad_norm_"][0] if way == "function" else lambda _: clipper.clip_())
    (monitor,) = opened
    monitor.close()
    assert bridge.called
    loop.assert_recorded(tmp_path)


def test_skipped_with_a_loss_and_a_clipper_that_unscales(tmp_path):
    """What the docs recommend for loops that record a loss and train with a GradScaler."""
    loop, scaler = Loop(), torch.amp.GradScaler("cpu", init_scale=4.0)
    clipper = gradkern.GradClipper(loop.model, LIMIT)
    monitor = gradkern.GradMonitor(loop.model, loop.optimizer, tmp_path)
    with monitor, gradkern.patched_torch(monitor):
        for row in range(STEPS):
            loop.optimizer.zero_grad()
            loss = (loop.model(torch.randn(5, 6)) * (float("inf") if row == 1 else 1.0)).square().mean()
            scaler.scale(loss).backward()
            clipper.clip_(scaler=scaler, optimizer=loop.optimizer)
            monitor.record(loss=loss)
            scaler.step(loop.optimizer)
            scaler.update()
    history = gradkern.History.open(tmp_path)
    assert history.skipped.tolist() == [False, True, False, False]
    assert np.isfinite(history.loss).tolist() == [True, False, True, True]


def test_without_a_monitor_nobody_observes():
    with gradkern.patched_torch():
        assert observing.observer is None


def test_weights_are_those_without_a_monitor(tmp_path):
    def clip(loop):
        gradkern.clip_grad_norm_(loop.model.parameters(), LIMIT)

    plain, observed = Loop(), monitored(Loop(), tmp_path, clip)
    plain.train(clip)
    for mine, theirs in zip(plain.model.parameters(), observed.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# ---- several clips in one step ----


def by_value(loop):
    torch.nn.utils.clip_grad_value_(loop.model.parameters(), 0.01)


def by_norm(limit):
    return lambda loop: torch.nn.utils.clip_grad_norm_(loop.model.parameters(), limit)


def of_layer(layer, limit):
    return lambda loop: gradkern.clip_grad_norm_(loop.model[layer].parameters(), limit)


SEVERAL = {
    "value, then norm": ([by_value, by_norm(0.02)], 0.02),
    "norm, then value": ([by_norm(0.02), by_value], 0.02),
    "norm, then a smaller one": ([by_norm(0.05), by_norm(0.02)], 0.02),
    "norm, then a larger one": ([by_norm(0.02), by_norm(0.05)], 0.02),
    "a measurement, then norm": ([by_norm(float("inf")), by_norm(0.02)], 0.02),
    "all, then each layer": ([by_norm(0.05), of_layer(0, 0.02), of_layer(2, 0.02)], 0.05),
}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(("clips", "threshold"), SEVERAL.values(), ids=SEVERAL)
def test_several_clips_are_one_step_from_before_the_first(tmp_path, clips, threshold, set_to_none):
    loop = Loop()

    def clip(loop):
        for one in clips:
            one(loop)

    monitored(loop, tmp_path, clip, set_to_none=set_to_none)
    loop.assert_recorded(tmp_path, threshold)


def test_a_layer_then_all(tmp_path):
    """The rows of the second clip were not changed by the first. The total covers both reads."""
    loop = Loop()

    def clip(loop):
        of_layer(0, 0.02)(loop)
        by_norm(0.05)(loop)

    monitored(loop, tmp_path, clip)
    history = gradkern.History.open(tmp_path)
    np.testing.assert_allclose(history.norm, loop.norms, rtol=1e-6)
    np.testing.assert_allclose(history.total_norm, np.linalg.norm(loop.norms, axis=1), rtol=1e-6)


def test_the_coefficient_is_that_of_both_clips(tmp_path):
    loop = Loop()
    clips = SEVERAL["norm, then a smaller one"][0]
    monitored(loop, tmp_path, lambda loop: [clip(loop) for clip in clips])
    history = gradkern.History.open(tmp_path)
    np.testing.assert_allclose(history.clip_coef * history.total_norm, 0.02, rtol=1e-3)


@pytest.mark.parametrize("zeroed", [False, True], ids=["accumulated", "zeroed in place"])
def test_new_gradients_without_a_step_are_another_step(tmp_path, zeroed):
    """A loop without optimizers that the monitor knows: the next clip closes the step."""
    loop = Loop()
    with gradkern.GradMonitor(loop.model, run_dir=tmp_path) as monitor, gradkern.patched_torch(monitor):
        for _ in range(3):
            if zeroed:
                loop.model.zero_grad(set_to_none=False)
            loop.model(torch.randn(5, 6)).square().mean().backward()
            loop.norms.append([p.grad.norm().item() for p in loop.model.parameters()])
            gradkern.clip_grad_norm_(loop.model.parameters(), LIMIT)
    loop.assert_recorded(tmp_path)


# ---- blocks ----


def test_blocks_that_overlap(tmp_path):
    loops = Loop(0), Loop(1)
    monitors = [
        gradkern.GradMonitor(loop.model, loop.optimizer, tmp_path / str(i)) for i, loop in enumerate(loops)
    ]
    first, second = (gradkern.patched_torch(monitor) for monitor in monitors)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    for loop in loops:
        loop.train(by_norm(LIMIT))
    second.__exit__(None, None, None)
    assert torch.nn.utils.clip_grad_norm_.__module__ == "torch.nn.utils.clip_grad"
    for monitor in monitors:
        monitor.close()
    loops[1].assert_recorded(tmp_path / "1")
    assert len(gradkern.History.open(tmp_path / "0")) == 0


def test_blocks_of_one_monitor_that_overlap(tmp_path):
    loop = Loop()
    with gradkern.GradMonitor(loop.model, loop.optimizer, tmp_path) as monitor:
        first, second = gradkern.patched_torch(monitor), gradkern.patched_torch(monitor)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        loop.train(by_norm(LIMIT))
        second.__exit__(None, None, None)
        assert observing.observer is None
    loop.assert_recorded(tmp_path)


def test_a_block_leaves_what_was_attached_before(tmp_path):
    loop = Loop()
    with gradkern.GradMonitor(loop.model, loop.optimizer, tmp_path) as monitor:
        gradkern.patch_torch(monitor)
        with gradkern.patched_torch(monitor), gradkern.patched_torch():
            pass
        loop.train(by_norm(LIMIT))
    loop.assert_recorded(tmp_path)
