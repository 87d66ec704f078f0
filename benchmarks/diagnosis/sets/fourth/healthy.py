"""The healthy runs of the fourth set; its faults are in `faults`.

It was written by someone who had not read the rules, and committed before any of its runs was diagnosed.
Labels alone were checked before, by their traces. None of its models is in another set.
"""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.settings import SETTINGS

__all__ = ["HEALTHY", "UNJUDGED"]

HEALTHY: dict[str, Recipe] = {
    # vectors, tables, sets and graphs
    "graph_conv": Recipe(arch="graph_conv", task="nodes", depth=3, width=32, lr=5e-3, batch=64),
    "graph_conv_sgd": Recipe(
        arch="graph_conv", task="nodes", depth=2, width=24, optimizer="nesterov", lr=0.1, batch=64
    ),
    "graph_attention": Recipe(arch="graph_attention", task="nodes", depth=2, width=20, lr=5e-3, steps=60),
    "additive": Recipe(arch="additive", task="friedman", width=16, lr=1e-2),
    "additive_counts": Recipe(
        arch="additive", task="counts", width=12, activation="elu", lr=5e-3, extras=("training:events",)
    ),
    "cross": Recipe(arch="cross", task="wine", width=32, depth=2, steps=60),
    "cross_adamax": Recipe(arch="cross", task="cancer", width=24, depth=3, optimizer="adamax", lr=4e-3),
    "soft_tree": Recipe(arch="soft_tree", task="clusters", depth=4, width=8, lr=3e-2),
    "soft_tree_cancer": Recipe(arch="soft_tree", task="cancer", depth=3, width=6, lr=2e-2, batch=48),
    "modulated": Recipe(arch="modulated", depth=2, width=28, activation="gelu", lr=2e-3),
    "modulated_swiss": Recipe(arch="modulated", task="swiss", depth=3, width=24, activation="tanh", lr=5e-3),
    "capsules": Recipe(arch="capsules", width=16, lr=5e-3, batch=24, extras=("training:margin",)),
    "weight_norm": Recipe(arch="reparametrized", depth=4, width=40),
    "weight_norm_sgd": Recipe(
        arch="reparametrized", task="teacher", depth=3, width=32, optimizer="sgd", lr=0.05, activation="tanh"
    ),
    "spectral_norm": Recipe(arch="reparametrized", depth=3, width=48, lr=5e-3, extras=("spectral",)),
    "ensemble": Recipe(arch="ensemble", task="wine", depth=3, width=20, steps=70),
    "bayesian": Recipe(arch="bayesian", depth=3, width=32, extras=("training:weights",)),
    "bag": Recipe(arch="bag", task="bags", depth=2, width=32, lr=2e-3, steps=100),
    "bag_sgd": Recipe(arch="bag", task="bags", depth=1, width=40, optimizer="sgd", lr=0.1, steps=120),
    "table_transformer": Recipe(arch="table_transformer", task="friedman", depth=2, width=16),
    "table_transformer_wine": Recipe(
        arch="table_transformer",
        task="wine",
        depth=1,
        width=16,
        dropout=0.1,
        optimizer="adamw",
        warmup=10,
        schedule="linear",
        weight_decay=0.05,
    ),
    "gated": Recipe(arch="gated", depth=6, width=32, lr=2e-3),
    "gated_lion": Recipe(arch="gated", depth=4, width=32, optimizer="lion", lr=5e-4, weight_decay=0.1),
    "tied_autoencoder": Recipe(arch="tied_autoencoder", task="reconstruct", width=40, activation="elu"),
    "several": Recipe(arch="several", depth=3, width=48, lr=2e-3, extras=("training:several",)),
    "several_clipped": Recipe(
        arch="several",
        depth=4,
        width=40,
        optimizer="nesterov",
        lr=0.05,
        max_norm=2.0,
        init="he",
        extras=("training:several",),
    ),
    "exits": Recipe(arch="exits", depth=6, width=32, init="he", lr=2e-3, extras=("training:exits",)),
    "autoregressive": Recipe(
        arch="autoregressive", task="bits", width=64, lr=5e-3, extras=("training:bits",)
    ),
    "rival": Recipe(arch="rival", width=40, lr=2e-3, extras=("training:domains",)),
    # physical fields
    "hamiltonian": Recipe(arch="hamiltonian", task="pendulum", depth=3, width=32, activation="tanh", lr=1e-2),
    "operator": Recipe(arch="operator", task="heat", depth=3, width=32, activation="gelu"),
    "operator_tanh": Recipe(arch="operator", task="heat", depth=2, width=40, activation="tanh", lr=5e-3),
    "fourier_operator": Recipe(arch="fourier_operator", task="heat", depth=2, width=12, lr=5e-3),
    "fourier_features": Recipe(arch="fourier_features", task="photo", depth=3, width=48, lr=5e-3, batch=128),
    "fourier_adagrad": Recipe(
        arch="fourier_features", task="photo", depth=4, width=40, optimizer="adagrad", lr=2e-2, batch=256
    ),
    "equation": Recipe(
        task="wave", depth=3, width=24, activation="tanh", extras=("training:equation",), steps=120
    ),
    "diffusion": Recipe(
        arch="timed", task="reconstruct", depth=3, width=48, activation="silu", extras=("training:diffusion",)
    ),
    # images
    "inverted": Recipe(arch="inverted", task="images", depth=2, width=10, lr=5e-3, steps=60),
    "transposed": Recipe(arch="transposed", task="color_patches", width=12, lr=5e-3),
    "sub_pixel": Recipe(
        arch="sub_pixel", task="color_patches", depth=3, width=12, activation="gelu", lr=2e-3
    ),
    "causal": Recipe(
        arch="causal", task="images", depth=2, width=12, lr=5e-3, batch=24, extras=("training:levels",)
    ),
    "warped": Recipe(arch="warped", task="images", depth=3, width=12),
    "conv_mixer": Recipe(arch="conv_mixer", task="images", depth=3, width=20, lr=5e-3, batch=24),
    "conv_mixer_cosine": Recipe(
        arch="conv_mixer",
        task="images",
        depth=2,
        width=24,
        optimizer="adamw",
        lr=5e-3,
        schedule="cosine",
        weight_decay=0.05,
        extras=("training:angle",),
    ),
    "products": Recipe(arch="products", task="images", depth=3, width=10, lr=2e-3, activation="silu"),
    "standardized": Recipe(
        arch="standardized", task="images", depth=3, width=12, optimizer="nesterov", lr=0.05, steps=60
    ),
    "again": Recipe(arch="again", task="images", depth=3, width=16, lr=1e-2),
    "waves": Recipe(arch="waves", task="signals", depth=3, width=12, lr=5e-3),
    "waves_one_cycle": Recipe(
        arch="waves", task="signals", depth=2, width=16, optimizer="sgd", lr=0.1, schedule="one_cycle"
    ),
    # sequences
    "spatial_gating": Recipe(arch="spatial_gating", task="rows", depth=3, width=20),
    "spatial_gating_patches": Recipe(arch="spatial_gating", task="patches", depth=1, width=24, lr=5e-3),
    "fourier_mixing": Recipe(arch="fourier_mixing", task="patches", depth=2, width=24),
    "linear_attention": Recipe(arch="linear_attention", task="text", depth=2, width=24, batch=8),
    "linear_attention_series": Recipe(arch="linear_attention", task="series", depth=1, width=20, batch=16),
    "parallel": Recipe(arch="parallel", task="text", depth=2, width=24, batch=8, warmup=5),
    "parallel_shared": Recipe(
        arch="parallel",
        task="text",
        depth=4,
        width=28,
        batch=8,
        optimizer="adamw",
        max_norm=1.0,
        lr=2e-3,
        weight_decay=0.1,
        extras=("shared",),
    ),
    "independent": Recipe(arch="independent", task="rows", depth=2, width=28),
    "independent_series": Recipe(arch="independent", task="series", depth=1, width=24, lr=5e-3, batch=16),
    "reservoir": Recipe(arch="reservoir", task="rows", width=80, lr=2e-2),
    "diagonal": Recipe(arch="diagonal", task="series", depth=2, width=14, lr=5e-3, batch=16),
    "diagonal_text": Recipe(arch="diagonal", task="text", depth=1, width=24, lr=1e-2, batch=8),
    "liquid": Recipe(arch="liquid", task="rows", width=28, lr=5e-3),
    "liquid_patches": Recipe(arch="liquid", task="patches", width=24, lr=1e-2, max_norm=5.0),
    "normed_lstm": Recipe(arch="normed_lstm", task="rows", width=24, lr=1e-2),
    "temporal": Recipe(arch="temporal", task="series", depth=4, width=16, residual=True, batch=16),
    "temporal_tanh": Recipe(
        arch="temporal", task="series", depth=4, width=20, activation="tanh", init="xavier", batch=16
    ),
    "pointer": Recipe(arch="pointer", task="largest", width=24, lr=1e-2, batch=48),
    "memory": Recipe(arch="memory", task="recall", depth=2, width=24, lr=1e-2, batch=64, steps=100),
    "filler": Recipe(arch="filler", task="patches", depth=1, width=24, lr=5e-3, extras=("training:fill",)),
    "transcriber": Recipe(
        arch="transcriber", task="pairs", width=24, lr=1e-2, extras=("training:transcript",)
    ),
    "copier": Recipe(
        arch="copier", task="text", depth=1, width=24, lr=5e-3, batch=16, extras=("training:copy",), steps=60
    ),
    **SETTINGS,
}
#: Recipes whose loss need not fall: opponents, rewards, a resumed run, labels that are half wrong.
UNJUDGED = frozenset({"turns", "critic", "proximal", "resumed_gated", "resumed_swiss"})
