"""The faulty runs of the sixth set: a healthy one of `healthy` with one change, in sizes that people meet.

Each change says what is expected of a headline; its label (`labels.py`) says what is tolerated.
"""

from __future__ import annotations

import dataclasses

from benchmarks.diagnosis.faulty import Case, Change, added, cases_of, changed, faster
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.sixth.healthy import HEALTHY

__all__ = ["sixth_cases"]

_PLAIN = {"norm": "none", "residual": False}


def _decoupled(share: float) -> Change:
    """A decoupled decay of a share of the weights at each step."""

    def change(recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, weight_decay=share / recipe.lr)

    return change


#: Name of the fault: (key of `LABELS`, what it does to a recipe).
CHANGES: dict[str, tuple[str, Change]] = {
    # Slopes of at most a quarter, layer by layer; a softmax in place of an activation.
    "sigmoid_nine": ("vanishing", changed(activation="sigmoid", depth=9, init="default", **_PLAIN)),
    "sigmoid_xavier": ("vanishing", changed(activation="sigmoid", depth=10, init="xavier", **_PLAIN)),
    "softmax_between": ("vanishing", changed(activation="softmax", depth=5, init="default", **_PLAIN)),
    # A signal that fades: first weights that are small, skips that were forgotten.
    "tanh_faint": ("vanishing_signal", changed(activation="tanh", depth=10, init="gain:0.3", **_PLAIN)),
    "hundredths": ("vanishing_signal", changed(init="normal:0.01", depth=6, **_PLAIN)),
    "skips_forgotten": ("vanishing_signal", changed(depth=18, **_PLAIN)),
    "default_deep": ("vanishing_signal", changed(depth=18, init="default", **_PLAIN)),
    # torch.rand, torch.randn, a gain that is wrong, one matrix that is loud.
    "rand": ("wrong_gain", changed(init="uniform:1", **_PLAIN)),
    "randn": ("wrong_gain", changed(init="normal:1", **_PLAIN)),
    "gain_5": ("wrong_gain", changed(init="gain:5", **_PLAIN)),
    "loud_head": ("wrong_gain", added("loud:head.weight=80")),
    "states_gain": ("wrong_gain", added("states:3.5", max_norm=float("inf"))),
    # All units of a layer are the same, or all weights are zero.
    "constant": ("constant", changed(init="constant:0.1")),
    "zeros": ("zero_weights", changed(init="constant:0")),
    # Outputs at the ends of their range, because of weights, inputs or biases.
    "thrown": ("saturated", changed(init="normal:2", **_PLAIN)),
    "pixels_saturated": ("saturated", changed(input_scale=255.0, **_PLAIN)),
    "stuck_first": ("saturated", added("stuck:0")),
    # Inputs of 255 or in units of their own, targets of hundreds.
    "pixels": ("large_inputs", changed(input_scale=255.0, **_PLAIN)),
    "columns": ("large_inputs", added("columns:1000", **_PLAIN)),
    "cents": ("large_inputs", changed(target_scale=300.0)),
    # The loss or a part of it has the wrong sign; gradients add up.
    "uphill": ("exploding", added("ascend")),
    "penalty_praised": ("exploding", added("weight:-0.5")),
    "never_zeroed": ("summed", added("no_zero_grad")),
    # A rate that is 30 to 1000 times too large, a sum for a mean, a schedule that grows, no warm-up.
    "thirty_times": ("large_steps", faster(30.0, warmup=0)),
    "hundred_times": ("large_steps", faster(100.0, warmup=0)),
    "thousand_times": ("large_steps", faster(1000.0, warmup=0)),
    "growing_rate": ("large_steps", changed(schedule="growing")),
    "summed_loss": ("diverging", added("loss_factor:500")),
    # Weights move little or not at all.
    "rate_millionth": ("small_steps", faster(1e-6)),
    "rate_forgotten": ("small_steps", changed(lr=1e-9)),
    "weight_millionth": ("small_steps", added("loss_factor:1e-6")),
    "schedule_spent": ("small_steps", changed(schedule="spent")),
    "warmup_endless": ("small_steps", changed(warmup=10**7)),
    "epsilon_large": ("small_steps", added("eps:1e5")),
    "step_forgotten": ("small_steps", added("no_step")),
    "rounded_away": ("small_steps", faster(2e-5)),
    # A part is in no optimizer, or its rate is zero.
    "head_forgotten": ("left_out", added("missing:head")),
    "stem_forgotten": ("left_out", added("missing:stem")),
    "table_forgotten": ("left_out", added("missing:embed")),
    "core_forgotten": ("left_out", added("missing:core")),
    "examples_forgotten": ("left_out", added("missing:examples")),
    "pairs_standing": ("left_out", added("standing:pairs")),
    "dense_unstepped": ("left_out", added("unstepped")),
    # A part is cut off, made a step function, or never used.
    "detached": ("no_gradient", added("detach")),
    "unused": ("no_gradient", added("unused")),
    "spare": ("no_gradient", added("spare")),
    "wide_cut": ("no_gradient", added("cut:wide")),
    "code_cut": ("no_gradient", added("cut:code")),
    "second_cut": ("no_gradient", added("cut:second")),
    "inner_cut": ("no_gradient", added("cut:stem")),
    "code_rounded": ("blocked", added("blocked:code")),
    "signs_alone": ("blocked", added("signed:stem")),
    "blank": ("blocked", added("blank")),
    # Dead units that cannot recover, because of biases, weights or a rate.
    "biases_first": ("dead", added("fill:blocks.0.layer.bias=-20", activation="relu")),
    "biases_second": ("dead", added("fill:blocks.1.layer.bias=-10", activation="relu")),
    "negative_second": ("dead", added("negative:1", activation="relu")),
    "killed": ("dead_by_steps", changed(lr=5.0)),
    # One non-finite element spreads to everything. If it begins in one parameter, that one is named.
    "nan_batch": ("nonfinite", added("nan_batch:26")),
    "inf_batch": ("nonfinite", added("inf_batch:33")),
    "nan_feature": ("nonfinite", added("nan_feature")),
    "nan_target": ("nonfinite", added("nan_target:22")),
    "log_zero": ("nonfinite", added("log_zero:31")),
    "root_zero": ("nonfinite", added("root_zero:24")),
    "pixels_into_log": ("nonfinite", changed(input_scale=255.0)),
    "same_view": ("nonfinite", added("same_view")),
    "nan_in_stem": ("nonfinite", added("nan_gradient:stem.weight")),
    "nan_in_table": ("nonfinite", added("nan_gradient:embed.weight")),
    "scale_too_high": ("nonfinite", changed(loss_scale=2.0**40)),
    # A decay of the wrong sign, in the loop, in the optimizer or in the loss.
    "inflated": ("growth", added("inflate:1.03")),
    "reversed_decay": ("growth", _decoupled(-0.04)),
    "praised": ("growth", added("praise:0.03")),
    # A weight decay that is stronger than learning.
    "withered": ("collapse", _decoupled(0.3)),
    "decayed": ("collapse", changed(weight_decay=2.0)),
    # One bad batch.
    "surge": ("spike", added("surge:39")),
    "far_input": ("spike", added("far_input:45")),
    "outlier": ("spike", added("outlier:41")),
    "raw_batch": ("spike", added("raw_batch:37")),
    # The loss oscillates: steps overshoot a valley, batches have one class, or two targets alternate.
    "swinging_40": ("swings", faster(40.0)),
    "swinging_60": ("swings", faster(60.0)),
    "swinging_80": ("swings", faster(80.0)),
    "swinging_120": ("swings", faster(120.0)),
    "unshuffled": ("alternating", added("one_class")),
    # Nothing can be learned. The diagnosis has to say so, without an alarm.
    "labels_mixed": ("stays", added("random_labels")),
    "labels_late": ("stays", added("late_labels")),
    "targets_shifted": ("stays", added("rolled")),
    "inputs_lost": ("stays", added("noise_inputs")),
    # A limit far below the norms, or far above them.
    "choked": ("throttled", changed(max_norm=1e-4)),
    "choked_hard": ("throttled", changed(max_norm=1e-6)),
    "limit_thousands": ("unclipped", changed(max_norm=1e4)),
    "limit_millions": ("unclipped", changed(max_norm=1e6)),
    # Gradients below what 16 bits can hold.
    "float16": ("underflow", changed(precision="float16")),
    "amp_float16": ("underflow", changed(precision="amp_float16")),
}
#: Faults that no remedy of the table removes: no change of a recipe stands for the one that would.
_BEYOND = frozenset({"same_view"})

#: The faults that are applied to each healthy recipe.
_PAIRS = {
    # plain networks
    "mixture_relu": "sigmoid_nine softmax_between rand zeros hundred_times biases_second unused",
    "mixture_tanh": "step_forgotten tanh_faint thrown",
    "mixture_sgd": "pixels never_zeroed choked rate_millionth hundred_times hundredths praised decayed",
    "mixture_mish": "constant thousand_times negative_second",
    "impedance_gelu": "randn nan_target",
    "impedance_sgd": "never_zeroed nan_feature choked_hard uphill",
    "phase_relu": "withered limit_thousands",
    "phase_silu": "sigmoid_xavier outlier log_zero rate_forgotten",
    "hastie_relu": "biases_first inputs_lost unshuffled",
    "circles_relu": "gain_5 root_zero unshuffled",
    "halves_relu": "sigmoid_nine rand surge",
    "prices_prelu": "rand hundred_times outlier",
    "prices_sgd": "killed cents summed_loss nan_batch columns",
    "digits_hardswish": "randn thirty_times labels_mixed",
    "digits_leaky_twelve": "gain_5 default_deep",
    "digits_sigmoid_two": "thrown",
    "cancer_gelu": "columns weight_millionth decayed blank",
    "diabetes_tanh": "thrown stuck_first",
    "logistic_mixture": "choked",
    "wine_elu": "epsilon_large detached",
    # skips and norms
    "residual_mixture": "skips_forgotten",
    "residual_batch": "head_forgotten choked_hard",
    "residual_plain": "inflated loud_head",
    "layernorm_phase": "limit_millions",
    "both_signs": "spare",
    "fixup": "signs_alone stem_forgotten",
    # vectors and tables
    "funnel": "sigmoid_xavier biases_second",
    "wide_deep": "wide_cut nan_batch far_input",
    "quaternions": "hundred_times inner_cut",
    "tensor_train": "nan_in_stem limit_thousands",
    "examples": "examples_forgotten labels_late",
    "group_sort": "surge",
    # images
    "cnn_gratings": "sigmoid_nine biases_first",
    "cnn_lights": "rand inflated",
    "lenet": "second_cut labels_mixed",
    "lenet_sgd": "pixels choked constant decayed",
    "vgg": "hundredths negative_second inf_batch",
    "resnet": "pairs_standing raw_batch",
    "fire": "limit_millions",
    "conv_autoencoder": "code_cut code_rounded",
    # sequences
    "lstm_opcodes": "hundred_times",
    "lstm_patches": "core_forgotten",
    "gru_pulses": "limit_millions",
    "rnn_forecast": "states_gain",
    "transformer_opcodes": "warmup_endless thirty_times",
    "post_ln": "thirty_times",
    "tied_opcodes": "hundred_times",
    "small_gpt": "schedule_spent",
    "slopes": "table_forgotten nan_in_table",
    "llama_opcodes": "limit_thousands",
    # losses, ways of training
    "log_cosh": "thrown",
    "small_code": "penalty_praised",
    "naive": "pixels_into_log targets_shifted",
    "distance": "same_view",
    "poly": "uphill labels_late",
    "two_optimizers": "dense_unstepped",
    "lion_prices": "withered reversed_decay",
    "lamb_mixture": "reversed_decay",
    "linear_adamw": "withered",
    "steps_cnn": "choked_hard",
    "cosine_resnet": "raw_batch",
    "restarts_mixture": "growing_rate never_zeroed",
    "bfloat16_mixture": "rounded_away withered",
    "float16_scaled": "scale_too_high",
    "units_mixture": "float16 amp_float16",
    "units_halves": "float16",
    "units_cnn": "amp_float16",
    "units_lenet": "amp_float16",
    "full_circles": "swinging_40 swinging_60",
    "full_mixture": "swinging_80 swinging_120",
    "full_phase": "pixels_saturated",
}


def sixth_cases() -> list[Case]:
    """Each case of the sixth set."""
    return [
        dataclasses.replace(case, label=dataclasses.replace(case.label, curable=False))
        if case.name.partition("/")[2] in _BEYOND
        else case
        for case in cases_of(_PAIRS, HEALTHY, CHANGES)
    ]
