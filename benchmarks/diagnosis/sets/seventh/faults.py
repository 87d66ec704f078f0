"""The faulty runs of the seventh set: a healthy one of `healthy` with one change, in sizes that people meet.

Each change says what is expected of a headline; its label (`labels.py`) says what is tolerated.
"""

from __future__ import annotations

import dataclasses

from benchmarks.diagnosis.faulty import Case, Change, added, cases_of, changed, faster
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.seventh.healthy import HEALTHY

__all__ = ["seventh_cases"]

_PLAIN = {"norm": "none", "residual": False}


def _decoupled(share: float) -> Change:
    """A decoupled decay of a share of the weights at each step."""

    def change(recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, weight_decay=share / recipe.lr)

    return change


#: Name of the fault: (key of `LABELS`, what it does to a recipe).
CHANGES: dict[str, tuple[str, Change]] = {
    # Slopes of at most a quarter, layer by layer.
    "sigmoid_nine": ("vanishing", changed(activation="sigmoid", depth=9, init="default", **_PLAIN)),
    "sigmoid_twelve": ("vanishing", changed(activation="sigmoid", depth=12, init="xavier", **_PLAIN)),
    # A signal that fades: first weights that are small, skips that were forgotten, a forgotten He factor.
    "tanh_faint": ("vanishing_signal", changed(activation="tanh", depth=10, init="gain:0.35", **_PLAIN)),
    "hundredths": ("vanishing_signal", changed(init="normal:0.01", depth=6, **_PLAIN)),
    "skips_forgotten": ("vanishing_signal", changed(init="default", depth=20, **_PLAIN)),
    "default_deep": ("vanishing_signal", changed(depth=16, init="default", **_PLAIN)),
    # torch.rand, torch.randn, a gain that is wrong, one matrix or one table that is loud.
    "rand": ("wrong_gain", changed(init="uniform:1", **_PLAIN)),
    "randn": ("wrong_gain", changed(init="normal:1", depth=5, **_PLAIN)),
    "gain_4": ("wrong_gain", changed(init="gain:4", depth=7, **_PLAIN)),
    "loud_head": ("wrong_gain", added("loud:head.weight=60")),
    "loud_stem": ("wrong_gain", added("loud:stem.weight=100")),
    "coarse_table": ("wrong_gain", added("coarse:50")),
    "states_gain": ("wrong_gain", added("states:3", max_norm=float("inf"))),
    # All units of a layer are the same, or all weights are zero.
    "constant": ("constant", changed(init="constant:0.05")),
    "ones": ("constant", changed(init="constant:1")),
    "zeros": ("zero_weights", changed(init="constant:0")),
    # Outputs at the ends of their range, because of weights, inputs or biases.
    "thrown_far": ("saturated", changed(init="normal:6", **_PLAIN)),
    "thrown": ("saturated", changed(init="normal:2", **_PLAIN)),
    "pixels_saturated": ("saturated", changed(input_scale=255.0, **_PLAIN)),
    "stuck_first": ("saturated", added("stuck:0")),
    # Inputs of 255 or in units of their own, missing values as -999, targets of hundreds.
    "pixels": ("large_inputs", changed(input_scale=255.0, **_PLAIN)),
    "columns": ("large_inputs", added("columns:1000", **_PLAIN)),
    "sentinels": ("large_inputs", added("sentinels:0.02", **_PLAIN)),
    "cents": ("large_inputs", changed(target_scale=300.0)),
    # The loss has the wrong sign; gradients add up.
    "uphill": ("exploding", added("ascend")),
    "bound_reversed": ("exploding", added("weight:-1")),
    "never_zeroed": ("summed", added("no_zero_grad")),
    # A rate that is 30 to 300 times too large, from the start or later; a sum for a mean; no warm-up.
    "thirty_times": ("large_steps", faster(30.0, warmup=0)),
    "hundred_times": ("large_steps", faster(100.0, warmup=0)),
    "three_hundred_times": ("large_steps", faster(300.0, warmup=0)),
    "growing_rate": ("large_steps", changed(schedule="growing")),
    "summed_loss": ("diverging", added("loss_factor:1000")),
    # Weights move little or not at all.
    "rate_millionth": ("small_steps", faster(1e-6)),
    "rate_forgotten": ("small_steps", changed(lr=1e-9)),
    "schedule_spent": ("small_steps", changed(schedule="spent")),
    "plunging_rate": ("small_steps", changed(schedule="plunging", lr=1e-4)),
    "warmup_endless": ("small_steps", changed(warmup=10**7)),
    "epsilon_large": ("small_steps", added("eps:1e5")),
    "step_forgotten": ("small_steps", added("no_step")),
    "rounded_away": ("small_steps", faster(2e-4)),
    # A part is in no optimizer, or its rate is zero.
    "head_forgotten": ("left_out", added("missing:head")),
    "stem_forgotten": ("left_out", added("missing:stem")),
    "table_forgotten": ("left_out", added("missing:embed")),
    "core_forgotten": ("left_out", added("missing:core")),
    "things_forgotten": ("left_out", added("missing:things")),
    "grids_forgotten": ("left_out", added("missing:grids")),
    "code_standing": ("left_out", added("standing:encode")),
    "layers_standing": ("left_out", added("standing:layers")),
    "dense_unstepped": ("left_out", added("apart:dense", "unstepped")),
    # A part is cut off, made a step function, or never used.
    "detached": ("no_gradient", added("detach")),
    "spare": ("no_gradient", added("spare")),
    "deep_cut": ("no_gradient", added("cut:deep")),
    "table_cut": ("no_gradient", added("cut:embed")),
    "query_cut": ("no_gradient", added("cut:query")),
    "code_cut": ("no_gradient", added("cut:encode")),
    "first_cut": ("no_gradient", added("cut:first")),
    "largest_alone": ("no_gradient", added("hard:blocks.0")),
    "code_rounded": ("blocked", added("blocked:encode")),
    "signs_alone": ("blocked", added("signed:stem")),
    "blank": ("blocked", added("blank")),
    # Dead units that cannot recover, because of biases, weights or a rate.
    "biases_first": ("dead", added("fill:blocks.0.layer.bias=-20", activation="relu")),
    "biases_second": ("dead", added("fill:blocks.1.layer.bias=-15", activation="relu")),
    "negative_second": ("dead", added("negative:1", activation="relu")),
    "killed": ("dead_by_steps", changed(lr=4.0)),
    # One non-finite element spreads to everything. If it begins in one parameter, that one is named.
    "nan_batch": ("nonfinite", added("nan_batch:28")),
    "inf_batch": ("nonfinite", added("inf_batch:31")),
    "holes": ("nonfinite", added("holes:0.003")),
    "flat": ("nonfinite", added("flat:25")),
    "nan_target": ("nonfinite", added("nan_target:36")),
    "logged": ("nonfinite", added("logged")),
    "exp_loss": ("nonfinite", added("exp_loss:22")),
    "root_zero": ("nonfinite", added("root_zero:33")),
    "log_zero": ("nonfinite", added("log_zero:27")),
    "nan_in_head": ("nonfinite", added("nan_gradient:head.weight")),
    "nan_in_table": ("nonfinite", added("nan_gradient:embed.weight")),
    "scale_too_high": ("nonfinite", changed(loss_scale=2.0**40)),
    # A decay of the wrong sign, in the loop, in the optimizer or in the loss.
    "inflated": ("growth", added("inflate:1.03")),
    "reversed_decay": ("growth", _decoupled(-0.04)),
    "praised": ("growth", added("praise:0.1")),
    "penalty_praised": ("growth", added("weight:-1")),
    # A weight decay that is stronger than learning.
    "withered": ("collapse", _decoupled(0.4)),
    "decayed": ("collapse", changed(weight_decay=2.0)),
    # One bad batch.
    "surge": ("spike", added("surge:42")),
    "far_input": ("spike", added("far_input:39")),
    "outlier": ("spike", added("outlier:44")),
    "raw_batch": ("spike", added("raw_batch:35")),
    "static": ("spike", added("static:40")),
    "sentinel": ("spike", added("sentinel:37")),
    # The loss oscillates: steps overshoot a valley, batches have one class, or two targets alternate.
    "swinging_20": ("swings", faster(20.0)),
    "swinging_60": ("swings", faster(60.0)),
    "unshuffled": ("alternating", added("one_class")),
    "alternating": ("alternating", added("alternating")),
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

#: The faults that are applied to each healthy recipe.
_PAIRS = {
    # plain networks
    "five_relu": (
        "sigmoid_nine rand zeros hundred_times biases_first largest_alone nan_batch limit_thousands "
        "inputs_lost tanh_faint"
    ),
    "five_sgd": "summed_loss choked decayed killed uphill never_zeroed labels_mixed",
    "shells_relu": "gain_4 constant spare biases_second holes",
    "shells_tanh": "thrown step_forgotten stuck_first",
    "shells_sigmoid": "rate_millionth thrown_far",
    "tags_leaky": "sigmoid_twelve default_deep detached flat loud_head",
    "tags_sgd": "hundred_times choked decayed",
    "regression_relu": "negative_second sentinels randn epsilon_large",
    "regression_sgd": "cents summed_loss alternating outlier praised choked_hard logged",
    "ribbon_gelu": "uphill nan_target sentinel hundred_times",
    "ribbon_tanh": "thrown stuck_first",
    "tumors_elu": "columns far_input inflated",
    "tumors_sgd": "sentinels columns sentinel decayed alternating",
    "wine_colors_silu": "cents rate_forgotten",
    "flower_gelu": "schedule_spent",
    "digits_ten": "gain_4 tanh_faint exp_loss hundredths sigmoid_twelve",
    "digits_mish": "sigmoid_nine ones unshuffled",
    "cancer_relu": "sentinels",
    "diabetes_relu": "cents randn sentinel killed",
    # skips and norms
    "residual_shells": "skips_forgotten head_forgotten surge",
    "residual_five": "three_hundred_times inf_batch",
    "batchnorm_tags": "root_zero limit_millions",
    "highway_five": "never_zeroed",
    "rezero_shells": "stem_forgotten pixels",
    "wide_deep_tumors": "deep_cut",
    "funnel_tags": "biases_first",
    # models of this set
    "statements": "things_forgotten hundred_times",
    "word_vectors": "limit_thousands",
    "rays": "thirty_times layers_standing",
    "grids": "grids_forgotten",
    "circulant": "signs_alone loud_stem",
    "gated_residuals": "inflated",
    "oblivious_trees": "rate_millionth",
    "basis_blocks": "nan_target",
    "sparse_code": "code_cut penalty_praised",
    "groups": "code_rounded code_standing",
    "ladder": "first_cut bound_reversed",
    # images
    "cnn_disks": "negative_second static labels_late",
    "cnn_sgd": "rand killed inflated unshuffled",
    "lenet_tanh": "choked first_cut targets_shifted decayed thrown",
    "vgg_colored": "biases_second hundredths raw_batch",
    "alexnet": "hundred_times dense_unstepped",
    "alexnet_sgd": "choked_hard never_zeroed",
    "resnet_colored": "three_hundred_times head_forgotten labels_late",
    "mender": "static log_zero",
    # sequences
    "lstm_english": "hundred_times table_cut",
    "lstm_beats": "core_forgotten limit_millions",
    "gru_writing": "table_forgotten",
    "gru_drift": "inputs_lost hundred_times",
    "rnn_drift": "states_gain",
    "encoder_english": "warmup_endless nan_in_table hundred_times",
    "encoder_post": "thirty_times",
    "gpt_english": "limit_thousands schedule_spent",
    "grouped_queries": "table_forgotten",
    "sentence_cnn": "nan_in_head coarse_table",
    "attentive": "query_cut",
    # losses, optimizers, precisions
    "huber_ribbon": "choked alternating",
    "adamw_decay": "withered growing_rate",
    "radam_shells": "plunging_rate",
    "lion_shells": "reversed_decay",
    "nesterov_cosine": "growing_rate spare",
    "steps_regression": "limit_millions",
    "bfloat16_tags": "rounded_away withered",
    "float16_scaled_five": "scale_too_high",
    "units_five": "float16 amp_float16",
    "units_shells": "amp_float16",
    "units_disks": "amp_float16",
    "units_tags": "float16 amp_float16",
    "full_shells": "swinging_60 pixels_saturated",
    "full_five": "blank",
    "full_tags": "swinging_20",
}


def seventh_cases() -> list[Case]:
    """Each case of the seventh set."""
    return list(cases_of(_PAIRS, HEALTHY, CHANGES))
