"""The healthy runs of the fifth set that add new losses, regimes, optimizers or precisions."""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe

__all__ = ["FIFTH_SETTINGS"]

FIFTH_SETTINGS: dict[str, Recipe] = {
    # losses
    "grades": Recipe(task="grades", depth=3, width=24, activation="silu", extras=("training:grades",)),
    "overdispersed": Recipe(
        task="counts", depth=3, width=28, activation="gelu", lr=5e-3, extras=("training:overdispersed",)
    ),
    "censored": Recipe(task="hazards", depth=3, width=24, lr=3e-3, extras=("training:censored",)),
    "evidential": Recipe(depth=3, width=40, lr=3e-3, extras=("training:evidential",)),
    "compass": Recipe(
        task="directions", depth=3, width=24, activation="elu", lr=3e-3, extras=("training:compass",)
    ),
    "ranked": Recipe(
        task="colors", depth=3, width=28, activation="gelu", lr=5e-3, extras=("training:ranked",)
    ),
    "huber": Recipe(
        task="bodies", depth=2, width=24, activation="tanh", lr=5e-3, batch=20, extras=("training:huber",)
    ),
    "tweedie": Recipe(task="counts", depth=2, width=24, lr=5e-3, extras=("training:tweedie",)),
    "supervised_contrast": Recipe(
        depth=3, width=40, lr=3e-3, batch=64, extras=("training:supervised_contrast",)
    ),
    "variance": Recipe(depth=3, width=36, lr=2e-3, batch=64, extras=("training:variance",)),
    "robust": Recipe(depth=3, width=44, lr=3e-3, extras=("training:robust", "label_noise:0.3")),
    "paired": Recipe(
        arch="categories", task="visits", depth=2, width=24, lr=1e-2, batch=64, extras=("training:paired",)
    ),
    # what changes from step to step
    "curriculum": Recipe(depth=4, width=36, lr=3e-3, extras=("training:curriculum",)),
    "resizing": Recipe(
        arch="shuffled", task="images", depth=3, width=16, lr=1e-2, extras=("training:resizing",), steps=60
    ),
    "unfreezing": Recipe(depth=4, width=40, lr=3e-3, extras=("training:unfreezing",)),
    "pruning": Recipe(depth=3, width=48, lr=3e-3, extras=("training:pruning",)),
    "cut": Recipe(arch="local", task="images", width=6, lr=3e-3, extras=("training:cut",)),
    "mean_teacher": Recipe(depth=3, width=36, lr=3e-3, extras=("training:mean_teacher",)),
    "pseudo": Recipe(depth=3, width=48, lr=3e-3, batch=48, extras=("training:pseudo",)),
    "earlier_self": Recipe(depth=3, width=40, lr=3e-3, extras=("training:earlier_self",)),
    "queue": Recipe(depth=3, width=32, lr=3e-3, extras=("training:queue",)),
    "energy": Recipe(depth=3, width=40, activation="silu", lr=1e-3, extras=("training:energy",)),
    "annealed": Recipe(
        arch="variational", task="reconstruct", width=40, lr=5e-3, extras=("training:annealed",)
    ),
    "moments": Recipe(
        arch="autoencoder", task="reconstruct", width=56, activation="silu", extras=("training:moments",)
    ),
    "ritz": Recipe(task="wave", depth=3, width=28, activation="tanh", lr=5e-3, extras=("training:ritz",)),
    "policy": Recipe(task="moons", depth=3, width=24, activation="elu", extras=("training:policy",)),
    "driven": Recipe(
        task="moons", depth=3, width=24, activation="tanh", lr=5e-3, steps=50, extras=("training:driven",)
    ),
    "forward": Recipe(depth=3, width=48, lr=5e-3, init="he", extras=("training:forward",)),
    "smooth": Recipe(depth=3, width=36, lr=3e-3, extras=("training:smooth",)),
    "flat": Recipe(depth=3, width=40, activation="gelu", lr=3e-3, extras=("training:flat",)),
    "slim": Recipe(depth=3, width=48, lr=3e-3, extras=("training:slim",)),
    "rehearsal": Recipe(depth=3, width=36, lr=3e-3, batch=48, extras=("training:rehearsal",)),
    # optimizers
    "signum": Recipe(depth=3, width=36, optimizer="signum", lr=1e-3),
    "lars": Recipe(depth=4, width=44, init="he", optimizer="lars", lr=0.03, batch=128),
    "lamb": Recipe(depth=4, width=40, optimizer="lamb", lr=2e-2, weight_decay=0.1, batch=128),
    "adabelief": Recipe(task="rings", depth=4, width=32, optimizer="adabelief", lr=5e-3),
    "yogi": Recipe(task="grades", depth=3, width=28, activation="gelu", optimizer="yogi", lr=5e-3),
    "adan": Recipe(depth=3, width=40, activation="silu", optimizer="adan", lr=2e-3),
    "novograd": Recipe(depth=3, width=44, optimizer="novograd", lr=2e-2),
    "shampoo": Recipe(depth=3, width=32, activation="tanh", optimizer="shampoo", lr=0.2),
    "sophia": Recipe(task="china", depth=3, width=36, optimizer="sophia", lr=2e-3),
    "schedule_free": Recipe(depth=3, width=40, optimizer="schedule_free", lr=0.5),
    "quasi_hyperbolic": Recipe(task="rings", depth=3, width=36, optimizer="quasi_hyperbolic", lr=0.3),
    "centralized": Recipe(depth=4, width=40, init="he", optimizer="centralized", lr=0.01),
    "covered": Recipe(arch="trigrams", task="names", depth=3, width=28, optimizer="covered", lr=0.05),
    "mixed": Recipe(task="colors", depth=4, width=32, activation="gelu", optimizer="mixed", lr=2e-3),
    "projected": Recipe(depth=3, width=44, optimizer="projected", lr=1e-2),
    "bounded": Recipe(task="rings", depth=3, width=40, activation="silu", optimizer="bounded", lr=2e-3),
    # precisions and units
    "bfloat16_colors": Recipe(
        task="colors", depth=3, width=36, activation="silu", precision="bfloat16", optimizer="adamw", lr=5e-3
    ),
    "units_china": Recipe(
        task="china", depth=3, width=40, optimizer="nesterov", lr=3e4, extras=("loss_factor:1e-6",)
    ),
    "units_rings": Recipe(
        task="rings",
        depth=3,
        width=48,
        activation="tanh",
        optimizer="sgd",
        lr=5e4,
        extras=("loss_factor:2e-6",),
    ),
    "units_names": Recipe(
        arch="trigrams",
        task="names",
        depth=2,
        width=28,
        optimizer="sgd",
        lr=2e5,
        extras=("loss_factor:1e-6",),
    ),
    "units_colors": Recipe(
        task="colors",
        depth=4,
        width=40,
        activation="gelu",
        optimizer="sgd",
        lr=6e4,
        extras=("loss_factor:1.7e-6",),
    ),
    # plain networks to which faults are applied
    "colors_relu": Recipe(task="colors", depth=4, width=36, init="he", lr=3e-3),
    "colors_sgd": Recipe(task="colors", depth=3, width=40, activation="tanh", optimizer="sgd", lr=0.1),
    "rings_relu": Recipe(task="rings", depth=5, width=32, init="he", lr=3e-3),
    "china_sgd": Recipe(task="china", depth=4, width=28, optimizer="nesterov", lr=0.02),
    "arithmetic_silu": Recipe(task="arithmetic", depth=4, width=28, activation="silu", lr=3e-3),
    "names_tanh": Recipe(arch="trigrams", task="names", depth=4, width=32, activation="tanh", lr=3e-3),
    "regression_bodies": Recipe(
        task="bodies", depth=1, optimizer="sgd", momentum=0.0, lr=0.2, batch=20, extras=("same_batch",)
    ),
    "softmax_grades": Recipe(
        task="grades", depth=1, optimizer="sgd", momentum=0.0, lr=0.3, batch=442, extras=("same_batch",)
    ),
    "logistic_visits": Recipe(
        task="visits", depth=1, optimizer="sgd", momentum=0.0, lr=0.02, batch=400, extras=("same_batch",)
    ),
    "full_rings": Recipe(
        task="rings",
        depth=2,
        width=24,
        activation="tanh",
        optimizer="sgd",
        momentum=0.0,
        lr=0.4,
        batch=300,
        extras=("same_batch",),
    ),
}
