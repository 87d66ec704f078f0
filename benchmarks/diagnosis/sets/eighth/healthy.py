"""The healthy runs of the eighth set: new models, recipes and seeds; its faults are those of earlier sets.

It was written by someone who had not read the rules, and committed before any of its runs was diagnosed.
Labels alone were checked before, by their traces. No recipe is that of another set.
"""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.eighth.settings import EIGHTH_SETTINGS
from benchmarks.diagnosis.sets.eighth.signals import EIGHTH_SIGNALS

__all__ = ["HEALTHY", "UNJUDGED"]

HEALTHY: dict[str, Recipe] = {
    # plain networks: depth, activation, initialization, optimizer
    "teacher_gelu": Recipe(task="teacher", depth=4, width=52, activation="gelu", lr=4e-3, batch=40),
    "teacher_rmsprop": Recipe(
        task="teacher", depth=3, width=44, activation="softsign", optimizer="rmsprop", lr=2e-3
    ),
    "clusters_prelu": Recipe(task="clusters", depth=5, width=38, activation="prelu", lr=2e-3, batch=24),
    "clusters_nesterov": Recipe(task="clusters", depth=4, width=46, init="he", optimizer="nesterov", lr=0.02),
    "spirals_silu": Recipe(
        task="spirals", depth=4, width=56, activation="silu", lr=8e-3, batch=64, steps=120
    ),
    "swiss_mish": Recipe(task="swiss", depth=4, width=34, activation="mish", lr=6e-3, batch=48),
    "swiss_tanh_sgd": Recipe(
        task="swiss", depth=3, width=28, activation="tanh", init="xavier", optimizer="sgd", lr=0.05
    ),
    "rings_relu": Recipe(task="rings", depth=4, width=50, init="he", lr=4e-3),
    "rings_sgd": Recipe(
        task="rings", depth=3, width=44, init="he", optimizer="sgd", lr=0.1, batch=48, steps=100
    ),
    "circles_gelu": Recipe(task="circles", depth=3, width=36, activation="gelu", lr=1e-2),
    "impedance_relu": Recipe(task="impedance", depth=4, width=36, init="he", lr=4e-3),
    "hastie_silu": Recipe(task="hastie", depth=3, width=60, activation="silu", lr=5e-3, batch=64),
    "halves_elu": Recipe(task="halves", depth=3, width=52, activation="elu", lr=4e-3, batch=40),
    "china_relu": Recipe(task="china", depth=3, width=34, init="he", lr=4e-3),
    "china_sgd": Recipe(task="china", depth=4, width=28, init="he", optimizer="sgd", lr=0.01, batch=24),
    "prices_tanh": Recipe(task="prices", depth=4, width=26, activation="tanh", init="xavier", lr=6e-3),
    "colors_leaky": Recipe(
        task="colors", depth=4, width=38, activation="leaky_relu", init="he", lr=3e-3, batch=64
    ),
    "heat_silu": Recipe(task="heat", depth=3, width=58, activation="silu", lr=3e-3, batch=20),
    "friedman_six": Recipe(
        task="friedman", depth=6, width=36, activation="gelu", init="xavier", lr=2e-3, batch=48
    ),
    "friedman_relu_sgd": Recipe(
        task="friedman", depth=3, width=42, init="he", optimizer="sgd", lr=0.02, batch=40
    ),
    "digits_two": Recipe(depth=2, width=72, optimizer="sgd", momentum=0.5, lr=0.1, batch=48),
    "digits_seven": Recipe(depth=7, width=52, activation="silu", lr=2e-3, batch=40),
    "digits_softsign": Recipe(depth=4, width=48, activation="softsign", optimizer="sgd", lr=0.1),
    "digits_relu_five": Recipe(depth=5, width=56, init="he", lr=2e-3, batch=24),
    "moons_leaky": Recipe(task="moons", depth=6, width=24, activation="leaky_relu", init="he", lr=4e-3),
    "cancer_adamax": Recipe(task="cancer", depth=3, width=32, optimizer="adamax", lr=6e-3),
    "diabetes_elu": Recipe(task="diabetes", depth=3, width=24, activation="elu", lr=4e-3, batch=24),
    "photo_relu": Recipe(task="photo", depth=4, width=44, init="he", lr=3e-3, batch=100, steps=100),
    "bodies_gelu": Recipe(task="bodies", depth=4, width=40, activation="gelu", lr=4e-3, batch=48),
    "tumors_sigmoid": Recipe(task="tumors", depth=2, width=40, activation="sigmoid", lr=2e-2),
    "tags_silu": Recipe(task="tags", depth=5, width=40, activation="silu", lr=3e-3, batch=24),
    "shells_seven": Recipe(task="shells", depth=7, width=34, init="he", lr=2e-3, batch=64, steps=100),
    "five_tanh": Recipe(
        task="at_least_five", depth=4, width=42, activation="tanh", init="xavier", lr=3e-3, batch=24
    ),
    "regression_tanh": Recipe(task="regression", depth=2, width=44, activation="tanh", lr=1e-2, batch=40),
    "iris_tanh": Recipe(task="iris", depth=3, width=18, activation="tanh", lr=1e-2, batch=20),
    "wine_relu_sgd": Recipe(task="wine", depth=3, width=28, init="he", optimizer="sgd", lr=0.03, batch=24),
    # skips and norms
    "residual_teacher": Recipe(task="teacher", depth=10, width=32, residual=True, norm="layer", lr=2e-3),
    "residual_halves": Recipe(
        task="halves", depth=6, width=44, residual=True, norm="batch", lr=2e-3, batch=48
    ),
    "batchnorm_rings": Recipe(task="rings", depth=5, width=36, norm="batch", lr=5e-3, batch=64),
    "batchnorm_digits_sgd": Recipe(depth=6, width=44, norm="batch", optimizer="sgd", lr=0.05, batch=40),
    "layernorm_clusters": Recipe(
        task="clusters", depth=6, width=36, norm="layer", activation="silu", lr=2e-3
    ),
    "highway_shells": Recipe(arch="highway", task="shells", depth=6, width=36, lr=5e-3),
    "rezero_halves": Recipe(arch="rezero", task="halves", depth=7, width=40, lr=4e-3),
    "gated_prices": Recipe(arch="gated_residuals", task="prices", depth=2, width=26, lr=4e-3),
    "funnel_clusters": Recipe(arch="funnel", task="clusters", depth=4, width=56, init="he", lr=2e-3),
    "wide_deep_china": Recipe(arch="wide_deep", task="china", depth=4, width=26, lr=4e-3, batch=48),
    # models of this set
    "low_rank_digits": Recipe(arch="low_rank", depth=4, width=64, init="he", lr=2e-3),
    "low_rank_friedman": Recipe(
        arch="low_rank", task="friedman", depth=3, width=48, activation="gelu", lr=5e-3
    ),
    "snakes_wave": Recipe(arch="snakes", task="swiss", depth=2, width=36, lr=4e-3),
    "layer_scale_tags": Recipe(
        arch="layer_scale", task="tags", depth=4, width=32, activation="gelu", lr=3e-3
    ),
    "layer_scale_sgd": Recipe(arch="layer_scale", depth=3, width=36, optimizer="sgd", lr=0.1),
    "repeated_rings": Recipe(arch="repeated", task="rings", depth=6, width=32, lr=4e-3),
    "repeated_five": Recipe(
        arch="repeated", task="at_least_five", depth=4, width=40, activation="tanh", lr=3e-3
    ),
    "two_experts_clusters": Recipe(arch="two_experts", task="clusters", depth=4, width=28, lr=4e-3, batch=48),
    "skipping_shells": Recipe(arch="skipping", task="shells", depth=4, width=36, lr=5e-3, batch=64),
    "cosine_digits": Recipe(arch="cosine_head", depth=2, width=48, activation="relu", lr=3e-3),
    "cosine_rings": Recipe(arch="cosine_head", task="rings", depth=3, width=40, activation="elu", lr=4e-3),
    "bilinear_phase": Recipe(arch="bilinear", task="phase", depth=2, width=30, lr=4e-3),
    "bilinear_impedance": Recipe(arch="bilinear", task="impedance", depth=3, width=26, lr=3e-3, batch=48),
    "piecewise_prices": Recipe(arch="piecewise", task="prices", depth=2, width=34, lr=4e-3),
    "piecewise_cancer": Recipe(
        arch="piecewise", task="cancer", depth=1, width=30, optimizer="adamw", lr=3e-3
    ),
    "dueling_digits": Recipe(arch="dueling", depth=2, width=44, lr=3e-3),
    "powers_bodies": Recipe(arch="powers", task="bodies", depth=2, width=36, lr=4e-3),
    **EIGHTH_SIGNALS,
    **EIGHTH_SETTINGS,
}
#: Recipes whose loss need not fall: opponents, rewards, moving targets, nothing to learn, resumed runs.
UNJUDGED = frozenset(
    {
        "turns_of_gan",
        "bandit_rings",
        "values_shells",
        "simsiam_wider",
        "random_rings",
        "converged_tags",
        "converged_swiss",
    }
)
