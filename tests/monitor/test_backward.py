"""Facts about the graph of a loss that is recorded as a number, or has opaque parts."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradkern import GradMonitor
from gradkern.monitor import backward, graph
from gradkern.monitor.backward import MOST_HOOKS, BackwardWatch


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def loss_of(model):
    return F.cross_entropy(model(torch.randn(5, 4)), torch.randint(0, 3, (5,)))


def hooks(model):
    return sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


def recorded(folder, model, make_loss, *, steps=6, given=lambda loss: loss.item()):
    """The fact "graph", and how many hooks there were after each step."""
    optimizer, counts = torch.optim.SGD(model.parameters(), 0.01), []
    with GradMonitor(model, optimizer, folder) as monitor:
        for _ in range(steps):
            loss = make_loss()
            loss.backward()
            monitor.record(loss=given(loss))
            optimizer.step()
            optimizer.zero_grad()
            counts.append(hooks(model))
        return monitor.history().facts["graph"], counts


@pytest.mark.parametrize(
    "given",
    [lambda loss: loss.detach(), lambda loss: loss.item(), lambda loss: None],
    ids=["detached", "number", "none"],
)
def test_a_loss_without_a_graph_is_found_where_backward_runs(tmp_path, given):
    model = network()
    facts, counts = recorded(tmp_path / "number", model, lambda: loss_of(model), given=given)
    whole, none = recorded(tmp_path / "tensor", model, lambda: loss_of(model), given=lambda loss: loss)
    assert facts == {**whole, "walks": 3} and whole["loss"] == "nll_loss" and len(whole["order"]) == 4
    assert counts == [4, 4, 4, 0, 0, 0] and none == [0] * 6


@pytest.mark.parametrize("given", [lambda loss: loss, lambda loss: loss.item()], ids=["tensor", "number"])
def test_behind_a_reentrant_checkpoint_only_the_ending_is_known(tmp_path, given):
    from torch.utils.checkpoint import checkpoint

    model = network()

    def make_loss():
        outputs = checkpoint(model, torch.randn(5, 4, requires_grad=True), use_reentrant=True)
        return F.cross_entropy(outputs, torch.randint(0, 3, (5,)))

    facts, _ = recorded(tmp_path, model, make_loss, given=given)
    assert facts.pop("walks") >= 3
    assert facts == {"ending": ["log_softmax", "nll_loss"], "loss": "nll_loss"}


def test_of_parameters_that_are_gathered_only_the_ending_is_known(tmp_path):
    """As with FSDP, whose layers use other tensors than the model lists."""
    model, gathered = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        loss = loss_of(gathered)
        loss.backward()
        monitor.record(loss=loss)
        facts = monitor.history().facts["graph"]
    assert facts == {
        "ending": ["addmm", "relu", "addmm", "log_softmax", "nll_loss"],
        "loss": "nll_loss",
        "walks": 1,
    }


def test_several_losses_in_one_backward_are_left_alone(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        for _ in range(4):
            torch.autograd.backward([loss_of(model), loss_of(model)])
            monitor.record(loss=1.0)
        assert monitor.history().facts["graph"] == {}


def test_the_backward_of_another_model_is_not_taken_for_it(tmp_path):
    model, other = network(), network()

    def make_loss():
        loss_of(other).backward()
        return model(torch.randn(5, 4)).square().mean()

    facts, _ = recorded(tmp_path, model, make_loss)
    assert facts["loss"] == "mean" and len(facts["order"]) == 4


def test_a_hook_of_another_thread_finds_the_caller_of_backward():
    """As on a GPU, where hooks run in the thread of the device."""
    found, model = [], network()
    watch = BackwardWatch(found.append)

    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            device = threading.Thread(target=watch._hook, args=(grad,))
            device.start()
            device.join()
            return grad

    watch.arm([])
    root = Ask.apply(loss_of(model))
    root.backward()
    assert found == [root.grad_fn]


def test_hooks_are_few_and_go_with_the_monitor(tmp_path):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
    model[0].requires_grad_(False)
    monitor = GradMonitor(model, torch.optim.SGD(model.parameters(), 0.1), tmp_path)
    model(torch.randn(1, 2)).sum().backward()
    monitor.record(loss=1.0)
    assert 0 < hooks(model) <= MOST_HOOKS and not hooks(model[0]) and hooks(model[99])
    assert not hooks(copy.deepcopy(model))
    torch.save(model, io.BytesIO())
    monitor.close()
    assert hooks(model) == 0


def test_a_monitor_that_is_dropped_takes_its_hooks_along(tmp_path):
    model = network()
    monitor = GradMonitor(model, torch.optim.SGD(model.parameters(), 0.1), tmp_path)
    loss_of(model).backward()
    monitor.record(loss=1.0)
    assert hooks(model)
    dropped = weakref.ref(monitor)
    del monitor
    gc.collect()
    assert dropped() is None and hooks(model) == 0


def test_nothing_is_watched_where_backward_is_compiled():
    watch, model = BackwardWatch(print), network()
    with torch._dynamo.config.patch(compiled_autograd=True):
        watch.arm(list(model.parameters()))
    assert hooks(model) == 0


@pytest.mark.parametrize("given", [lambda loss: loss, lambda loss: loss.item()], ids=["tensor", "number"])
def test_of_a_compiled_model_only_the_ending_is_known(tmp_path, given):
    torch._dynamo.reset()
    model = network()
    compiled = torch.compile(model, backend="aot_eager")
    facts, _ = recorded(tmp_path, model, lambda: loss_of(compiled), given=given)
    assert facts["ending"] == ["log_softmax", "nll_loss"] and facts["loss"] == "nll_loss"


@pytest.mark.parametrize("given", [lambda loss: loss, lambda loss: loss.item()], ids=["tensor", "number"])
@pytest.mark.parametrize("name", ["name", "_sequence_nr", "variable"])
def test_a_context_of_a_function_may_have_any_attributes(tmp_path, name, given):
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            setattr(ctx, name, "any")
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    model = network()

    def make_loss():
        outputs = Twice.apply(model(torch.randn(5, 4)))
        return Twice.apply(F.cross_entropy(outputs, torch.randint(0, 3, (5,))))

    facts, _ = recorded(tmp_path, model, make_loss, given=given)
    assert facts["operations"] == ["addmm", "relu", "addmm", "twice", "log_softmax", "nll_loss", "twice"]
    assert len(facts["order"]) == 4 and facts["unused"] == []


@pytest.mark.parametrize("given", [lambda loss: loss, lambda loss: loss.item()], ids=["tensor", "number"])
def test_a_graph_that_cannot_be_read_stops_no_training(tmp_path, monkeypatch, given):
    monkeypatch.setattr(graph._Walk, "run", lambda *_: 1 / 0)
    model = network()
    assert recorded(tmp_path, model, lambda: loss_of(model), given=given)[0] == {}


def test_an_error_of_a_hook_stops_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr(backward, "_root_of_backward", lambda: 1 / 0)
    model = network()
    assert recorded(tmp_path, model, lambda: loss_of(model))[0] == {}


@pytest.mark.parametrize("calls", [2, 5])
def test_micro_batches_have_one_loss(tmp_path, calls):
    model = network()

    def make_loss():
        for _ in range(calls - 1):
            loss_of(model).backward()
        return loss_of(model)

    facts, counts = recorded(tmp_path / "several", model, make_loss)
    assert facts == recorded(tmp_path / "one", model, lambda: loss_of(model))[0]
    assert counts == [4, 4, 4, 0, 0, 0]


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)


@pytest.mark.parametrize("from_step", [1, 3])
def test_of_several_losses_no_single_one_is_described(tmp_path, from_step):
    """As of an actor and a critic, which call `backward` one after the other."""
    model, steps = TwoHeads(), itertools.count(1)

    def make_loss():
        hidden = torch.tanh(model.body(torch.randn(5, 4)))
        if next(steps) >= from_step:
            model.value(hidden).square().mean().backward(retain_graph=True)
        return F.cross_entropy(model.policy(hidden), torch.randint(0, 3, (5,)))

    facts, counts = recorded(tmp_path / "number", model, make_loss)
    assert facts == {} and counts[-1] == 0


def test_a_critic_is_not_described_by_the_loss_of_its_generator(tmp_path):
    generator, critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh()), nn.Linear(4, 1)
    models = {"generator": generator, "critic": critic}
    optimizers = {name: torch.optim.SGD(model.parameters(), 0.01) for name, model in models.items()}
    with GradMonitor(models, optimizers, tmp_path) as monitor:
        for _ in range(6):
            loss = F.softplus(critic(generator(torch.randn(5, 2)))).mean()
            loss.backward()
            monitor.record(loss=loss.item(), part="generator")
            critic.zero_grad()
            loss = critic(torch.randn(5, 4)).square().mean()
            loss.backward()
            monitor.record(loss=loss.item(), part="critic")
            generator.zero_grad()
            critic.zero_grad()
        facts = monitor.history().facts["graph"]
    assert facts["operations"] == ["addmm", "tanh", "addmm", "softplus", "mean"]
    assert "unused" not in facts


def test_a_parameter_with_a_gradient_is_not_unused(tmp_path):
    """It may have it from a loss that was not recorded."""
    model = TwoHeads()

    def make_loss():
        model.value(torch.randn(5, 8)).sum().backward()
        return model.body(torch.randn(5, 4)).sum()

    facts, _ = recorded(tmp_path, model, make_loss, given=lambda loss: loss)
    assert facts["unused"] == ["policy.weight", "policy.bias"] and len(facts["order"]) == 2


def test_not_all_parameters_are_asked_for_a_hook(monkeypatch):
    params = [nn.Parameter(torch.zeros(1)) for _ in range(1000)]
    asked, takes = [], backward._takes_hook
    monkeypatch.setattr(backward, "_takes_hook", lambda p: asked.append(p) or takes(p))
    watch = BackwardWatch(print)
    watch.arm(params)
    places = [next(i for i, p in enumerate(params) if p is one) for one in asked]
    assert len(places) == MOST_HOOKS and places[0] == 999 and places[-1] < 1000 / MOST_HOOKS
    watch.close()
    for p in params[10:]:
        p.requires_grad_(False)
    watch.arm(params)
    assert sum(bool(p._post_accumulate_grad_hooks) for p in params) == 10
    watch.close()


def test_dynamo_leaves_the_hooks_alone(tmp_path):
    """As where `backward` is called by a compiled function."""
    from torch._dynamo.utils import counters

    def traced(given):
        torch._dynamo.reset()
        counters.clear()
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)

        @torch.compile(backend="aot_eager")
        def step(x, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss.detach()

        counts = []
        with (
            GradMonitor(model, optimizer, tmp_path / str(given)) as monitor,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            for _ in range(5):
                loss = step(torch.randn(5, 4), torch.randint(0, 3, (5,)))
                monitor.record(loss=loss.item() if given else torch.tensor(0.0).requires_grad_() * 1)
                counts.append(hooks(model))
                optimizer.zero_grad()
        assert counts == ([4, 4, 4, 0, 0] if given else [0] * 5)
        breaks = {reason.partition("\n")[0] for reason in counters["graph_break"]}
        return breaks, {str(warning.message) for warning in caught}

    assert traced(True) == traced(False)
