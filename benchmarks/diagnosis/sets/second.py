"""Formerly the second reported set; part of the tuning set since its misjudged runs changed rules.

Faults of SGD are applied to recipes with SGD, so that a cured run differs from its twin in nothing else.
"""

from __future__ import annotations

from benchmarks.diagnosis.faulty import Case, Change, added, cases_of, changed, faster
from benchmarks.diagnosis.recipe import Recipe

__all__ = ["HEALTHY", "second_cases"]

HEALTHY: dict[str, Recipe] = {
    "iris_gelu": Recipe(task="iris", depth=4, width=24, activation="gelu", lr=5e-3, steps=60),
    "wine_wide": Recipe(task="wine", depth=3, width=80, lr=2e-3, steps=60),
    "friedman_leaky": Recipe(task="friedman", depth=5, width=34, activation="leaky_relu", lr=3e-3),
    "digits_tanh_four": Recipe(depth=4, width=52, activation="tanh", init="xavier", lr=2e-3),
    "digits_five": Recipe(depth=5, width=52, init="he", optimizer="adamw", lr=2e-3, weight_decay=0.02),
    "cancer_elu_sgd": Recipe(
        task="cancer", depth=3, width=34, activation="elu", optimizer="nesterov", lr=0.05
    ),
    "clusters_relu": Recipe(task="clusters", depth=4, width=34, lr=4e-3, batch=40),
    "clusters_sgd": Recipe(task="clusters", depth=3, width=26, optimizer="sgd", lr=0.1, batch=40),
    "teacher_silu": Recipe(task="teacher", depth=3, width=52, activation="silu", optimizer="nadam", lr=3e-3),
    "spirals_leaky": Recipe(
        task="spirals", depth=3, width=60, activation="leaky_relu", lr=8e-3, batch=48, steps=60
    ),
    "residual_elu": Recipe(depth=8, width=34, residual=True, norm="layer", activation="elu", lr=2e-3),
    "cnn_silu": Recipe(arch="cnn", task="images", width=20, depth=4, activation="silu", lr=3e-3),
    "gru_rows": Recipe(arch="gru", task="rows", depth=1, width=26, lr=1e-2),
    "llama_narrow": Recipe(arch="llama", task="text", depth=1, width=24, batch=8, lr=4e-3),
    "wavenet_short": Recipe(arch="wavenet", task="text", depth=3, width=18, batch=8, lr=6e-3),
}

_PLAIN = {"norm": "none", "residual": False}

CHANGES: dict[str, tuple[str, Change]] = {
    "sigmoid_thirteen": ("vanishing", changed(activation="sigmoid", depth=13, init="default", **_PLAIN)),
    "softsign_small": (
        "vanishing_by_init",
        changed(activation="softsign", depth=17, init="gain:0.45", **_PLAIN),
    ),
    "default_deep": ("vanishing_signal", changed(depth=22, init="default", activation="relu", **_PLAIN)),
    "normal_small": ("vanishing_signal", changed(depth=7, init="normal:0.015", activation="relu", **_PLAIN)),
    "gain_3_4": ("wrong_gain", changed(depth=9, init="gain:3.4", activation="relu", **_PLAIN)),
    "normal_1_2": ("wrong_gain", changed(init="normal:1.2", depth=4, activation="relu", **_PLAIN)),
    "constant": ("constant", changed(init="constant:0.3")),
    "tanh_large": ("saturated", changed(activation="tanh", init="normal:1.2", depth=5, **_PLAIN)),
    "pixels_tanh": ("saturated", changed(input_scale=180.0, activation="tanh", **_PLAIN)),
    "pixels": ("large_inputs", changed(input_scale=200.0, **_PLAIN)),
    "too_fast": ("diverging", faster(150.0)),
    "adam_third": ("large_steps", changed(optimizer="adam", lr=0.3)),
    "eighty_times": ("large_steps", faster(80.0, warmup=0)),
    "millionth": ("small_steps", faster(1e-6)),
    "rate_none": ("small_steps", changed(lr=0.0)),
    "step_forgotten": ("small_steps", added("no_step")),
    "head_forgotten": ("left_out", added("missing:head")),
    "head_stands": ("left_out", added("standing:head")),
    "detached": ("no_gradient", added("detach")),
    "dead_second": ("dead", added("dead:1", activation="relu")),
    "nan_batch": ("nonfinite", added("nan_batch:23")),
    "nan_loss": ("nonfinite", added("nan_loss:12")),
    "never_zeroed": ("summed", added("no_zero_grad")),
    "uphill": ("exploding", added("ascend")),
    "inflated": ("growth", added("inflate:1.04")),
    "decayed": ("collapse", changed(weight_decay=1.2)),
    "spike": ("spike", added("spike:44")),
    "choked": ("throttled", changed(max_norm=1e-5)),
}

_PAIRS = {
    "iris_gelu": "default_deep adam_third nan_batch rate_none",
    "wine_wide": "sigmoid_thirteen normal_1_2 step_forgotten",
    "friedman_leaky": "gain_3_4 eighty_times uphill head_stands never_zeroed",
    "digits_tanh_four": "softsign_small pixels_tanh tanh_large nan_loss",
    "digits_five": "sigmoid_thirteen dead_second pixels constant adam_third",
    "cancer_elu_sgd": "too_fast choked millionth decayed",
    "clusters_relu": "normal_small inflated eighty_times detached",
    "clusters_sgd": "too_fast choked decayed rate_none never_zeroed",
    "teacher_silu": "spike adam_third head_forgotten",
    "spirals_leaky": "gain_3_4 normal_small nan_batch",
    "residual_elu": "eighty_times nan_loss",
    "cnn_silu": "adam_third dead_second constant",
    "gru_rows": "head_forgotten eighty_times",
    "llama_narrow": "nan_loss eighty_times",
    "wavenet_short": "adam_third head_stands",
}


def second_cases() -> list[Case]:
    """The cases of the former second reported set."""
    return list(cases_of(_PAIRS, HEALTHY, CHANGES))
