"""The faulty runs of the fifth set: a healthy one of `healthy` with one change.

Each change says what is expected of a headline; its label (`labels.py`) says what is tolerated.
"""

from __future__ import annotations

import dataclasses

from benchmarks.diagnosis.faulty import Case, Change, added, cases_of, changed, faster
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fifth.healthy import HEALTHY

__all__ = ["fifth_cases"]

_PLAIN = {"norm": "none", "residual": False}


def _withered(recipe: Recipe) -> Recipe:
    """A decoupled weight decay of 8 % per step."""
    return dataclasses.replace(recipe, weight_decay=0.08 / recipe.lr)


def _reversed(recipe: Recipe) -> Recipe:
    """A decoupled weight decay of the wrong sign: weights grow by 4 % per step."""
    return dataclasses.replace(recipe, weight_decay=-0.04 / recipe.lr)


#: Name of the fault: (key of `LABELS`, what it does to a recipe).
CHANGES: dict[str, tuple[str, Change]] = {
    # Slopes of at most a quarter, or a forgotten factor: the gradient shrinks from layer to layer.
    "sigmoid_eight": ("vanishing", changed(activation="sigmoid", depth=8, init="default", **_PLAIN)),
    "tanh_faint": ("vanishing_signal", changed(activation="tanh", depth=9, init="gain:0.3", **_PLAIN)),
    "shrunk": ("vanishing_signal", added("shrunk:0.05", depth=6, **_PLAIN)),
    # Weights that are too large from the start, by their initialization or in one place.
    "gain_4": ("wrong_gain", changed(depth=8, init="gain:4", activation="relu", **_PLAIN)),
    "loud_head": ("wrong_gain", added("loud:head.weight=100")),
    "coarse_embedding": ("wrong_gain", added("coarse:60")),
    # All units of a layer are the same.
    "constant": ("constant", changed(init="constant:0.07")),
    # Outputs at the ends of their range, because of weights or biases.
    "thrown": ("saturated", changed(init="normal:2.0", **_PLAIN)),
    "stuck_first": ("saturated", added("stuck:0")),
    "stuck_second": ("saturated", added("stuck:1")),
    # Inputs of 255, targets of 500: gradients of that size.
    "pixels": ("large_inputs", changed(input_scale=255.0, **_PLAIN)),
    "cents": ("large_inputs", changed(target_scale=500.0)),
    # Steps go uphill, or gradients add up.
    "uphill": ("exploding", added("ascend")),
    "never_zeroed": ("summed", added("no_zero_grad")),
    # A rate far beyond what is stable, from the start or after a while; a sum in place of a mean.
    "eighty_times": ("large_steps", faster(80.0, warmup=0)),
    "growing_rate": ("large_steps", changed(schedule="growing")),
    "summed_loss": ("diverging", added("loss_factor:500")),
    # Weights move little or not at all.
    "millionth": ("small_steps", faster(1e-6)),
    "schedule_spent": ("small_steps", changed(schedule="spent")),
    "epsilon_large": ("small_steps", added("eps:1e5")),
    "step_forgotten": ("small_steps", added("no_step")),
    # A part is in no optimizer, or in a group whose rate is zero.
    "patterns_forgotten": ("left_out", added("missing:patterns")),
    "stem_forgotten": ("left_out", added("missing:stem")),
    "moves_standing": ("left_out", added("standing:moves")),
    "experts_standing": ("left_out", added("standing:experts")),
    "bag_forgotten": ("left_out", added("missing:bag")),
    # A part is cut off, rounded away or never used.
    "look_cut": ("no_gradient", added("cut:look")),
    "gate_cut": ("no_gradient", added("cut:gate")),
    "keys_cut": ("no_gradient", added("cut:qkv.1")),
    "code_cut": ("no_gradient", added("cut:down")),
    "spare": ("no_gradient", added("spare")),
    "code_rounded": ("blocked", added("blocked:down")),
    "bag_rounded": ("blocked", added("blocked:bag")),
    "join_rounded": ("blocked", added("blocked:join")),
    "blank": ("blocked", added("blank")),
    # Dead units that cannot recover.
    "dead_first": ("dead", added("dead:0", activation="relu")),
    "dead_second": ("dead", added("dead:1", activation="relu")),
    "negative_second": ("dead", added("negative:1", activation="relu")),
    "killed": ("dead_by_steps", changed(lr=4.0)),
    # One non-finite element spreads to everything. If it begins in one parameter, that one is named.
    "nan_target": ("nonfinite", added("nan_target:27")),
    "log_zero": ("nonfinite", added("log_zero:34")),
    "nan_batch": ("nonfinite", added("nan_batch:29")),
    "inf_batch": ("nonfinite", added("inf_batch:41")),
    "nan_in_patterns": ("nonfinite", added("nan_gradient:patterns")),
    "nan_in_join": ("nonfinite", added("nan_gradient:join.weight")),
    # A decay of the wrong sign, in the optimizer, in the loop or in the loss.
    "inflated": ("growth", added("inflate:1.04")),
    "reversed_decay": ("growth", _reversed),
    "praised": ("growth", added("praise:0.02")),
    # A weight decay that is stronger than learning.
    "withered": ("collapse", _withered),
    # One bad batch.
    "surge": ("spike", added("surge:44")),
    "far_input": ("spike", added("far_input:38")),
    "outlier": ("spike", added("outlier:46")),
    "spike": ("spike", added("spike:43")),
    # The loss oscillates: steps overshoot a valley, or two targets alternate.
    "swinging_15": ("swings", faster(15.0)),
    "swinging_20": ("swings", faster(20.0)),
    "swinging_40": ("swings", faster(40.0)),
    "alternating": ("alternating", added("alternating")),
    # Nothing can be learned. The diagnosis has to say so, without an alarm.
    "labels_mixed": ("stays", added("random_labels")),
    "labels_late": ("stays", added("late_labels")),
    "inputs_lost": ("stays", added("noise_inputs")),
    # A limit far below the norms, or far above them.
    "choked": ("throttled", changed(max_norm=2e-4)),
    "limit_far_off": ("unclipped", changed(max_norm=1e5)),
    # Gradients below what 16 bits can hold.
    "float16": ("underflow", changed(precision="float16")),
    "amp_float16": ("underflow", changed(precision="amp_float16")),
}

#: The faults that are applied to each healthy recipe.
_PAIRS = {
    "chebyshev": "alternating surge",
    "complex": "eighty_times",
    "reversible": "constant loud_head inflated",
    "reversible_rings": "thrown",
    "hopfield": "patterns_forgotten nan_in_patterns limit_far_off",
    "soft_experts": "gate_cut constant experts_standing",
    "inducing": "limit_far_off",
    "unrolled": "uphill",
    "searched": "stem_forgotten",
    "glow": "eighty_times",
    "structured": "spare never_zeroed",
    "feedback_alignment": "choked",
    "noisy": "limit_far_off",
    "categories": "sigmoid_eight shrunk",
    "trigrams": "sigmoid_eight dead_first bag_rounded labels_late",
    "trigrams_sgd": "choked never_zeroed",
    "koopman": "code_cut code_rounded inflated",
    "non_local": "look_cut",
    "local": "step_forgotten",
    "edge_conv": "nan_batch",
    "edges": "epsilon_large",
    "point_net": "sigmoid_eight dead_second inf_batch pixels labels_mixed inputs_lost",
    "messages": "far_input",
    "messages_sgd": "choked",
    "retention": "keys_cut loud_head log_zero",
    "long_filter": "millionth",
    "grams": "sigmoid_eight dead_second gain_4 shrunk surge",
    "grams_sgd": "choked",
    "smoother": "outlier alternating",
    "tree": "join_rounded nan_in_join alternating eighty_times coarse_embedding",
    "tagger": "moves_standing",
    # losses and ways of training
    "tweedie": "limit_far_off",
    "annealed": "limit_far_off",
    "quasi": "limit_far_off",
    "paired": "schedule_spent",
    "driven": "thrown",
    "unfreezing": "labels_late",
    # optimizers
    "signum": "withered eighty_times",
    "lamb": "withered reversed_decay",
    "adan": "withered growing_rate",
    "yogi": "withered growing_rate",
    "novograd": "withered reversed_decay",
    "sophia": "far_input reversed_decay",
    "covered": "bag_forgotten",
    "centralized": "choked",
    "shampoo": "inputs_lost stuck_first",
    "schedule_free": "summed_loss",
    # precisions and units
    "units_china": "float16",
    "units_rings": "float16 amp_float16",
    "units_names": "amp_float16",
    "units_colors": "float16",
    # plain networks
    "colors_relu": "nan_target negative_second outlier",
    "colors_sgd": "cents praised thrown summed_loss",
    "rings_relu": "gain_4 pixels negative_second",
    "china_sgd": "uphill never_zeroed nan_target killed choked blank",
    "arithmetic_silu": "uphill constant spike",
    "names_tanh": "tanh_faint thrown stuck_second labels_mixed",
    "softmax_grades": "swinging_15",
    "logistic_visits": "swinging_20 swinging_40",
    "full_rings": "swinging_20 swinging_40",
}


def fifth_cases() -> list[Case]:
    """Each case of the fifth set."""
    return list(cases_of(_PAIRS, HEALTHY, CHANGES))
