"""Stable-Baselines3: the algorithms that clip, against a run without gradkern. They accumulate no batches."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import gradkern
from tests.integrations.installed import framework
from tests.integrations.job import CLIP, LR, Job, close

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sb3 = framework("stable_baselines3")
    BaseCallback = framework("stable_baselines3.common.callbacks").BaseCallback

STEPS = 40  # of the environment, in each of two pieces of training
OPTIONS = {
    "A2C": {"n_steps": 5},
    "PPO": {"n_steps": 10, "batch_size": 5, "n_epochs": 2},
    "DQN": {"learning_starts": 4, "train_freq": 4, "batch_size": 4},
}
#: Steps of the optimizer for each phase of training, whose last loss is logged.
PHASE = {"A2C": 1, "PPO": 4, "DQN": 1}


class AddLoss(BaseCallback):
    """The class of docs/frameworks/others.md, extended to A2C, which logs the terms of its loss."""

    def __init__(self, monitor):
        super().__init__()
        self.monitor = monitor

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        logged = self.logger.name_to_value
        loss = logged.get("train/loss")
        if "train/policy_loss" in logged:
            loss = logged["train/policy_loss"] + self.model.vf_coef * logged["train/value_loss"]
            loss += self.model.ent_coef * logged["train/entropy_loss"]
        if loss is not None:
            self.monitor.amend(self.monitor.step, loss=loss)

    _on_training_end = _on_rollout_start


def trained(algorithm, run, saved):
    """The policy after two pieces of training, the second from the checkpoint of the first, and the learning
    rate of each step."""
    rates, cls = [], getattr(sb3, algorithm)
    agent = cls(
        "MlpPolicy", "CartPole-v1", learning_rate=lambda remaining: LR * remaining, seed=0, device="cpu",
        max_grad_norm=CLIP, policy_kwargs={"net_arch": [8]}, **OPTIONS[algorithm],
    )  # fmt: skip
    for piece in range(2):
        if piece:
            environment = sb3.common.env_util.make_vec_env("CartPole-v1", seed=0)
            agent = cls.load(saved, env=environment, device="cpu")
            agent.set_random_seed(1)
        monitor = Job(run, len(rates)).monitor(agent.policy, agent.policy.optimizer)
        agent.policy.optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        agent.learn(STEPS, None if run is None else AddLoss(monitor), reset_num_timesteps=not piece)
        agent.save(saved)
        close()
    return agent.policy, rates


@pytest.mark.parametrize("algorithm", OPTIONS)
def test_training(tmp_path, run, measured, assert_same_weights, algorithm):
    with measured.watching():
        plain, rates = trained(algorithm, None, tmp_path / "plain.zip")
    policy, _ = trained(algorithm, run, tmp_path / "ours.zip")
    assert_same_weights(plain, policy, rtol=1e-4, atol=1e-6)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == list(range(1, len(rates) + 1)) and len(rates) >= 16
    norms = np.nan_to_num(history.norm)  # NaN: DQN's target network, which has no gradients
    np.testing.assert_allclose(norms, np.array(measured), rtol=1e-3, atol=1e-6)
    assert set(history.phase) == {"before_clip"} and history.clipped.any()
    np.testing.assert_allclose(history.lr, rates, rtol=1e-6)
    assert len(set(rates)) > 4
    logged = slice(PHASE[algorithm] - 1, None, PHASE[algorithm])
    assert history.has_loss.sum() == len(rates) // PHASE[algorithm]
    np.testing.assert_allclose(history.loss[logged], measured.losses[logged], rtol=1e-3, atol=1e-6)
