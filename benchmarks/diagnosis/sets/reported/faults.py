"""The faulty runs of the reported set; see `healthy`."""

from __future__ import annotations

from benchmarks.diagnosis.faulty import Case, Change, added, cases_of, changed, faster
from benchmarks.diagnosis.sets.reported.healthy import HEALTHY

__all__ = ["reported_cases"]

_PLAIN = {"norm": "none", "residual": False}
_INF = float("inf")

#: Name of the fault: (key of `LABELS`, what it does to a recipe).
CHANGES: dict[str, tuple[str, Change]] = {
    "sigmoid_nine": ("vanishing", changed(activation="sigmoid", depth=9, init="default", **_PLAIN)),
    "sigmoid_he": ("vanishing", changed(activation="sigmoid", depth=11, init="he", **_PLAIN)),
    "sigmoid_filters": ("vanishing", changed(activation="sigmoid", depth=8, init="default", **_PLAIN)),
    "softsign_faint": (
        "vanishing_by_init",
        changed(activation="softsign", depth=18, init="gain:0.4", **_PLAIN),
    ),
    "tanh_faint": ("vanishing_by_init", changed(activation="tanh", depth=15, init="gain:0.4", **_PLAIN)),
    "default_long": ("vanishing_signal", changed(depth=26, init="default", activation="relu", **_PLAIN)),
    "normal_faint": ("vanishing_signal", changed(depth=8, init="normal:0.02", activation="relu", **_PLAIN)),
    "gain_2_6": ("wrong_gain", changed(depth=13, init="gain:2.6", activation="relu", **_PLAIN)),
    "gain_4_leaky": ("wrong_gain", changed(depth=7, init="gain:4", activation="leaky_relu", **_PLAIN)),
    "normal_0_8": ("wrong_gain", changed(init="normal:0.8", depth=6, **_PLAIN)),
    "constant": ("constant", changed(init="constant:0.15")),
    "tanh_thrown": ("saturated", changed(activation="tanh", init="normal:1.5", depth=4, **_PLAIN)),
    "sigmoid_thrown": ("saturated", changed(activation="sigmoid", init="normal:4.0", depth=3, **_PLAIN)),
    "pixels_tanh": ("saturated", changed(input_scale=120.0, activation="tanh", **_PLAIN)),
    "pixels": ("large_inputs", changed(input_scale=255.0, **_PLAIN)),
    "dollars": ("large_inputs", changed(target_scale=400.0, optimizer="sgd", lr=3e-3)),
    "sgd_8": ("diverging", changed(optimizer="sgd", lr=8.0, **_PLAIN)),
    "sgd_25": ("diverging", changed(optimizer="sgd", lr=25.0)),
    "adam_half": ("large_steps", changed(optimizer="adam", lr=0.5, warmup=0)),
    "nadam_fast": ("large_steps", changed(optimizer="nadam", lr=0.8, warmup=0)),
    "sixty_times": ("large_steps", faster(60.0, warmup=0, schedule="constant")),
    "sgd_slow": ("small_steps", changed(optimizer="sgd", lr=3e-7, schedule="constant", warmup=0)),
    "adamw_slow": ("small_steps", changed(optimizer="adamw", lr=2e-9, schedule="constant", warmup=0)),
    "rate_none": ("small_steps", changed(lr=0.0)),
    "step_forgotten": ("small_steps", added("no_step")),
    "bfloat16_lost": ("small_steps", changed(precision="bfloat16", optimizer="sgd", lr=2e-5, momentum=0.0)),
    "head_forgotten": ("left_out", added("missing:head")),
    "embedding_forgotten": ("left_out", added("missing:embed")),
    "first_forgotten": ("left_out", added("missing:blocks.0")),
    "head_stands": ("left_out", added("standing:head")),
    "second_unstepped": ("left_out", added("apart:head", "unstepped")),
    "detached": ("no_gradient", added("detach")),
    "unused": ("no_gradient", added("unused")),
    "dead_second": ("dead", added("dead:1", activation="relu")),
    "dead_first": ("dead", added("dead:0", activation="relu")),
    "dead_third": ("dead", added("dead:2", activation="relu")),
    "nan_batch": ("nonfinite", added("nan_batch:17")),
    "inf_batch": ("nonfinite", added("inf_batch:33")),
    "nan_loss": ("nonfinite", added("nan_loss:41")),
    "nan_in_head": ("nonfinite", added("nan_gradient:head.weight")),
    "never_zeroed": ("summed", added("no_zero_grad")),
    "uphill": ("exploding", added("ascend")),
    "inflated": ("growth", added("inflate:1.05")),
    "decay_sgd": ("collapse", changed(optimizer="sgd", lr=0.04, weight_decay=1.5, momentum=0.9, norm="none")),
    "decay_adamw": ("collapse", changed(optimizer="adamw", lr=5e-3, weight_decay=40.0, norm="none")),
    "spike": ("spike", added("spike:35")),
    "choked": ("throttled", changed(optimizer="sgd", lr=0.05, max_norm=3e-5, momentum=0.9, weight_decay=0.0)),
    "choked_drop_in": ("throttled", added("drop_in", optimizer="sgd", lr=0.05, max_norm=3e-5, momentum=0.9)),
    "float16_faint": (
        "underflow",
        added("loss_factor:2e-4", precision="float16", optimizer="sgd", lr=100.0),
    ),
    "labels_mixed": ("stays", added("random_labels")),
    "limit_far_off": ("unclipped", changed(max_norm=3e5)),
    "states_grow": ("wrong_gain", added("states:3.5", max_norm=_INF)),
    "recurrent_fast": ("large_steps", changed(optimizer="sgd", lr=40.0, max_norm=_INF)),
}

#: The faults that are applied to each healthy recipe.
_PAIRS = {
    "friedman_relu": "sigmoid_nine normal_0_8 adam_half never_zeroed dollars spike limit_far_off unused",
    "friedman_tanh_he": "tanh_faint tanh_thrown sgd_slow head_forgotten nan_batch uphill",
    "friedman_adagrad": "constant rate_none decay_sgd inf_batch second_unstepped",
    "moons_gelu": "sigmoid_he default_long nadam_fast inflated nan_in_head gain_2_6",
    "moons_two": "step_forgotten constant nan_loss sgd_25 labels_mixed",
    "digits_mish_like": "softsign_faint normal_faint sixty_times head_stands float16_faint",
    "digits_leaky": "gain_4_leaky dead_second adamw_slow first_forgotten choked pixels",
    "digits_elu_nadam": "sigmoid_nine pixels_tanh nan_batch never_zeroed decay_adamw",
    "digits_selu_sgd": "sgd_8 detached bfloat16_lost choked_drop_in",
    "digits_relu_wide": "normal_0_8 dead_first labels_mixed decay_sgd adam_half",
    "digits_orthogonal": "sigmoid_he gain_2_6 nan_loss dead_third",
    "cancer_relu": "default_long gain_4_leaky unused spike constant",
    "cancer_wide_sgd": "sigmoid_thrown step_forgotten head_forgotten",
    "spirals_tanh": "tanh_thrown tanh_faint sgd_25 choked",
    "teacher_muon": "never_zeroed nan_batch head_stands",
    "residual_tanh": "adam_half nan_in_head head_forgotten",
    "residual_batch_friedman": "adamw_slow nan_loss first_forgotten",
    "batchnorm_clusters": "nadam_fast detached sigmoid_nine",
    "layernorm_moons": "step_forgotten normal_faint nan_loss",
    "dense": "nan_batch adam_half head_stands rate_none",
    "highway_relu": "sixty_times head_forgotten nan_loss",
    "ordinary": "embedding_forgotten adam_half inf_batch",
    "inception": "adam_half nan_loss head_forgotten never_zeroed",
    "preactivated": "sixty_times rate_none nan_batch",
    "cnn_elu": "sigmoid_filters gain_4_leaky dead_second constant spike",
    "cnn_tanh": "tanh_faint sgd_slow nan_in_head sgd_8",
    "autoencoder_elu": "nan_batch normal_0_8 choked_drop_in labels_mixed sigmoid_nine",
    "quantized": "adam_half step_forgotten",
    "llama": "sixty_times nan_loss embedding_forgotten limit_far_off",
    "wavenet": "adam_half nan_loss head_forgotten never_zeroed",
    "perceiver": "sixty_times adamw_slow",
    "minimal_gated": "recurrent_fast head_forgotten nan_batch",
    "both_ways_rows": "nan_batch embedding_forgotten",
    "gru_patches": "step_forgotten adam_half",
    "rnn_patches": "states_grow recurrent_fast nan_batch",
    "transformer_patches": "sixty_times head_stands",
    "similarity_graph": "adam_half rate_none",
    "machine": "nan_batch never_zeroed",
    "experts_clusters": "adam_half nan_in_head",
    "head_ten_times": "dead_second nan_batch",
    "unrecorded_loss": "nan_in_head sigmoid_nine",
    "unknown_optimizer": "sigmoid_nine normal_0_8",
}


def reported_cases() -> list[Case]:
    """Each case of the reported set."""
    return list(cases_of(_PAIRS, HEALTHY, CHANGES))
