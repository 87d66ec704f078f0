"""The faulty runs: healthy recipes, each with one change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.diagnosis.healthy import TUNED
from benchmarks.diagnosis.labels import LABELS, Label
from benchmarks.diagnosis.recipe import Recipe

__all__ = ["Case", "Change", "added", "cases_of", "changed", "faster", "tuning_cases"]

Change = Callable[[Recipe], Recipe]


@dataclass(frozen=True)
class Case:
    """A faulty run with its healthy twin."""

    name: str
    recipe: Recipe
    twin: Recipe
    label: Label


def changed(**values: Any) -> Change:
    """A change that replaces fields of the recipe."""
    return lambda recipe: dataclasses.replace(recipe, **values)


def added(*extras: str, **values: Any) -> Change:
    """A change that adds extras and replaces fields."""
    return lambda recipe: dataclasses.replace(recipe, extras=recipe.extras + extras, **values)


def faster(factor: float, **values: Any) -> Change:
    """A change that multiplies the learning rate and replaces fields."""
    return lambda recipe: dataclasses.replace(recipe, lr=recipe.lr * factor, **values)


#: Name of the fault: (key of `LABELS`, what it does to a recipe).
CHANGES: dict[str, tuple[str, Change]] = {
    "sigmoid_deep": (
        "vanishing",
        changed(activation="sigmoid", depth=12, norm="none", residual=False, init="default"),
    ),
    "sigmoid_xavier_deep": (
        "vanishing",
        changed(activation="sigmoid", depth=16, norm="none", residual=False, init="xavier"),
    ),
    "tanh_shrinking": (
        "vanishing_by_init",
        changed(activation="tanh", depth=20, norm="none", residual=False, init="gain:0.5"),
    ),
    "default_init_deep": ("vanishing_signal", changed(depth=20, norm="none", residual=False, init="default")),
    "sigmoid_cnn": (
        "vanishing",
        changed(activation="sigmoid", depth=10, norm="none", residual=False, init="default"),
    ),
    "tiny_init": ("vanishing_signal", changed(depth=6, init="normal:0.01", norm="none", residual=False)),
    "gain_3": ("wrong_gain", changed(depth=10, init="gain:3.2", norm="none", residual=False)),
    "normal_1": ("wrong_gain", changed(init="normal:1.0", norm="none", residual=False)),
    "constant_init": ("constant", changed(init="constant:0.05")),
    "tanh_saturated": (
        "saturated",
        changed(activation="tanh", init="normal:1.0", depth=5, norm="none", residual=False),
    ),
    "sigmoid_saturated": (
        "saturated",
        changed(activation="sigmoid", init="normal:3.0", depth=4, norm="none", residual=False),
    ),
    "raw_inputs": ("large_inputs", changed(input_scale=300.0, norm="none")),
    "raw_inputs_tanh": ("saturated", changed(input_scale=300.0, activation="tanh", norm="none")),
    "raw_targets": ("large_inputs", changed(target_scale=1000.0, optimizer="sgd", lr=1e-3)),
    "sgd_rate_high": ("diverging", changed(optimizer="sgd", lr=20.0, norm="none")),
    "sgd_rate_diverges": ("diverging", changed(optimizer="sgd", lr=3.0, norm="none")),
    "adam_rate_high": ("large_steps", changed(optimizer="adam", lr=0.7, warmup=0)),
    "adam_rate_x100": ("large_steps", faster(100.0, warmup=0, schedule="constant")),
    "rate_tiny": ("small_steps", changed(optimizer="sgd", lr=1e-7, schedule="constant", warmup=0)),
    "adam_rate_tiny": ("small_steps", changed(optimizer="adam", lr=1e-9, schedule="constant", warmup=0)),
    "rate_zero": ("small_steps", changed(lr=0.0)),
    "no_step": ("small_steps", added("no_step")),
    "head_left_out": ("left_out", added("missing:head")),
    "trunk_left_out": ("left_out", added("missing:blocks.0")),
    "detached": ("no_gradient", added("detach")),
    "unused": ("no_gradient", added("unused")),
    "dead_layer": ("dead", added("dead:1")),
    "dead_first": ("dead", added("dead:0")),
    "dead_by_rate": (
        "dead_by_steps",
        changed(optimizer="sgd", lr=2.0, momentum=0.9, norm="none", activation="relu"),
    ),
    "nan_batch": ("nonfinite", added("nan_batch:30")),
    "inf_batch": ("nonfinite", added("inf_batch:45")),
    "nan_loss": ("nonfinite", added("nan_loss:25")),
    "nan_in_head": ("nonfinite", added("nan_gradient:head.weight")),
    "nan_in_first": ("nonfinite", added("nan_gradient:blocks.0.layer.weight")),
    "no_zero_grad": ("summed", added("no_zero_grad")),
    "ascent": ("exploding", added("ascend")),
    "inflated": ("growth", added("inflate:1.03")),
    "decay_strong": (
        "collapse",
        changed(optimizer="sgd", lr=0.05, weight_decay=1.0, momentum=0.9, norm="none"),
    ),
    "decay_strong_adamw": ("collapse", changed(optimizer="adamw", lr=1e-2, weight_decay=20.0, norm="none")),
    "spike": ("spike", added("spike:50")),
    "momentum_swings": ("swings", changed(optimizer="sgd", momentum=0.0, extras=("same_batch",), batch=200)),
    "throttled": (
        "throttled",
        changed(optimizer="sgd", lr=0.05, max_norm=1e-4, momentum=0.9, weight_decay=0.0),
    ),
    "float16_underflow": (
        "underflow",
        added("loss_factor:3e-4", precision="float16", optimizer="sgd", lr=100.0),
    ),
    "bfloat16_stall": ("small_steps", changed(precision="bfloat16", optimizer="sgd", lr=1e-5, momentum=0.0)),
    "wrong_labels": ("stays", added("random_labels")),
    "limit_too_high": ("unclipped", changed(max_norm=1e6)),
    "recurrent_gain": ("wrong_gain", added("states:4.0", max_norm=float("inf"))),
    "recurrent_rate": ("large_steps", changed(optimizer="sgd", lr=30.0, max_norm=float("inf"))),
    "both_factors_zero": ("zeroed", added("zero_down")),
}

#: The faults that are applied to each healthy recipe.
_TUNING = {
    "mlp_digits": (
        "sigmoid_deep tiny_init gain_3 constant_init raw_inputs sgd_rate_high adam_rate_high "
        "rate_tiny no_step head_left_out detached dead_layer nan_batch nan_in_head no_zero_grad "
        "spike throttled wrong_labels limit_too_high tanh_saturated"
    ),
    "mlp_teacher": (
        "sigmoid_xavier_deep normal_1 adam_rate_x100 adam_rate_tiny unused nan_loss raw_targets "
        "ascent decay_strong float16_underflow"
    ),
    "mlp_sgd": (
        "rate_zero inf_batch dead_by_rate inflated default_init_deep sgd_rate_diverges "
        "bfloat16_stall raw_inputs_tanh"
    ),
    "cnn": "sigmoid_cnn gain_3 nan_batch dead_first adam_rate_high",
    "mlp_batchnorm": "adam_rate_high head_left_out nan_in_first",
    "transformer_text": "adam_rate_x100 no_step nan_loss",
    "lstm_text": "nan_loss head_left_out recurrent_rate",
    "rnn": "recurrent_gain adam_rate_high rate_tiny",
    "mlp_diabetes": "constant_init normal_1 no_zero_grad throttled sgd_rate_high",
    "mlp_clusters_adamw": "constant_init no_zero_grad decay_strong_adamw tanh_shrinking dead_first",
    "mlp_residual": "adam_rate_high raw_inputs no_zero_grad trunk_left_out",
    "mlp_tanh": "normal_1 sigmoid_saturated spike decay_strong",
    "mlp_deep": "dead_layer no_zero_grad",
    "lora": "both_factors_zero",
    "wine_gelu": "sigmoid_deep gain_3 unused sgd_rate_diverges rate_tiny no_step nan_batch",
    "cancer_silu": (
        "sigmoid_xavier_deep tiny_init head_left_out raw_inputs adam_rate_high inf_batch float16_underflow"
    ),
    "digits_elu": "tanh_shrinking tanh_saturated decay_strong spike nan_in_head",
    "digits_leaky_deep": "sigmoid_deep gain_3 constant_init throttled adam_rate_tiny",
    "digits_relu_deep_narrow": (
        "dead_layer default_init_deep no_zero_grad nan_in_first dead_by_rate trunk_left_out"
    ),
    "clusters_tanh": (
        "tanh_saturated sigmoid_saturated raw_inputs_tanh nan_loss rate_zero decay_strong_adamw"
    ),
    "spirals_relu": "sigmoid_deep tiny_init sgd_rate_high dead_first detached bfloat16_stall raw_inputs",
    "teacher_dropout": "raw_targets normal_1 ascent adam_rate_x100 spike inflated limit_too_high",
    "digits_two_layers_wide": "constant_init no_step normal_1 wrong_labels sgd_rate_high",
    "residual_deep": "sigmoid_xavier_deep adam_rate_high nan_in_first head_left_out",
    "layernorm_plain": "detached default_init_deep no_step throttled",
    "batchnorm_deep": "sigmoid_deep adam_rate_high unused nan_loss",
    "cnn_deep": "sigmoid_cnn gain_3 dead_layer constant_init nan_batch rate_tiny",
    "cnn_residual": "tanh_shrinking adam_rate_high head_left_out spike",
    "autoencoder_gelu": "sgd_rate_high tiny_init nan_batch throttled raw_inputs",
    "gru_text": "nan_loss head_left_out recurrent_rate no_step",
    "rnn_adding": "recurrent_gain nan_batch rate_tiny",
    "lstm_two_layers": "adam_rate_high inf_batch",
    "transformer_rows": "adam_rate_x100 nan_loss head_left_out rate_zero",
    "transformer_post_ln": "adam_rate_x100 nan_batch",
    "text_cnn": "adam_rate_x100 nan_loss",
    "lora_deep": "both_factors_zero",
    "heads": "nan_batch rate_zero",
    "experts_many": "nan_loss adam_rate_high",
    "weight_decay_strong": "decay_strong_adamw ascent",
}


def cases_of(
    pairs: Mapping[str, str], recipes: Mapping[str, Recipe], changes: Mapping[str, tuple[str, Change]]
) -> Iterable[Case]:
    """A case for each pair of a recipe and the name of a change."""
    for base, names in pairs.items():
        for name in names.split():
            key, change = changes[name]
            yield Case(f"{base}/{name}", change(recipes[base]), recipes[base], LABELS[key])


def tuning_cases() -> list[Case]:
    """Rules and constants may be chosen by looking at these."""
    return list(cases_of(_TUNING, TUNED, CHANGES))
