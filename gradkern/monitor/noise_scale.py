"""`GradientNoiseScale`: an estimate of the batch size up to which larger batches help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradkern.params.arguments import as_number, as_positive
from gradkern.params.stats import GradStats

_CAPACITY = 1024  # steps whose norms are kept on the device
_STATE = ("steps", "mean_noise", "mean_signal", "noise_noise", "noise_signal", "signal_signal")


@dataclass(frozen=True)
class NoiseScale:
    """An estimate of the gradient noise scale, in samples."""

    value: float
    """`noise` / `signal`; NaN if the signal is not positive."""
    low: float
    high: float
    """95 % interval of the ratio, by Fieller's theorem (1954); infinite if the signal could be 0."""
    noise: float
    """tr(Σ): variance of the gradient of one sample, summed over its elements. Unbiased."""
    signal: float
    """|G|²: squared norm of the true gradient. Unbiased, and therefore sometimes negative."""
    steps: int
    """Number of steps in the estimate."""


class GradientNoiseScale:
    """Estimate the gradient noise scale ``tr(Σ) / |G|²``, in samples.

    For batches below the noise scale, a larger batch gives nearly proportionally better steps. Far above it,
    a larger batch hardly helps.

    From gradients over b and over B samples, ``|G|² = (B |g_B|² - b |g_b|²) / (B - b)`` and
    ``tr(Σ) = (|g_b|² - |g_B|²) / (1/b - 1/B)`` are unbiased. Their ratio is not, so each of the two is
    averaged over steps first. Source: McCandlish et al., "An empirical model of large-batch training", 2018,
    appendix A.1.

    Args:
        small: number of samples in the first micro-batch, which `first` measures.
        big: number of samples in the whole step, over all micro-batches and ranks.
        first_factor: factor that makes the gradient at `first` a mean over its samples: the number of
            micro-batches, if each loss is divided by it.
        total_factor: the same for the gradient at `update`: 1 / number of micro-batches, if losses are not
            divided.
        smoothing: weight of the past in the running means, from 0 to below 1. The noise scale changes during
            training.

    Examples:
        >>> noise = gradkern.GradientNoiseScale(small=8, big=64, first_factor=8)
        >>> for step in range(100):
        ...     for i in range(8):
        ...         (compute_loss(model, next(loader)) / 8).backward()
        ...         if i == 0:
        ...             noise.first(gradkern.measure(model))
        ...     noise.update(clipper.clip_())
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> noise.estimate().value

    Raises:
        TypeError, ValueError: an invalid argument.

    Notes:
        Costs one more read of the gradients per step, for `first`. Synchronises in `estimate` and
        `state_dict`, and every 1,024 steps. Norms must be of order 2. Steps with a norm that is not finite
        are ignored.

        With data-parallel ranks, measure the first micro-batch before gradients are reduced (``no_sync()``).
        `small` then counts the samples of this rank, and `big` those of all ranks.
    """

    def __init__(
        self,
        small: int,
        big: int,
        *,
        first_factor: float = 1.0,
        total_factor: float = 1.0,
        smoothing: float = 0.99,
    ) -> None:
        self.small = as_positive("GradientNoiseScale", "small", small)
        self.big = as_positive("GradientNoiseScale", "big", big)
        if self.big <= self.small:
            raise ValueError(
                f"[GradientNoiseScale] big: expected more samples than small={small}, got {big}; the "
                "estimate is made from their difference"
            )
        self.first_factor = as_positive("GradientNoiseScale", "first_factor", first_factor)
        self.total_factor = as_positive("GradientNoiseScale", "total_factor", total_factor)
        self.smoothing = as_number("GradientNoiseScale", "smoothing", smoothing)
        if not 0 <= self.smoothing < 1:
            raise ValueError(
                f"[GradientNoiseScale] smoothing: expected a number from 0 to below 1, got {smoothing!r}"
            )
        self._first: Tensor | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._sums = dict.fromkeys(_STATE, 0.0)

    def first(self, stats: GradStats) -> None:
        """Take the statistics of the gradient of the first micro-batch, before others are added to it.

        Raises:
            ValueError: the norms are not of order 2.
        """
        self._first = _total(stats, "first")

    def update(self, stats: GradStats) -> None:
        """Take the statistics of the whole gradient of the step, before clipping. Ignored without `first`.

        Raises:
            ValueError: the norms are not of order 2.
        """
        total = _total(stats, "update")
        if self._first is not None:
            self._waiting.append((self._first, total))
        self._first = None
        if len(self._waiting) >= _CAPACITY:
            self._read()

    def estimate(self) -> NoiseScale:
        """The noise scale from the steps so far. Synchronises."""
        self._read()
        s = self._sums
        steps = int(s["steps"])
        if not steps:
            return NoiseScale(math.nan, 0.0, math.inf, math.nan, math.nan, 0)
        past = self.smoothing**steps
        whole = 1 - past
        noise, signal = s["mean_noise"] / whole, s["mean_signal"] / whole
        # The sum of the squared weights of a running mean: 1 / its effective number of steps.
        share = (1 - self.smoothing) * (1 + past) / ((1 + self.smoothing) * whole)
        low, high = 0.0, math.inf
        if share < 1:
            spread = share / (1 - share)  # from the biased variance of the steps to that of their mean
            low, high = _fieller(
                noise,
                signal,
                spread * (s["noise_noise"] / whole - noise * noise),
                spread * (s["noise_signal"] / whole - noise * signal),
                spread * (s["signal_signal"] / whole - signal * signal),
            )
        return NoiseScale(noise / signal if signal > 0 else math.nan, low, high, noise, signal, steps)

    def _read(self) -> None:
        if not self._waiting:
            return
        pairs = torch.stack([torch.stack([a.double(), b.double().to(a.device)]) for a, b in self._waiting])
        self._waiting.clear()
        for first, total in pairs.tolist():
            small, big = (first * self.first_factor) ** 2, (total * self.total_factor) ** 2
            if math.isfinite(small) and math.isfinite(big):
                self._add(small, big)

    def _add(self, small: float, big: float) -> None:
        """Add a step, given the squared norms of its mean gradients."""
        signal = (self.big * big - self.small * small) / (self.big - self.small)
        noise = (small - big) / (1 / self.small - 1 / self.big)
        seen = {
            "mean_noise": noise,
            "mean_signal": signal,
            "noise_noise": noise * noise,
            "noise_signal": noise * signal,
            "signal_signal": signal * signal,
        }
        for name, value in seen.items():
            self._sums[name] += (1 - self.smoothing) * (value - self._sums[name])
        self._sums["steps"] += 1

    def state_dict(self) -> dict[str, float]:
        """The running means. Synchronises."""
        self._read()
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: `state` is not the state of a GradientNoiseScale.
        """
        if set(state) != set(_STATE):
            raise ValueError(
                f"[GradientNoiseScale.load_state_dict] state: expected {sorted(_STATE)}, got {sorted(state)}"
            )
        self._waiting.clear()
        self._sums = {name: float(state[name]) for name in _STATE}


def _total(stats: GradStats, method: str) -> Tensor:
    if stats.norm_type != 2.0:
        raise ValueError(
            f"[GradientNoiseScale.{method}] stats: expected norms of order 2, got {stats.norm_type}"
        )
    return stats.total_norm


def _fieller(
    noise: float, signal: float, noise_noise: float, noise_signal: float, signal_signal: float
) -> tuple[float, float]:
    """The interval of ratios r for which ``noise - r * signal`` is within 1.96 standard deviations of 0.

    Args:
        noise_noise, noise_signal, signal_signal: variances and covariance of the two means.

    Returns:
        The part of the interval that is not negative.
    """
    z2 = 1.959964**2
    a = signal * signal - z2 * signal_signal
    b = noise * signal - z2 * noise_signal
    c = noise * noise - z2 * noise_noise
    if a <= 0 or signal <= 0:  # the signal does not differ from 0
        return 0.0, math.inf
    root = math.sqrt(max(0.0, b * b - a * c))
    return max(0.0, (b - root) / a), max(0.0, (b + root) / a)
