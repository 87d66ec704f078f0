"""Several models as one run: one step of the history holds a call of record for each of them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from gradkern import GradClipper, GradkernWarning, GradMonitor, History, diagnose
from gradkern.monitor.models.parts import Parts
from tests.support.files import assert_summary_is_right


class Gan:
    """A generator and a discriminator of points on a circle."""

    def __init__(self):
        torch.manual_seed(0)
        self.models = {
            "G": nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(0.1), nn.Linear(16, 2)),
            "D": nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.1), nn.Linear(16, 1)),
        }
        self.optimizers = {
            name: torch.optim.Adam(model.parameters(), lr=lr, betas=(0.5, 0.99))
            for (name, model), lr in zip(self.models.items(), (1e-3, 2e-3))
        }

    def loss(self, part):
        generator, discriminator = self.models["G"], self.models["D"]
        fake = generator(torch.randn(32, 4))
        if part == "G":
            return nn.functional.softplus(-discriminator(fake)).mean()
        angle = torch.rand(32, 1) * 6.28
        real = torch.cat([angle.sin(), angle.cos()], dim=1)
        on_fake = nn.functional.softplus(discriminator(fake.detach()))
        return (on_fake + nn.functional.softplus(-discriminator(real))).mean()

    def step(self, part, record):
        """One optimizer step of a part; `record` gets the part's loss after backward."""
        optimizer = self.optimizers[part]
        optimizer.zero_grad()
        loss = self.loss(part)
        loss.backward()
        record(part, loss)
        optimizer.step()


@pytest.fixture
def gan():
    return Gan()


def clipping(gan, monitor, max_norm=1.0):
    clippers = {name: GradClipper(model, max_norm) for name, model in gan.models.items()}
    seen = []

    def record(part, loss):
        stats = clippers[part].clip_()
        seen.append((part, stats, loss.item()))
        monitor.record(stats, part=part, loss=loss)

    return record, seen


def test_a_step_holds_both_parts(tmp_path, gan):
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradkernWarning)
        with GradMonitor(gan.models, gan.optimizers, tmp_path, update_every=4) as monitor:
            record, seen = clipping(gan, monitor, 0.05)
            for _ in range(20):
                for part in ("D", "G"):
                    gan.step(part, record)
            history = monitor.history()
    assert history.steps.tolist() == list(range(1, 21)) and history.parts == ("G", "D")
    assert history.names == tuple(f"{n}.{p}" for n, m in gan.models.items() for p, _ in m.named_parameters())
    d, g = seen[::2], seen[1::2]
    norms = np.stack([np.concatenate([b.norm, a.norm]) for (_, a, _), (_, b, _) in zip(d, g)])
    np.testing.assert_array_equal(history.norm, norms)
    both = [np.hypot(a.total_norm.item(), b.total_norm.item()) for (_, a, _), (_, b, _) in zip(d, g)]
    np.testing.assert_allclose(history.total_norm, both, rtol=1e-6)
    np.testing.assert_allclose(history.groups["D"].total_norm, [a.total_norm.item() for _, a, _ in d])
    np.testing.assert_allclose(history.groups["G"].factor, [b.clip_coef.item() for _, b, _ in g])
    assert (history.groups["G"].threshold == 0.05).all() and (history.threshold == 0.05).all()
    np.testing.assert_allclose(history.extra["loss/D"], [loss for *_, loss in d], rtol=1e-6)
    np.testing.assert_allclose(history.extra["loss/G"], [loss for *_, loss in g], rtol=1e-6)
    assert not history.has_loss.any() and history.has_grad.all()
    assert history.lr_groups.tolist() == [[1e-3, 2e-3]] * 20
    factors = np.stack(
        [[b.clip_coef.item()] * 4 + [a.clip_coef.item()] * 4 for (_, a, _), (_, b, _) in zip(d, g)]
    )
    np.testing.assert_allclose(history.factor, factors, rtol=1e-6)
    np.testing.assert_allclose(history.clip_coef, factors.min(axis=1), rtol=1e-6)
    assert set(history.phase) == {"before_clip"}
    assert_summary_is_right(history, 7)


def test_periodic_statistics_are_of_both_parts(tmp_path, gan):
    with GradMonitor(gan.models, gan.optimizers, tmp_path, update_every=4) as monitor:
        record, _ = clipping(gan, monitor)
        before = {}
        for step in range(1, 9):
            if step == 8:
                before = {n: [p.detach().clone() for p in m.parameters()] for n, m in gan.models.items()}
            for part in ("D", "G"):
                gan.step(part, record)
        history = monitor.history()
    assert history.update_steps.tolist() == [*history.histogram_steps.tolist(), 4, 8] == [1, 2, 4, 8]
    assert history.update_exact.all() and np.isfinite(history.update_ratio).all()
    expected = [
        ((p - old).norm() / old.norm()).item()
        for name in ("G", "D")
        for p, old in zip(gan.models[name].parameters(), before[name])
    ]
    np.testing.assert_allclose(history.update_ratio[-1], expected, rtol=1e-4)
    assert (history.histogram.sum(axis=2) > 0).all() and np.isfinite(history.ever_nonzero).all()
    assert (history.zeros[3] >= 0).tolist() == [False, True] * 4


def test_a_part_that_comes_again_begins_the_next_step(tmp_path, gan):
    with GradMonitor(gan.models, gan.optimizers, tmp_path, update_every=1) as monitor:
        record, _ = clipping(gan, monitor)
        for _ in range(2):
            for part in ("D", "D", "D", "G"):
                gan.step(part, record)
        assert monitor.step == 6
        history = monitor.history()
    of_g = [name.startswith("G.") for name in history.names]
    of_d = [not is_g for is_g in of_g]
    has_g = history.has_grad[:, of_g].any(axis=1)
    assert history.steps.tolist() == list(range(1, 7)) and has_g.tolist() == [False, False, True] * 2
    assert np.isnan(history.extra["loss/G"]).tolist() == [True, True, False] * 2
    assert np.isnan(history.groups["G"].total_norm).tolist() == [True, True, False] * 2
    assert history.update_steps.tolist() == list(range(1, 7))
    assert np.isfinite(history.update_ratio[:, of_d]).all()
    assert np.isnan(history.update_ratio[:, of_g]).all(axis=1).tolist() == [True, True, False] * 2


def test_statistics_tell_their_part_and_steps_can_be_numbered(tmp_path, gan):
    with GradMonitor(gan.models, list(gan.optimizers.values()), tmp_path) as monitor:
        for step in (5, 7):
            for part in ("G", "D"):

                def record(part, loss, step=step):
                    monitor.record(gradkern.measure(gan.models[part]), loss=loss, step=step)

                gan.step(part, record)
        gan.step("G", lambda p, loss: monitor.record(part="G", loss=loss, step=9))
        gan.step("D", lambda p, loss: monitor.record(part="D", loss=loss, step=10))
        monitor.amend(7, part="G", loss=0.25)
        monitor.close()
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == [5, 7, 9, 10]
        assert history.has_grad[:, [0, 4]].tolist() == [[True, True]] * 2 + [[True, False], [False, True]]
        assert history.extra["loss/G"][1] == 0.25 and set(history.extra) == {"loss/G", "loss/D"}
        assert history.params["D.0.weight"]["group"] == 1 and history.params["G.0.weight"]["kind"] == "Linear"


def test_a_loss_that_is_added_before_the_last_part_of_the_step(tmp_path, gan):
    with GradMonitor(gan.models, gan.optimizers, tmp_path) as monitor:
        for part, loss in (("D", 0.5), ("G", 0.25)):
            gan.step(part, lambda p, loss: monitor.record(part=p))
            monitor.amend(1, part=part, loss=loss)
            monitor.flush()  # what was submitted is in the file; the step itself waits for its last part
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == [1]
        assert (history.extra["loss/D"][0], history.extra["loss/G"][0]) == (0.5, 0.25)


def test_a_step_of_all_models_together(tmp_path, gan):
    everything = [p for model in gan.models.values() for p in model.parameters()]
    with GradMonitor(gan.models, gan.optimizers, tmp_path) as monitor:
        (gan.loss("G") + gan.loss("D")).backward()
        monitor.record(part="D")
        monitor.record(loss=1.5)
        monitor.record(GradClipper(everything, 0.5).clip_(), loss=2.5)
        total = gradkern.measure(everything).total_norm.item()
        history = monitor.history()
    assert history.steps.tolist() == [1, 2, 3] and history.loss[1:].tolist() == [1.5, 2.5]
    assert history.has_grad.sum(axis=1).tolist() == [4, 8, 8] and set(history.names) == set(history.params)
    np.testing.assert_allclose(history.total_norm[1] * history.clip_coef[2], total, rtol=1e-5)
    for part in ("G", "D"):
        of_part = [name.startswith(part) for name in history.names]
        expected = np.linalg.norm(history.norm[:, of_part], axis=1)
        np.testing.assert_allclose(history.groups[part].total_norm[1:], expected[1:], rtol=1e-6)
        np.testing.assert_allclose(history.groups[part].factor[1:], [np.nan, history.clip_coef[2]])
    assert len(history.names) == 8


def test_every_thins_out_whole_steps(tmp_path, gan):
    with GradMonitor(gan.models, gan.optimizers, tmp_path, every=3) as monitor:
        record, _ = clipping(gan, monitor)
        for _ in range(7):
            for part in ("D", "G"):
                gan.step(part, record)
        history = monitor.history()
    assert history.steps.tolist() == [3, 6] and history.has_grad.all()


def test_a_resume_begins_a_whole_step(tmp_path, gan):
    with GradMonitor(gan.models, gan.optimizers, tmp_path) as monitor:
        record, _ = clipping(gan, monitor)
        for _ in range(5):
            for part in ("D", "G"):
                gan.step(part, record)
        state = monitor.state_dict()
        gan.step("D", record)  # the process ends in the middle of step 6
    with GradMonitor(gan.models, gan.optimizers, tmp_path) as monitor:
        monitor.load_state_dict(state)
        record, _ = clipping(gan, monitor)
        for _ in range(2):
            for part in ("D", "G"):
                gan.step(part, record)
        history = monitor.history()
    assert history.steps.tolist() == list(range(1, 8)) and history.has_grad.all()
    assert [branch.from_step for branch in history.branches] == [6]


def test_clips_of_one_part_by_patched_torch(tmp_path, gan):
    clip = torch.nn.utils
    with GradMonitor(gan.models, gan.optimizers, tmp_path) as monitor, gradkern.patched_torch(monitor):
        for step in range(4):
            for part in ("D", "G"):

                def record(part, loss, step=step):
                    clip.clip_grad_norm_(gan.models[part].parameters(), 0.1)
                    if step % 2:
                        monitor.record(loss=loss)

                gan.step(part, record)
        history = monitor.history()
    assert history.steps.tolist() == [1, 2, 3, 4] and history.has_grad.all()
    np.testing.assert_array_equal(history.max_norm, history.threshold)
    assert (history.groups["D"].threshold == 0.1).all() and (history.groups["G"].factor < 1).any()
    assert np.isfinite(history.extra["loss/D"]).tolist() == [False, True] * 2
    assert set(history.extra) == {"loss/D", "loss/G"} and set(history.phase) == {"before_clip"}


def test_a_parameter_of_two_models_has_two_names(tmp_path):
    table = nn.Embedding(5, 3)
    models = {"a": nn.Sequential(table, nn.Linear(3, 1)), "b": nn.Sequential(table, nn.Linear(3, 2))}
    with GradMonitor(models, None, tmp_path) as monitor:
        for name in ("a", "b"):
            models[name](torch.arange(5)).square().sum().backward()
            monitor.record(gradkern.measure(models[name]), part=name)
        history = monitor.history()
    assert np.isnan(history.max_norm).all()  # nothing was clipped
    assert len(history) == 1 and [n for n in history.names if n.endswith("0.weight")] == [
        "a.0.weight",
        "b.0.weight",
    ]
    assert history.has_grad.all()


def test_facts_are_of_all_models(tmp_path, gan):
    with GradMonitor(gan.models, gan.optimizers, tmp_path) as monitor:
        record, _ = clipping(gan, monitor)
        for _ in range(2):
            for part in ("D", "G"):
                gan.step(part, record)
        facts = monitor.history().facts
    assert facts["modules"]["G"] == "Sequential" and facts["modules"]["D.1"] == "LeakyReLU"
    assert [(entry["name"], entry["lr"]) for entry in facts["optimizers"]] == [("G", 1e-3), ("D", 2e-3)]
    assert facts["optimizers"][1]["parameters"] == ["D.0.weight", "D.0.bias", "D.2.weight", "D.2.bias"]
    assert {name: policy["max_norm"] for name, policy in facts["policy"]["parts"].items()} == {
        "D": 1.0,
        "G": 1.0,
    }
    assert facts["graph"]["unused"] == [] and facts["gradient_dtypes"] == {"torch.float32": "all"}


def test_a_healthy_gan_has_no_alarm_and_a_faulty_generator_is_named(tmp_path):
    for name, faulty in (("healthy", False), ("faulty", True)):
        gan = Gan()
        if faulty:
            layers = [part for _ in range(12) for part in (nn.Linear(4, 4), nn.Sigmoid())]
            gan.models["G"] = nn.Sequential(*layers, nn.Linear(4, 2))
            gan.optimizers["G"] = torch.optim.Adam(gan.models["G"].parameters(), lr=1e-3)
        with GradMonitor(gan.models, gan.optimizers, tmp_path / name) as monitor:
            record, _ = clipping(gan, monitor, 10.0)
            for _ in range(60):
                for part in ("D", "G"):
                    gan.step(part, record)
            findings = [finding for finding in diagnose(monitor.history()) if finding.is_alarm]
        if faulty:
            assert "vanishing_gradient" in {finding.kind for finding in findings}
            assert all(layer.startswith("G.") for finding in findings for layer in finding.layers)
        else:
            assert findings == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.record(part="E"), ValueError, r"part: expected one of 'G', 'D', got 'E'"),
        (lambda m: m.record(part=""), ValueError, r"part: expected one of 'G', 'D', got ''"),
        (lambda m: m.amend(1, part="E", loss=1.0), ValueError, r"part: expected one of 'G', 'D'"),
    ],
)
def test_unknown_parts_record_nothing(tmp_path, gan, call, error, message):
    with GradMonitor(gan.models, gan.optimizers, tmp_path) as monitor:
        gan.loss("D").backward()
        with pytest.raises(error, match=message):
            call(monitor)
        assert monitor.step == 0


def test_wrong_models_are_refused(tmp_path, gan):
    stray = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match=r"optimizer\['0'\]: has no parameter of any of the models"):
        GradMonitor(gan.models, [stray], tmp_path)
    with pytest.raises(ValueError, match="at least one model by a non-empty name"):
        GradMonitor({}, None, tmp_path)
    with pytest.raises(TypeError, match=r"model\['w'\]: expected a model, got a tensor"):
        GradMonitor({"w": nn.Parameter(torch.ones(1))}, None, tmp_path)
    with pytest.raises(ValueError, match="was given to a monitor of one model"):
        GradMonitor(gan.models["G"], None, tmp_path).record(part="G")


def test_optimizers_go_to_the_models_whose_parameters_they_have():
    models = {"1": nn.Linear(2, 2), "0": nn.Linear(3, 3)}
    optimizers = {str(i): torch.optim.SGD(m.parameters(), lr=0.1) for i, m in enumerate(models.values())}
    parts = Parts(models, optimizers, Gan().step)  # a bound method; never called
    assert [part.optimizers for part in parts.each] == [(optimizers["0"],), (optimizers["1"],)]
