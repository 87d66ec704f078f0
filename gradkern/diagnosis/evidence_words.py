"""The evidence of a finding on one line, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from gradkern._util.text import number

#: What the numbers are whose names do not say it.
_WORDS = {
    "argument_std": "rms of the pre-activations",
    "baseline": "typical norm around it",
    "batches_of_one_class": "part of the batches of one class",
    "clip_rate": "part of the steps that were clipped",
    "crest": "gradient, largest element / rms",
    "dead_share": "part of the units that are inactive",
    "decay_a_step": "part of the weights that decay takes each step",
    "first_error": "size of the first errors",
    "first_slope": "norm of the first gradient times that of the weights, over the loss",
    "gain": "typical gain of a layer",
    "growth": "growth by a factor of",
    "input_rms": "rms of the inputs",
    "lag_1_correlation": "correlation of the loss's changes from step to step",
    "largest": "largest norm",
    "layers_gone": "layers that shrank",
    "layers_in_chain": "layers",
    "ln_classes": "loss of guessing",
    "steps_above_0.2": "times a step moved the weights by over 20 %",
    "lowest": "lowest loss",
    "lr": "learning rate",
    "median_factor": "typical factor of a clip",
    "median_norm": "typical norm",
    "median_update_ratio": "typical change of the weights in a step",
    "moved_in_all": "change of the weights in all steps",
    "largest_update_ratio": "largest change of the weights in a step",
    "nonfinite_parameters": "parameters with inf or NaN at the first such step",
    "nonfinite_steps": "steps with inf or NaN",
    "norm_growth_before": "growth of the norm before, by a factor of",
    "positions": "positions in the sequence",
    "recurrent_gain": "gain of the recurrent weights",
    "share_below_2^-14": "part of the elements below 2^-14",
    "share_below_2^-22": "part of the elements whose gradients are zero or mostly below 2^-22",
    "share_of_elements": "part of all elements",
    "shrinkage": "norm of the weights, end / start",
    "swing": "typical jump of the loss",
    "travel": "length of the steps, relative to those of unrelated gradients",
    "zero_layers": "matrices that are zero",
}
#: Powers of ten, which are shown as factors.
_POWERS = {
    "decades_over_depth": "gradient, last layer / first",
    "decades_of_weights": "the same, weights only",
    "decades_of_forward_signal": "forward signal, last layer / first",
    "decades_over_time": "gradient, largest / at the start of the sequence",
}
#: 1 if something holds; nothing is shown for 0.
_FLAGS = {
    "by_steps": "steps do little else than shrink the weights",
    "in_turn": "batches of several kinds take turns",
    "negated": "the loss is the negative of one that is never below zero",
    "nonfinite_loss": "the loss is not finite either",
    "out_of_calm": "nothing was large before",
    "summed": "the gradient looks like a sum over steps",
    "outputs_gated": "a ReLU is in front of the cross-entropy",
    "reached": "the loss depends on the parameters",
    "uphill": "steps go up the loss",
}
#: Numbers that say nothing if they are smaller, or NaN: an ordinary course doubles or triples the norm.
_LEAST = {"norm_growth_before": 10.0}


def in_words(evidence: Mapping[str, float]) -> str:
    """The evidence on one line: "learning rate: 0.1 · lowest loss: 0.3"."""
    return " · ".join(filter(None, (_words(name, float(value)) for name, value in evidence.items())))


def _words(name: str, value: float) -> str:
    if name in _FLAGS:
        return _FLAGS[name] if value else ""
    if name in _LEAST and not value >= _LEAST[name]:
        return ""
    if name in _POWERS:
        factor = f"1e{value:+.0f}" if abs(value) > 300 else number(10.0**value, 2)  # beyond float64
        return f"{_POWERS[name]}: {factor}"
    return f"{_WORDS.get(name, name.replace('_', ' '))}: {number(value, 3)}"
