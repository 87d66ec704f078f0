"""The rules of other tools, with their published thresholds, applied to the same recorded runs.

The runs hold the rms of each gradient. Where a tool takes the mean of the absolute values, 0.8 rms stands for
it, as for a normal distribution. Where a tool takes the accuracy of a validation set, the loss stands for it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradkern.diagnosis import RunEvidence

__all__ = ["BASELINES"]

#: Mean of |x| of a normal distribution, in units of its rms.
MEAN_OF_RMS = 0.8

# Amazon SageMaker Debugger, built-in rules: VanishingGradient, WeightUpdateRatio, PoorWeightInitialization
# (ratio of variances), LossNotDecreasing (0.1 % in 10 steps).
SAGEMAKER_VANISHING = 1e-7
SAGEMAKER_UPDATE = (1e-8, 10.0)
SAGEMAKER_VARIANCES = 10.0
SAGEMAKER_LOSS = 0.001
# AutoTrainer (Zhang et al., ICSE 2021): gradients of the first layer against the last one's, zero share of
# dying ReLU, swings of the accuracy, slow convergence; its gate looks only at runs that do not learn.
AUTOTRAINER_VANISHING = (1e-3, 1e-4)
AUTOTRAINER_EXPLODING = 70.0
AUTOTRAINER_DYING = 0.7
AUTOTRAINER_SWING = (0.03, 0.2)
AUTOTRAINER_SLOW = 0.01
AUTOTRAINER_GATE = 0.6
# DeepDiagnosis (Wardat et al., ICSE 2022).
DEEPDIAGNOSIS_VANISHING = 1e-7
DEEPDIAGNOSIS_UPDATE = (1e-5, 1e-1)


def sagemaker(e: RunEvidence) -> frozenset[str]:
    found = set(_nonfinite(e))
    if _any_below(e, SAGEMAKER_VANISHING):
        found.add("vanishing_gradient")
    found |= _updates(e, *SAGEMAKER_UPDATE)
    variances = (e.weight_norm[:1, _matrices(e)].astype(np.float64) ** 2 / e.numel[_matrices(e)]).ravel()
    variances = variances[np.isfinite(variances) & (variances > 0)]
    if len(variances) and variances.max() > SAGEMAKER_VARIANCES * variances.min():
        found.add("poor_initialization")
    windows = e.loss[: len(e.loss) // 10 * 10].reshape(-1, 10).mean(axis=1)
    if (windows[1:] > windows[:-1] * (1 - SAGEMAKER_LOSS)).any():
        found.add("loss_not_decreasing")
    return frozenset(found)


def autotrainer(e: RunEvidence) -> frozenset[str]:
    found = set(_nonfinite(e))
    chain = _matrices(e)
    with np.errstate(divide="ignore", invalid="ignore"):
        first, last = e.rms[:, chain[0]].astype(np.float64), e.rms[:, chain[-1]].astype(np.float64)
        ratio = first / last
    if ((ratio < AUTOTRAINER_VANISHING[0]) & (first < AUTOTRAINER_VANISHING[1])).any():
        found.add("vanishing_gradient")
    if (ratio > AUTOTRAINER_EXPLODING).any():
        found.add("exploding_gradient")
    counted = e.zeros >= 0
    if (np.where(counted, e.zeros, 0) >= AUTOTRAINER_DYING * e.numel).any():
        found.add("dead_units")
    return frozenset(found | _course(e))


def _course(e: RunEvidence) -> set[str]:
    """Swings and slow convergence of the loss relative to its start, with twenty windows in place of
    epochs."""
    if not np.isfinite(e.loss).any() or not e.loss[np.isfinite(e.loss)][0]:
        return set()
    loss = e.loss / abs(e.loss[np.isfinite(e.loss)][0])
    windows = np.array([np.nanmean(w) if np.isfinite(w).any() else np.nan for w in np.array_split(loss, 20)])
    found = set()
    change = np.diff(windows)
    if (change >= AUTOTRAINER_SWING[0]).mean() >= AUTOTRAINER_SWING[1]:
        found.add("loss_oscillating")
    if windows[0] - windows[-1] < AUTOTRAINER_SLOW:
        found |= {"loss_not_decreasing", "update_too_small"}
    return found


def autotrainer_gated(e: RunEvidence) -> frozenset[str]:
    """AutoTrainer's rules, only where the loss ends above 0.6 of its start or is not finite."""
    loss = e.loss[-max(len(e.loss) // 10, 1) :]
    learned = np.isfinite(loss).all() and loss.mean() <= AUTOTRAINER_GATE * e.loss[0]
    return frozenset() if learned else autotrainer(e)


def deepdiagnosis(e: RunEvidence) -> frozenset[str]:
    found = set(_nonfinite(e)) | _updates(e, *DEEPDIAGNOSIS_UPDATE)
    if _any_below(e, DEEPDIAGNOSIS_VANISHING):
        found.add("vanishing_gradient")
    return frozenset(found)


def _matrices(e: RunEvidence) -> list[int]:
    return [i for i, n in enumerate(e.names) if len(e.params.get(n, {}).get("shape", ())) >= 2] or [0]


def _nonfinite(e: RunEvidence) -> set[str]:
    bad = (
        (e.nonfinite > 0).any()
        or not np.isfinite(e.total_norm).all()
        or (e.has_loss & ~np.isfinite(e.loss)).any()
    )
    return {"exploding_gradient", "nonfinite_gradient"} if bad else set()


def _any_below(e: RunEvidence, threshold: float) -> bool:
    return bool(((MEAN_OF_RMS * e.rms < threshold) & e.has_grad).any())


def _updates(e: RunEvidence, low: float, high: float) -> set[str]:
    ratios = e.update_ratio[:, _matrices(e)]
    found = set()
    if (ratios > high).any():
        found.add("update_too_large")
    if (ratios < low).any():
        found.add("update_too_small")
    return found


BASELINES: dict[str, Callable[[RunEvidence], frozenset[str]]] = {
    "SageMaker Debugger": sagemaker,
    "AutoTrainer": autotrainer,
    "AutoTrainer, gated by the loss": autotrainer_gated,
    "DeepDiagnosis": deepdiagnosis,
}
