"""The healthy runs of the ninth set: new models, tasks, recipes and seeds; faults are those of earlier sets.

It was written by someone who had not read the rules, and committed before any of its runs was diagnosed.
Labels alone were checked before, by their traces. No recipe is that of another set.
"""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.ninth.settings import NINTH_SETTINGS
from benchmarks.diagnosis.sets.ninth.signals import NINTH_SIGNALS

__all__ = ["HEALTHY", "UNJUDGED"]

HEALTHY: dict[str, Recipe] = {
    # plain networks: depth, activation, initialization, optimizer
    "alcohol_relu": Recipe(task="alcohol", depth=3, width=40, init="he", lr=4e-3, batch=24),
    "alcohol_sgd": Recipe(task="alcohol", depth=3, width=30, activation="tanh", optimizer="sgd", lr=0.03),
    "petals_elu": Recipe(task="petals", depth=4, width=22, activation="elu", lr=6e-3, batch=30),
    "odd_relu": Recipe(task="odd", depth=4, width=60, init="he", lr=2e-3, batch=48),
    "odd_silu_sgd": Recipe(
        task="odd", depth=3, width=54, activation="silu", optimizer="nesterov", lr=0.06, batch=40
    ),
    "odd_tanh_five": Recipe(task="odd", depth=5, width=38, activation="tanh", init="xavier", lr=2e-3),
    "turned_gelu": Recipe(task="turned", depth=3, width=96, activation="gelu", lr=4e-3, batch=40, steps=120),
    "turned_tanh": Recipe(task="turned", depth=2, width=80, activation="tanh", lr=8e-3, batch=64),
    "blurred_relu": Recipe(task="blurred", depth=3, width=88, init="he", lr=3e-3, batch=40, steps=100),
    "checkers_gelu": Recipe(
        task="checkers", depth=4, width=64, activation="gelu", lr=8e-3, batch=128, steps=150
    ),
    "checkers_relu": Recipe(task="checkers", depth=4, width=72, init="he", lr=6e-3, batch=128, steps=150),
    "blobs_relu": Recipe(task="blobs", depth=3, width=34, init="he", lr=3e-3),
    "blobs_sigmoid": Recipe(task="blobs", depth=2, width=36, activation="sigmoid", lr=2e-2, batch=48),
    "blobs_sgd": Recipe(
        task="blobs", depth=5, width=40, init="he", optimizer="sgd", lr=0.04, batch=24, steps=100
    ),
    "collinear_relu": Recipe(task="collinear", depth=4, width=48, init="he", lr=3e-3, batch=40),
    "collinear_linear": Recipe(task="collinear", depth=1, optimizer="sgd", momentum=0.0, lr=0.02),
    "collinear_leaky": Recipe(
        task="collinear", depth=6, width=44, activation="leaky_relu", init="he", lr=2e-3, steps=100
    ),
    "kepler_tanh": Recipe(
        task="kepler", depth=4, width=36, activation="tanh", init="xavier", lr=5e-3, batch=64
    ),
    "kepler_silu": Recipe(task="kepler", depth=5, width=44, activation="silu", lr=4e-3, batch=48, steps=100),
    "throws_relu": Recipe(task="throws", depth=3, width=46, init="he", lr=6e-3, batch=48),
    "throws_softplus": Recipe(task="throws", depth=3, width=40, activation="softplus", lr=8e-3, batch=40),
    "arm_mish": Recipe(task="arm", depth=4, width=50, activation="mish", lr=6e-3, batch=64, steps=100),
    "arm_relu_sgd": Recipe(
        task="arm", depth=4, width=48, init="he", optimizer="nesterov", lr=0.02, batch=48, steps=120
    ),
    "logic_relu": Recipe(task="logic", depth=3, width=56, init="he", lr=5e-3, batch=64),
    "logic_gelu": Recipe(
        task="logic", depth=5, width=40, activation="gelu", init="xavier", lr=3e-3, batch=48
    ),
    "overlapping_relu": Recipe(task="overlapping", depth=4, width=42, init="he", lr=4e-3),
    "overlapping_selu": Recipe(task="overlapping", depth=5, width=36, activation="selu", lr=2e-3, batch=48),
    "digits_eight": Recipe(depth=8, width=48, init="he", lr=1e-3, batch=64, steps=100),
    "digits_wide_one": Recipe(depth=2, width=160, init="he", lr=1e-3, batch=24),
    "digits_relu6": Recipe(depth=3, width=52, activation="relu6", lr=3e-3, batch=48),
    "digits_hardswish": Recipe(
        depth=4, width=50, activation="hardswish", optimizer="nesterov", lr=0.05, batch=40
    ),
    "teacher_prelu": Recipe(task="teacher", depth=4, width=40, activation="prelu", lr=4e-3, batch=48),
    "clusters_relu": Recipe(task="clusters", depth=5, width=50, init="he", lr=2e-3, batch=40),
    "friedman_softsign": Recipe(task="friedman", depth=3, width=46, activation="softsign", lr=8e-3, batch=40),
    "prices_relu": Recipe(task="prices", depth=5, width=40, init="he", lr=2e-3, batch=40),
    "mixture_relu": Recipe(task="mixture", depth=4, width=54, init="he", lr=3e-3, batch=48),
    "cancer_tanh_sgd": Recipe(
        task="cancer", depth=3, width=26, activation="tanh", optimizer="sgd", lr=0.02, batch=48
    ),
    "ribbon_silu": Recipe(task="ribbon", depth=4, width=38, activation="silu", lr=6e-3, batch=48),
    # skips and norms
    "residual_logic": Recipe(
        task="logic", depth=8, width=36, residual=True, norm="layer", activation="gelu", lr=2e-3, batch=48
    ),
    "residual_turned": Recipe(task="turned", depth=5, width=64, residual=True, lr=2e-3, batch=40, steps=100),
    "batchnorm_odd": Recipe(task="odd", depth=6, width=44, norm="batch", lr=4e-3, batch=48),
    "batchnorm_blobs_sgd": Recipe(
        task="blobs", depth=4, width=36, norm="batch", optimizer="sgd", lr=0.05, batch=48
    ),
    "layernorm_collinear": Recipe(
        task="collinear", depth=5, width=40, norm="layer", activation="gelu", lr=3e-3
    ),
    "highway_odd": Recipe(arch="highway", task="odd", depth=5, width=40, lr=4e-3, batch=40),
    "rezero_collinear": Recipe(arch="rezero", task="collinear", depth=6, width=36, lr=4e-3, batch=40),
    "preactivated_crosses": Recipe(arch="preactivated", task="crosses", width=14, depth=2, lr=5e-3, steps=80),
    # models of this set
    "fuzzy_kepler": Recipe(arch="fuzzy_rules", task="kepler", width=24, lr=2e-2, batch=48),
    "fuzzy_throws": Recipe(arch="fuzzy_rules", task="throws", width=20, optimizer="sgd", lr=0.1, batch=40),
    "dendrites_odd": Recipe(arch="dendrites", task="odd", depth=2, width=36, lr=3e-3, batch=40),
    "dendrites_arm": Recipe(arch="dendrites", task="arm", depth=3, width=32, activation="tanh", lr=4e-3),
    "lattices_logic": Recipe(arch="lattices", task="logic", width=40, lr=2e-2, batch=48),
    "periodic_alcohol": Recipe(arch="periodic", task="alcohol", depth=2, width=36, lr=3e-3, batch=24),
    "periodic_throws": Recipe(
        arch="periodic", task="throws", depth=3, width=40, optimizer="adamw", weight_decay=0.01, lr=3e-3
    ),
    "members_overlapping": Recipe(arch="rank_one_ensemble", task="overlapping", depth=3, width=40, lr=4e-3),
    "members_digits": Recipe(
        arch="rank_one_ensemble", depth=2, width=48, activation="gelu", optimizer="sgd", lr=0.1
    ),
    "gates_kepler": Recipe(arch="multi_gate", task="kepler", width=28, lr=5e-3, batch=48),
    "gates_throws": Recipe(arch="multi_gate", task="throws", width=24, optimizer="rmsprop", lr=2e-3),
    "unit_layers_blobs": Recipe(arch="unit_layers", task="blobs", depth=3, width=40, lr=4e-3),
    "unit_layers_digits": Recipe(arch="unit_layers", depth=2, width=44, activation="tanh", lr=5e-3, batch=48),
    "rationals_arm": Recipe(arch="rationals", task="arm", depth=3, width=36, lr=4e-3, batch=48),
    "rationals_odd": Recipe(arch="rationals", task="odd", depth=2, width=40, lr=3e-3),
    "blended_kepler": Recipe(arch="blended", task="kepler", depth=3, width=40, lr=5e-3, batch=40),
    "blended_sgd": Recipe(arch="blended", task="overlapping", depth=3, width=36, optimizer="sgd", lr=0.05),
    "kronecker_digits": Recipe(arch="kronecker", depth=4, width=48, lr=4e-3, batch=40),
    "kronecker_turned": Recipe(
        arch="kronecker", task="blurred", depth=3, width=64, activation="gelu", lr=4e-3, steps=100
    ),
    "streams_logic": Recipe(
        arch="hyper_connections", task="logic", depth=4, width=32, activation="gelu", lr=4e-3, batch=48
    ),
    "streams_digits": Recipe(arch="hyper_connections", depth=3, width=36, optimizer="sgd", lr=0.01),
    "rows_blobs": Recipe(arch="between_rows", task="blobs", depth=2, width=32, lr=3e-3, batch=64),
    "scales_odd": Recipe(arch="scales_alone", task="odd", depth=2, width=72, lr=1e-2, batch=40),
    "magnitudes_overlapping": Recipe(
        arch="magnitudes", task="overlapping", depth=3, width=40, activation="gelu", lr=1e-2
    ),
    "shared_random_digits": Recipe(arch="shared_random", depth=2, width=56, lr=6e-3, batch=40),
    "progressive_collinear": Recipe(arch="progressive", task="collinear", depth=2, width=36, lr=3e-3),
    "progressive_logic": Recipe(
        arch="progressive", task="logic", depth=3, width=40, activation="tanh", lr=4e-3, batch=64
    ),
    "stitched_odd": Recipe(arch="stitched", task="odd", depth=2, width=32, lr=4e-3),
    "stitched_throws": Recipe(arch="stitched", task="throws", depth=3, width=28, activation="silu", lr=5e-3),
    **NINTH_SIGNALS,
    **NINTH_SETTINGS,
}
#: Recipes whose loss need not fall: opponents, rewards, moving targets, nothing to learn, resumed runs.
UNJUDGED = frozenset(
    {
        "rivals_in_turns",
        "bandit_overlapping",
        "values_collinear",
        "simsiam_odd",
        "random_blobs",
        "converged_odd",
        "converged_kepler",
    }
)
