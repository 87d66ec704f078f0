"""Copies and pickles of objects with a monitor, a clipper or statistics."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import gradkern
from gradkern import GradkernWarning, GradMonitor
from tests.support.loops import small_model


class Trained(nn.Module):
    """Like a Lightning module, it has the objects that its hooks use."""

    def __init__(self):
        super().__init__()
        self.net = small_model()
        self.clipper = gradkern.GradClipper(self.net, 1.0)
        self.monitor = None

    def forward(self, x):
        return self.net(x)


@pytest.fixture
def trained(tmp_path):
    module = Trained()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with GradMonitor(module.net, optimizer, tmp_path) as module.monitor:
        yield module


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved,
    "averaged": lambda module: torch.optim.swa_utils.AveragedModel(module).module,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_model_records_nothing_and_says_so_once(trained, how):
    trained.net(torch.ones(2, 6)).sum().backward()
    trained.monitor.record()
    copied = COPIES[how](trained)
    assert "a copy" in repr(copied.monitor) and copied.monitor.step == 1
    with pytest.warns(GradkernWarning, match="Build a GradMonitor for the copied model") as caught:
        for _ in range(3):
            copied.monitor.record(loss=1.0)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert copied.monitor.flush() and copied.monitor.lost == 0
    copied.monitor.load_state_dict(copied.monitor.state_dict())
    copied.monitor.close()
    trained.monitor.record()
    assert trained.monitor.flush()
    assert copied.monitor.history().steps.tolist() == [1, 2]  # the original's


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_clipper_clips_the_copy(trained, how):
    copied = COPIES[how](trained)
    for module, value in ((trained, 3.0), (copied, 100.0)):
        for param in module.net.parameters():
            param.grad = torch.full_like(param, value)
    copied.clipper.clip_()
    assert all((param.grad == 3.0).all() for param in trained.net.parameters())
    total = torch.cat([param.grad.double().flatten() for param in copied.net.parameters()]).norm()
    assert abs(total.item() - 1.0) < 1e-5
    copied.net[0] = nn.Linear(6, 8)  # the copy's plan follows the copy
    assert not copied.clipper.clip_().has_grad[0] and trained.clipper.clip_().has_grad[0]


def test_a_shallow_copy_shares_the_monitor(trained):
    assert copy.copy(trained).monitor is trained.monitor


def test_a_clipper_that_is_tied_to_an_optimizer_names_itself(trained):
    optimizer = torch.optim.SGD(trained.net.parameters(), lr=0.1, fused=True)
    trained.clipper = gradkern.GradClipper(trained.net, 1.0, on_nonfinite="skip", optimizer=optimizer)
    with pytest.raises(TypeError, match=r"\[GradClipper\] copy: .*build another"):
        copy.deepcopy(trained)


def _work(module, queue):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for param in module.net.parameters():
            param.grad = torch.ones_like(param)
        stats = module.clipper.clip_()
        module.monitor.record(stats)
    queue.put((pickle.dumps(stats), [str(w.message) for w in caught if w.category is GradkernWarning]))


@pytest.mark.integration
def test_a_spawned_process(trained, tmp_path):
    """The model is pickled to the process, and its statistics are pickled back and recorded here."""
    trained.net.share_memory()
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_work, args=(trained, queue))
    process.start()
    stats, messages = queue.get()
    process.join()
    stats = pickle.loads(stats)
    assert len(messages) == 1 and "records nothing" in messages[0]
    trained.monitor.record(stats)
    history = trained.monitor.history()
    assert history.steps.tolist() == [1] and history.names == trained.clipper.names
    assert all(param.grad is None for param in trained.net.parameters())
