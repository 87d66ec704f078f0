"""GradScaler in one pass, and the coefficient passed to fused optimizers, compared with torch's own steps."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import types
import weakref

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState

import gradkern
from gradkern.kernels import scale
from tests.support.wrapped import WrappedOptimizer

FUSED = {
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-2, fused=True),
    "SGD": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, fused=True),
}


def model_and_input() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(8, 6)


def scaled_backward(model: nn.Module, x: torch.Tensor, scaler: GradScaler, poison: bool = False) -> None:
    scaler.scale(model(x).square().sum()).backward()
    if poison:
        model[2].weight.grad[0, 0] = math.inf


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
@pytest.mark.parametrize("fused", [False, True])
def test_training_with_a_scaler_follows_torch(fused, max_norm):
    ours, x = model_and_input()
    theirs = copy.deepcopy(ours)
    scaler, reference = (GradScaler("cpu", init_scale=1024.0, growth_interval=2) for _ in range(2))
    optimizer, other = (torch.optim.AdamW(m.parameters(), lr=1e-2, fused=fused) for m in (ours, theirs))
    clipper = gradkern.GradClipper(ours, max_norm)
    for step in range(6):
        poison = step == 3
        scaled_backward(ours, x, scaler, poison)
        scaled_backward(theirs, x, reference, poison)
        stats = clipper.clip_(scaler=scaler, optimizer=optimizer)
        reference.unscale_(other)
        total = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        if not poison:
            torch.testing.assert_close(stats.total_norm, total)  # of the unscaled gradients
            for p, q in zip(ours.parameters(), theirs.parameters()):
                torch.testing.assert_close(p.grad, q.grad)
        for s, o in ((scaler, optimizer), (reference, other)):
            s.step(o)
            s.update()
            o.zero_grad()
        assert scaler.get_scale() == reference.get_scale()
        for p, q in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(p, q)
    assert scaler.get_scale() < 8192  # the poisoned step halved it


def test_the_scaler_is_left_as_unscale_leaves_it():
    model, x = model_and_input()
    scaler, optimizer = GradScaler("cpu"), torch.optim.SGD(model.parameters(), lr=0.1)
    scaled_backward(model, x, scaler)
    clipper = gradkern.GradClipper(model, 1.0)
    clipper.clip_(scaler=scaler, optimizer=optimizer)
    state = scaler._per_optimizer_states[id(optimizer)]
    assert state["stage"] is OptState.UNSCALED
    assert {k: float(v) for k, v in state["found_inf_per_device"].items()} == {torch.device("cpu"): 0.0}
    before = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"\[GradClipper.clip_\] unscale_\(\) has already been called"):
        clipper.clip_(scaler=scaler, optimizer=optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) is being called after step\(\)"):
        clipper.clip_(scaler=scaler, optimizer=optimizer)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before))


def test_float16_gradients_and_foreign_parameters_are_refused():
    model, _ = model_and_input()
    scaler, optimizer = GradScaler("cpu"), torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale(torch.ones(()))
    half = copy.deepcopy(model).half()
    for m in (model, half):
        for p in m.parameters():
            p.grad = torch.ones_like(p)
    half_optimizer = torch.optim.SGD(half.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"params\[0\] \('0.weight'\): Attempting to unscale FP16 gradients"):
        gradkern.GradClipper(half, 1.0).clip_(scaler=scaler, optimizer=half_optimizer)
    with pytest.raises(ValueError, match=r"optimizer: it does not have '0.weight', which has a gradient"):
        gradkern.GradClipper(model, 1.0).clip_(
            scaler=scaler, optimizer=torch.optim.SGD(list(model.parameters())[1:], lr=0.1)
        )
    with pytest.raises(
        ValueError, match=r"optimizer: 4 of its parameters have gradients, but only 2 of the clipper's"
    ):
        gradkern.GradClipper(model[2], 1.0).clip_(scaler=scaler, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"optimizer: with scaler=, pass the optimizer that it steps"):
        gradkern.GradClipper(model, 1.0).clip_(scaler=scaler)


def test_a_disabled_scaler_is_no_scaler():
    model, x = model_and_input()
    scaler, optimizer = GradScaler("cpu", enabled=False), torch.optim.SGD(model.parameters(), lr=0.1)
    scaled_backward(model, x, scaler)
    stats = gradkern.GradClipper(model, 0.5).clip_(scaler=scaler, optimizer=optimizer)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert float(stats.total_norm) > 0.5
    assert float(norm) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_folded_step_is_a_clipped_step(kind, scaled, monkeypatch):
    folded, x = model_and_input()
    clipped = copy.deepcopy(folded)
    optimizer, other = FUSED[kind](folded.parameters()), FUSED[kind](clipped.parameters())
    scaler, reference = (GradScaler("cpu", init_scale=256.0, enabled=scaled) for _ in range(2))
    fold = gradkern.GradClipper(folded, 0.5, optimizer=optimizer, fold=True)
    clip = gradkern.GradClipper(clipped, 0.5)
    for step in range(4):
        poison = scaled and step == 2
        scaled_backward(folded, x, scaler, poison)
        scaled_backward(clipped, x, reference, poison)
        with monkeypatch.context() as patch:
            patch.setattr(scale.C, "scale_", lambda *_: pytest.fail("a scale pass ran"))
            before = [p.grad.clone() for p in folded.parameters()]
            a = fold.clip_(scaler=scaler)
            assert all(torch.equal(p.grad, b) for p, b in zip(folded.parameters(), before))
        b = clip.clip_(scaler=reference, optimizer=other)
        torch.testing.assert_close(a.total_norm, b.total_norm)
        assert float(a.clip_coef) == pytest.approx(float(b.clip_coef))
        for s, o in ((scaler, optimizer), (reference, other)):
            s.step(o)
            s.update()
            o.zero_grad()
        assert not hasattr(optimizer, "grad_scale")
        assert not hasattr(optimizer, "found_inf")
        for p, q in zip(folded.parameters(), clipped.parameters()):
            torch.testing.assert_close(p, q)


def test_nothing_to_clip_hands_over_no_divisor():
    model, x = model_and_input()
    optimizer = FUSED["AdamW"](model.parameters())
    clipper = gradkern.GradClipper(model, 1e9, optimizer=optimizer, fold=True)
    model(x).sum().backward()
    clipper.clip_()
    assert not hasattr(optimizer, "grad_scale")  # a divisor of 1 would write every gradient back
    assert float(optimizer.found_inf) == 0.0


def test_a_verdict_that_no_step_used_is_forgotten():
    model, x = model_and_input()
    optimizer = FUSED["SGD"](model.parameters())
    clipper = gradkern.GradClipper(model, 0.1, optimizer=optimizer, fold=True)
    model(x).square().sum().backward()
    clipper.clip_()
    assert float(optimizer.grad_scale) > 1
    for p in model.parameters():
        p.grad.mul_(1e-6)
    clipper.clip_()
    assert not hasattr(optimizer, "grad_scale")


def test_a_fold_can_skip_the_step():
    model, x = model_and_input()
    optimizer = FUSED["AdamW"](model.parameters())
    clipper = gradkern.GradClipper(model, 0.1, on_nonfinite="skip", optimizer=optimizer, fold=True)
    model(x).square().sum().backward()
    model[0].bias.grad[0] = math.nan
    before = [p.detach().clone() for p in model.parameters()]
    assert bool(clipper.clip_().skip_step)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": True}, r"fold: needs a fused optimizer; pass it as optimizer="),
        (
            {"fold": True, "optimizer": "fused", "on_nonfinite": "zero"},
            r"fold: cannot be combined with on_nonfinite='zero'",
        ),
        ({"fold": True, "optimizer": "plain"}, r"expected a fused optimizer, got SGD without fused=True"),
        (
            {"optimizer": "fused"},
            r"has no effect with on_nonfinite='propagate'. It is used with on_nonfinite='skip'",
        ),
    ],
)
def test_errors(options, message):
    model, _ = model_and_input()
    made = {"fused": FUSED["SGD"], "plain": lambda ps: torch.optim.SGD(ps, lr=0.1)}
    if "optimizer" in options:
        options = {**options, "optimizer": made[options["optimizer"]](model.parameters())}
    with pytest.raises(ValueError, match=message):
        gradkern.GradClipper(model, 1.0, **options)


def test_another_optimizer_than_the_clippers_is_refused():
    model, x = model_and_input()
    optimizer, other = (FUSED["SGD"](model.parameters()) for _ in range(2))
    scaler = GradScaler("cpu")
    scaled_backward(model, x, scaler)
    clipper = gradkern.GradClipper(model, 1.0, optimizer=optimizer, fold=True)
    with pytest.raises(ValueError, match=r"optimizer: the clipper was built with another one"):
        clipper.clip_(scaler=scaler, optimizer=other)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 0.0])
def test_a_scale_on_a_device_gives_what_a_number_gives(norm_type):
    """On a GPU, scalers keep their scale on the device. The reported norms do not depend on that."""
    from gradkern.clipping import route

    model, x = model_and_input()
    model(x).square().sum().backward()
    params, names = list(model.parameters()), tuple("abcd")
    number = route.measure("test", params, names, norm_type, False, 0.25)
    scale = torch.tensor(0.25, dtype=torch.float64)
    tensor = route.measure("test", params, names, norm_type, False, scale)
    for key in ("norm", "l2_norm", "max_abs", "total_norm", "decision_norm"):
        assert torch.equal(getattr(number, key), getattr(tensor, key).to(getattr(number, key).dtype)), key


def test_a_disabled_scaler_is_none():
    model, x = model_and_input()
    optimizer = FUSED["AdamW"](model.parameters())
    scaler = GradScaler("cpu", enabled=False)
    scaled_backward(model, x, scaler, poison=True)
    before = [p.detach().clone() for p in model.parameters()]
    clipper = gradkern.GradClipper(model, 1.0, on_nonfinite="skip", optimizer=optimizer)
    assert clipper.clip_(scaler=scaler, optimizer=optimizer).skip_step
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_after_a_raise_the_scale_can_fall():
    model, x = model_and_input()
    optimizer = FUSED["SGD"](model.parameters())
    scaler = GradScaler("cpu", init_scale=1024.0)
    scaled_backward(model, x, scaler, poison=True)
    before = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"expected finite gradients, got inf or NaN in: '2.weight'"):
        gradkern.GradClipper(model, 1.0, on_nonfinite="raise").clip_(scaler=scaler, optimizer=optimizer)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters()))
    scaler.update()
    assert scaler.get_scale() == 512.0


def test_fold_needs_an_optimizer_of_the_same_parameters():
    model, _ = model_and_input()
    first = FUSED["SGD"](model[0].parameters())
    with pytest.raises(
        ValueError, match=r"fold: the optimizer does not have '2.weight', which would not be clipped"
    ):
        gradkern.GradClipper(model, 1.0, optimizer=first, fold=True)
    whole = FUSED["SGD"](model.parameters())
    with pytest.raises(
        ValueError,
        match=r"the optimizer has parameters that the clipper does not have \(2\), which would",
    ):
        gradkern.GradClipper(model[0], 1.0, optimizer=whole, fold=True)


def test_a_step_that_the_scaler_skips_is_said_to_be_skipped():
    model, x = model_and_input()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=8.0)
    clipper = gradkern.GradClipper(model, 1.0)
    said = []
    for poison in (False, True, False):
        optimizer.zero_grad()
        scaled_backward(model, x, scaler, poison)
        said.append(bool(clipper.clip_(scaler=scaler, optimizer=optimizer).skip_step))
        scaler.step(optimizer)
        scaler.update()
    assert said == [False, True, False]


def test_what_is_no_scaler_is_refused():
    param = nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    clipper = gradkern.GradClipper([param], 0.1)
    with pytest.raises(
        TypeError, match=r"\[GradClipper.clip_\] scaler: expected a torch.amp.GradScaler, got float"
    ):
        clipper.clip_(scaler=2.0)
    assert param.grad.tolist() == [1.0, 1.0]


def test_clippers_that_are_gone_leave_one_hook_that_does_nothing():
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=1.0, fused=True)
    for _ in range(3):
        clipper = gradkern.GradClipper([param], 0.1, optimizer=optimizer, fold=True)
        del clipper
    assert len(optimizer._optimizer_step_post_hooks) == 1
    param.grad = torch.ones(2)
    gradkern.GradClipper([param], 0.1, optimizer=optimizer, fold=True).clip_()  # its verdict is still valid
    optimizer.step()
    assert torch.allclose(1 - param.detach(), torch.full((2,), 0.1 / 2**0.5))
    assert not hasattr(optimizer, "grad_scale")


def halves() -> tuple[list[nn.Parameter], torch.optim.Optimizer, list[gradkern.GradClipper]]:
    """Two parameters, each with a clipper of its own, in one optimizer."""
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(params, lr=1.0, fused=True)
    made = [gradkern.GradClipper([p], 9.0, on_nonfinite="skip", optimizer=optimizer) for p in params]
    return params, optimizer, made


def fill(params: list[nn.Parameter], *values: float) -> None:
    for p, value in zip(params, values):
        p.grad = torch.full_like(p, value)


@pytest.mark.parametrize("bad", [0, 1])
def test_of_two_clippers_each_can_skip_the_step(bad):
    params, optimizer, (first, second) = halves()
    fill(params, *(math.nan if i == bad else 1.0 for i in range(2)))
    assert [bool(c.clip_().skip_step) for c in (first, second)] == [bad == 0, bad == 1]
    optimizer.step()
    assert all(p.tolist() == [1.0, 1.0] for p in params)
    assert not hasattr(optimizer, "found_inf")
    fill(params, 1.0, 1.0)
    for clipper in (first, second):
        clipper.clip_()
    optimizer.step()
    assert all(p.tolist() == [0.0, 0.0] for p in params)


def test_a_clipper_replaces_its_own_verdict_and_no_other():
    params, optimizer, (first, second) = halves()
    fill(params, math.nan, 1.0)
    first.clip_()
    second.clip_()
    fill(params, 1.0, 1.0)
    first.clip_()  # no step was taken, so that its verdict on the other gradients is void
    assert float(optimizer.found_inf) == 0.0
    fill(params, 1.0, math.nan)
    second.clip_()
    first.clip_()
    assert float(optimizer.found_inf) == 1.0
    second.on_nonfinite = "propagate"
    second.clip_()
    assert float(optimizer.found_inf) == 0.0
    optimizer.step()
    assert params[0].tolist() == [0.0, 0.0]


def test_a_fold_keeps_its_divisor_beside_another_clipper():
    params, optimizer, (first, _) = halves()
    fold = gradkern.GradClipper(params, 1.0, optimizer=optimizer, fold=True)
    fill(params, 3.0, 3.0)
    fold.clip_()
    first.clip_()
    assert float(optimizer.grad_scale) == pytest.approx(6.0)
    assert float(optimizer.found_inf) == 0.0
    optimizer.step()
    assert params[1].tolist() == pytest.approx([0.5, 0.5])
    assert not hasattr(optimizer, "grad_scale")


def test_a_fold_after_the_scaler_s_own_unscaling():
    """`scaler.step` takes over `grad_scale`, and removes it itself."""
    model, x = model_and_input()
    optimizer = FUSED["SGD"](model.parameters())
    scaler = GradScaler("cpu", init_scale=8.0)
    clipper = gradkern.GradClipper(model, 0.1, optimizer=optimizer, fold=True)
    scaled_backward(model, x, scaler)
    scaler.unscale_(optimizer)
    clipper.clip_()
    scaler.step(optimizer)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")


def test_clippers_that_are_gone_before_their_step_leave_no_hooks():
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=1.0, fused=True)
    for step in range(5):
        param.grad = torch.full((2,), math.nan if step < 4 else 1.0)
        gradkern.GradClipper([param], 9.0, on_nonfinite="skip", optimizer=optimizer).clip_()
        optimizer.step()
        assert len(optimizer._optimizer_step_post_hooks) <= 1
    assert param.tolist() == [0.0, 0.0]
    gradkern.GradClipper([param], 9.0, on_nonfinite="skip", optimizer=optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1


@pytest.mark.parametrize("options", [{"on_nonfinite": "skip"}, {"fold": True}])
def test_a_clipper_that_is_gone_skips_no_step_of_its_successor(options):
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=1.0, fused=True)
    param.grad = torch.tensor([math.nan, 1.0]) if "fold" not in options else torch.full((2,), 1e6)
    gradkern.GradClipper([param], 9.0, optimizer=optimizer, **options).clip_()  # and no step
    param.grad = torch.ones(2)
    clipper = gradkern.GradClipper([param], 9.0, optimizer=optimizer, **options)
    assert clipper.clip_().clip_coef == 1.0
    optimizer.step()
    assert param.tolist() == [0.0, 0.0]


def test_a_clipper_that_is_gone_still_skips_the_step_of_others():
    encoder, decoder = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([encoder, decoder], lr=1.0, fused=True)
    encoder.grad, decoder.grad = torch.full((2,), math.nan), torch.ones(2)
    for param in (encoder, decoder):
        gradkern.GradClipper([param], 9.0, on_nonfinite="skip", optimizer=optimizer).clip_()
    optimizer.step()
    assert encoder.tolist() == decoder.tolist() == [1.0, 1.0]


def test_a_clipper_may_go_while_hooks_run():
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=1.0, fused=True)
    optimizer.register_step_post_hook(lambda *_: held.clear())
    held = [gradkern.GradClipper([param], 9.0, on_nonfinite="skip", optimizer=optimizer)]
    optimizer.register_step_post_hook(lambda *_: None)
    param.grad = torch.ones(2)
    optimizer.step()
    assert not held and param.tolist() == [0.0, 0.0]


def test_a_clipper_keeps_no_optimizer_alive():
    class Trainer:
        pass

    trainer = Trainer()
    param = nn.Parameter(torch.ones(2))
    trainer.optimizer = FUSED["SGD"]([param])
    trainer.optimizer.register_step_post_hook(lambda *_, owner=trainer: None)
    trainer.clipper = gradkern.GradClipper([param], 9.0, on_nonfinite="skip", optimizer=trainer.optimizer)
    gone = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("options", [{"on_nonfinite": "skip"}, {"fold": True}])
def test_a_wrapped_optimizer_gets_the_verdict_within(options):
    param = nn.Parameter(torch.ones(2))
    optimizer = WrappedOptimizer(torch.optim.SGD([param], lr=1.0, fused=True))
    clipper = gradkern.GradClipper([param], 1.0, optimizer=optimizer, **options)
    param.grad = torch.tensor([0.6, 0.8]) * 10
    if "fold" not in options:
        param.grad[0] = math.nan
    clipper.clip_()
    optimizer.step()
    moved = torch.zeros(2) if "fold" not in options else torch.tensor([0.6, 0.8])
    torch.testing.assert_close(param.detach(), 1.0 - moved)
    assert not hasattr(optimizer.optimizer, "found_inf")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps, lambda c: copy.deepcopy([c])])
def test_a_clipper_with_an_optimizer_is_not_copied(copied):
    param = nn.Parameter(torch.ones(2))
    clipper = gradkern.GradClipper([param], 0.1, on_nonfinite="skip", optimizer=FUSED["SGD"]([param]))
    with pytest.raises(TypeError, match=r"\[GradClipper\] copy: .* cannot be copied or pickled; build"):
        copied(clipper)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_clipper_within_a_model_is_copied_with_it(copied):
    model, x = model_and_input()
    model.clipper = gradkern.GradClipper(model, 0.1)
    twin = copied(model)
    model.clipper.clip_()
    for net in (model, twin):
        net(x).square().sum().backward()
    stats = twin.clipper.clip_()
    assert stats.names == model.clipper.names and stats.total_norm > 0.1
    torch.testing.assert_close(gradkern.measure(twin).total_norm, torch.tensor(0.1))
    assert gradkern.measure(model).total_norm == stats.total_norm  # untouched
    assert stats._identities == tuple(map(id, twin.parameters()))


def test_a_fold_cannot_be_set_to_zero_later():
    model, _ = model_and_input()
    clipper = gradkern.GradClipper(model, 0.1, optimizer=FUSED["SGD"](model.parameters()), fold=True)
    with pytest.raises(ValueError, match=r"fold: cannot be combined with on_nonfinite='zero'"):
        clipper.on_nonfinite = "zero"
    assert clipper.on_nonfinite == "propagate"
    clipper.on_nonfinite = "skip"


def test_a_fold_looks_again_at_an_optimizer_that_grows():
    model, x = model_and_input()
    model[2].requires_grad_(False)
    optimizer = FUSED["SGD"](model[0].parameters())
    clipper = gradkern.GradClipper(model, 0.1, optimizer=optimizer, fold=True)
    model[2].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    model(x).square().sum().backward()
    clipper.clip_()  # still the clipper's parameters alone
    optimizer.step()
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(
        ValueError, match=r"\[GradClipper.clip_\] fold: the optimizer has parameters .* \(1\)"
    ):
        clipper.clip_()
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before))
    assert not hasattr(optimizer, "grad_scale")


def test_a_loaded_state_that_is_not_fused_is_noticed():
    model, x = model_and_input()
    optimizer = FUSED["AdamW"](model.parameters())
    clipper = gradkern.GradClipper(model, 0.1, optimizer=optimizer, fold=True)
    optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
    model(x).square().sum().backward()
    with pytest.raises(ValueError, match=r"\[GradClipper.clip_\] optimizer: expected a fused optimizer"):
        clipper.clip_()


def test_anything_that_can_say_whether_it_is_enabled_is_a_scaler():
    model, x = model_and_input()
    model(x).sum().backward()
    clipper = gradkern.GradClipper(model, 0.1)
    for scaler, got in ((GradScaler, "the class GradScaler"), (False, "bool"), (0, "int")):
        with pytest.raises(TypeError, match=f"scaler: expected a torch.amp.GradScaler, got {got}"):
            clipper.clip_(scaler=scaler)
    disabled = types.SimpleNamespace(is_enabled=lambda: False)
    assert float(clipper.clip_(scaler=disabled).clip_coef) < 1


@pytest.mark.parametrize("kind", ["float8", "inference"])
def test_zero_with_a_scaler(kind):
    dtype = torch.float8_e4m3fn if kind == "float8" else torch.float32
    param = torch.zeros(3).to(dtype).requires_grad_()
    with torch.inference_mode(kind == "inference"):
        param.grad = torch.tensor([1.0, math.nan, 2.0]).to(dtype)
    scaler, optimizer = GradScaler("cpu", init_scale=8.0), torch.optim.SGD([param], lr=0.1)
    scaler.scale(torch.ones(()))
    gradkern.GradClipper([param], 1.0, on_nonfinite="zero").clip_(scaler=scaler, optimizer=optimizer)
    assert param.grad.float().tolist() == [0.0, 0.0, 0.0]
