"""The faulty runs of the fourth set: a healthy one of `healthy` with one change.

Each change says what is expected of a headline, and why the label (`labels.py`) tolerates other kinds.
"""

from __future__ import annotations

from benchmarks.diagnosis.faulty import Case, Change, added, cases_of, changed, faster
from benchmarks.diagnosis.sets.fourth.healthy import HEALTHY

__all__ = ["fourth_cases"]

_PLAIN = {"norm": "none", "residual": False}

#: Name of the fault: (key of `LABELS`, what it does to a recipe).
CHANGES: dict[str, tuple[str, Change]] = {
    # Slopes of at most a quarter, eleven times: the gradient vanishes, and no other kind describes it.
    "sigmoid_eleven": ("vanishing", changed(activation="sigmoid", depth=11, init="default", **_PLAIN)),
    # The signal fades on the way in and the gradient on the way out: the cause is the initialization.
    "tanh_small": ("vanishing_signal", changed(activation="tanh", depth=15, init="gain:0.4", **_PLAIN)),
    "normal_small": ("vanishing_signal", changed(depth=7, init="normal:0.015", **_PLAIN)),
    # Weights that are too large: an initialization, seen as gradients that explode from the first step.
    "gain_4": ("wrong_gain", changed(depth=8, init="gain:4", activation="relu", **_PLAIN)),
    "normal_1": ("wrong_gain", changed(depth=5, init="normal:1.0", activation="relu", **_PLAIN)),
    # All units of a layer are the same, whatever the gradients do.
    "constant": ("constant", changed(init="constant:0.1")),
    # Outputs at the ends of the range: saturation. If large weights cause it, slopes vanish, too.
    "thrown": ("saturated", changed(init="normal:1.6", depth=4, **_PLAIN)),
    "thrown_far": ("saturated", changed(init="normal:5.0", **_PLAIN)),
    # Inputs of 255, targets of 500: gradients of that size, whose steps are too large.
    "pixels": ("large_inputs", changed(input_scale=255.0, **_PLAIN)),
    "cents": ("large_inputs", changed(target_scale=500.0)),
    # Steps go uphill: norms grow without end, and weights with them.
    "uphill": ("exploding", added("ascend")),
    # Gradients add up: they grow with each step, and so do the steps.
    "never_zeroed": ("summed", added("no_zero_grad")),
    # A rate far beyond what is stable; kinds that describe the units, the loss or the weights are also true.
    "eighty_times": ("large_steps", faster(80.0, warmup=0)),
    "three_hundred_times": ("large_steps", faster(300.0, warmup=0)),
    # Weights move little or not at all.
    "millionth": ("small_steps", faster(1e-6)),
    "rate_none": ("small_steps", changed(lr=0.0)),
    "step_forgotten": ("small_steps", added("no_step")),
    "rounded_away": ("small_steps", faster(2e-5)),
    # A part is in no optimizer that steps: only that part, by name.
    "votes_forgotten": ("left_out", added("missing:votes")),
    "condition_forgotten": ("left_out", added("missing:condition")),
    "keys_forgotten": ("left_out", added("missing:keys")),
    "stem_forgotten": ("left_out", added("missing:stem")),
    "core_forgotten": ("left_out", added("missing:core")),
    "heads_unstepped": ("left_out", added("unstepped")),
    # A part is cut off, or never used: only that part has no gradient.
    "detached": ("no_gradient", added("detach")),
    "unused": ("no_gradient", added("unused")),
    # Biases of -30: dead units that cannot recover, and no input for the layers after them.
    "dead_first": ("dead", added("dead:0", activation="relu")),
    "dead_second": ("dead", added("dead:1", activation="relu")),
    # A rate that kills the units at once: large steps, or the dead units that they leave.
    "killed": ("dead_by_steps", changed(lr=3.0)),
    # One non-finite element spreads to everything. If it begins in one parameter, that one is named.
    "nan_batch": ("nonfinite", added("nan_batch:23")),
    "inf_batch": ("nonfinite", added("inf_batch:37")),
    "nan_loss": ("nonfinite", added("nan_loss:31")),
    "nan_in_votes": ("nonfinite", added("nan_gradient:votes")),
    "nan_in_layer": ("nonfinite", added("nan_gradient:layers.1.weight")),
    "scale_too_high": ("nonfinite", changed(loss_scale=2.0**40)),
    # A decay of the wrong sign: weights grow by the same factor at each step, and gradients may follow.
    "inflated": ("growth", added("inflate:1.04")),
    # A weight decay that is stronger than learning.
    "decayed": ("collapse", changed(weight_decay=3.0)),
    "decayed_apart": ("collapse", changed(weight_decay=60.0)),
    # One bad batch: a spike, whose gradient is an explosion at that step.
    "spike": ("spike", added("spike:47")),
    "outlier": ("spike", added("outlier:42")),
    # The loss goes up and down around a valley whose walls are too steep for the rate.
    "swinging_10": ("swings", faster(10.0)),
    "swinging_15": ("swings", faster(15.0)),
    "swinging_20": ("swings", faster(20.0)),
    "swinging_40": ("swings", faster(40.0)),
    "swinging_60": ("swings", faster(60.0)),
    # Nothing can be learned from random labels. The diagnosis has to say so, without an alarm.
    "labels_mixed": ("stays", added("random_labels")),
    # A limit far below the norms, which makes steps too small.
    "choked": ("throttled", changed(max_norm=2e-4)),
    # A limit far above all norms. The diagnosis has to say so, without an alarm.
    "limit_far_off": ("unclipped", changed(max_norm=1e5)),
    # Gradients below what 16 bits can hold.
    "float16": ("underflow", changed(precision="float16")),
    "amp_float16": ("underflow", changed(precision="amp_float16")),
}

#: The faults that are applied to each healthy recipe.
_PAIRS = {
    # vectors, tables, sets and graphs
    "graph_conv": "step_forgotten labels_mixed",
    "graph_conv_sgd": "choked",
    "graph_attention": "eighty_times",
    "additive": "outlier inflated",
    "modulated": "condition_forgotten detached",
    "modulated_swiss": "thrown",
    "capsules": "votes_forgotten nan_in_votes",
    "weight_norm_sgd": "choked",
    "bag": "sigmoid_eleven dead_first",
    "bag_sgd": "choked",
    "table_transformer": "outlier",
    "table_transformer_wine": "decayed_apart",
    "gated": "eighty_times nan_in_layer limit_far_off labels_mixed inflated",
    "gated_lion": "decayed_apart",
    "several": "sigmoid_eleven dead_first pixels limit_far_off uphill normal_1",
    "several_clipped": "choked limit_far_off never_zeroed",
    "exits": "gain_4",
    # physical fields
    "hamiltonian": "nan_loss thrown",
    "operator": "sigmoid_eleven detached outlier",
    "operator_tanh": "thrown",
    "fourier_operator": "uphill",
    "fourier_features": "sigmoid_eleven dead_second gain_4 outlier",
    "diffusion": "three_hundred_times stem_forgotten",
    # images
    "transposed": "uphill nan_loss",
    "warped": "dead_second gain_4",
    "conv_mixer": "stem_forgotten labels_mixed",
    "standardized": "choked",
    "waves": "inf_batch labels_mixed",
    # sequences
    "spatial_gating": "eighty_times nan_batch",
    "fourier_mixing": "eighty_times",
    "linear_attention": "limit_far_off",
    "parallel": "three_hundred_times nan_loss",
    "parallel_shared": "limit_far_off",
    "independent": "three_hundred_times",
    "normed_lstm": "eighty_times",
    "liquid_patches": "limit_far_off",
    "temporal_tanh": "thrown",
    "pointer": "keys_forgotten",
    "memory": "detached rate_none labels_mixed",
    "filler": "eighty_times",
    "transcriber": "core_forgotten",
    # losses and ways of training
    "smoothed": "sigmoid_eleven decayed millionth",
    "focal_sgd": "killed never_zeroed choked pixels",
    "hinge": "constant detached dead_first inflated never_zeroed",
    "mixup": "gain_4 decayed dead_second",
    "attacked": "constant",
    "angle": "unused",
    "quantiles": "inflated",
    "spread": "unused",
    "survival": "thrown",
    "lookahead": "outlier",
    "sharp": "killed",
    "two_optimizers": "heads_unstepped",
    "bfloat16_weights": "rounded_away",
    "amp_float16_scaled": "scale_too_high",
    # plain networks
    "swiss_relu": "tanh_small constant outlier dead_second",
    "swiss_sgd": "cents choked never_zeroed thrown",
    "bits_sigmoid": "thrown_far",
    "photo_sgd": "cents decayed choked never_zeroed",
    "heat_tanh": "thrown normal_small spike inflated",
    "pendulum_elu": "normal_small outlier uphill inflated",
    "units_digits": "float16 amp_float16",
    "units_swiss": "amp_float16",
    "units_clusters": "amp_float16",
    "units_heat": "amp_float16",
    "units_bits": "amp_float16",
    "softmax_wine": "swinging_10",
    "softmax_digits": "swinging_15",
    "softmax_cancer": "swinging_40",
    "softmax_moons": "swinging_60",
    "softmax_iris": "swinging_20",
}


def fourth_cases() -> list[Case]:
    """Each case of the fourth set."""
    return list(cases_of(_PAIRS, HEALTHY, CHANGES))
