"""The healthy runs of the fourth set that add new losses, optimizers, batches or precisions."""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe

__all__ = ["SETTINGS"]

SETTINGS: dict[str, Recipe] = {
    # losses
    "smoothed": Recipe(depth=4, width=44, activation="selu", lr=2e-3, extras=("training:smoothed",)),
    "focal_sgd": Recipe(depth=3, width=56, optimizer="sgd", lr=0.1, init="he", extras=("training:focal",)),
    "hinge": Recipe(depth=3, width=40, activation="leaky_relu", lr=2e-3, extras=("training:hinge",)),
    "quantiles": Recipe(task="curve", depth=3, width=32, activation="silu", extras=("training:quantiles",)),
    "spread": Recipe(
        task="curve", depth=3, width=28, activation="gelu", lr=2e-3, extras=("training:spread",)
    ),
    "mixup": Recipe(depth=4, width=52, lr=3e-3, extras=("training:mixup",)),
    "attacked": Recipe(depth=3, width=44, lr=3e-3, extras=("training:attacked",)),
    "lesson": Recipe(depth=3, width=20, lr=5e-3, extras=("training:lesson",)),
    "angle": Recipe(depth=4, width=36, activation="elu", lr=2e-3, extras=("training:angle",)),
    "order": Recipe(task="friedman", depth=3, width=24, lr=3e-3, extras=("training:order",)),
    "survival": Recipe(
        task="friedman",
        depth=3,
        width=30,
        activation="tanh",
        lr=3e-3,
        batch=48,
        extras=("training:survival",),
    ),
    "agree": Recipe(depth=3, width=60, dropout=0.2, lr=3e-3, extras=("training:agree",)),
    "follow": Recipe(
        arch="pair", depth=3, width=32, batch=64, norm="batch", lr=1e-3, extras=("training:follow",)
    ),
    "redundancy": Recipe(depth=3, width=40, batch=96, lr=2e-3, extras=("training:redundancy",)),
    "turns": Recipe(arch="gan", width=32, lr=1e-3, extras=("training:turns",), steps=100),
    "critic": Recipe(arch="gan", width=36, lr=5e-4, extras=("training:critic",)),
    "proximal": Recipe(depth=3, width=32, activation="tanh", lr=3e-3, extras=("training:proximal",)),
    "inner_steps": Recipe(
        task="wave", depth=3, width=24, activation="tanh", lr=5e-3, extras=("training:waves",), steps=60
    ),
    # optimizers and schedules
    "adadelta": Recipe(depth=3, width=48, optimizer="adadelta", lr=1.0),
    "radam_triangles": Recipe(
        task="clusters", depth=4, width=30, optimizer="radam", lr=2e-2, schedule="triangles"
    ),
    "rprop": Recipe(
        depth=3, width=32, optimizer="rprop", lr=1e-3, batch=400, extras=("same_batch",), steps=60
    ),
    "adafactor": Recipe(depth=4, width=40, activation="gelu", optimizer="adafactor", lr=1e-2),
    "lion_images": Recipe(arch="products", task="images", depth=2, width=12, optimizer="lion", lr=2e-3),
    "sharp": Recipe(depth=3, width=44, optimizer="sgd", lr=0.05, extras=("sharp:0.05",)),
    "lookahead": Recipe(task="friedman", depth=4, width=36, extras=("lookahead:5",), lr=5e-3),
    "noisy_gradients": Recipe(depth=3, width=36, optimizer="sgd", lr=0.05, extras=("noise:0.5",)),
    "muon_gated": Recipe(arch="gated", depth=4, width=28, optimizer="muon", lr=1e-2),
    "two_optimizers": Recipe(
        arch="exits", depth=4, width=40, lr=2e-3, extras=("training:exits", "apart:heads")
    ),
    # batches, precisions, resumed and noisy ones
    "batch_of_2": Recipe(task="wine", batch=2, depth=3, width=24, lr=5e-4, activation="gelu", steps=150),
    "batch_of_900": Recipe(batch=900, depth=3, width=40, lr=5e-3, steps=40),
    "accumulated": Recipe(
        arch="waves", task="signals", depth=2, width=10, batch=8, accumulate=3, lr=5e-3, steps=50
    ),
    "bfloat16_weights": Recipe(
        precision="bfloat16", arch="additive", task="friedman", width=20, lr=5e-3, optimizer="adamw"
    ),
    "amp_bfloat16_gates": Recipe(precision="amp_bfloat16", arch="gated", depth=5, width=36, lr=2e-3),
    "amp_float16_scaled": Recipe(
        precision="amp_float16", depth=4, width=40, loss_scale=1024.0, activation="silu"
    ),
    "resumed_gated": Recipe(arch="gated", depth=3, width=28, lr=2e-4, extras=("restart",)),
    "resumed_swiss": Recipe(
        task="swiss",
        depth=3,
        width=28,
        activation="silu",
        lr=3e-4,
        extras=("restart",),
        schedule="cosine",
        steps=60,
    ),
    "often_wrong": Recipe(
        arch="conv_mixer", task="images", depth=2, width=16, lr=3e-3, extras=("label_noise:0.4",)
    ),
    "dropout_half": Recipe(task="cancer", depth=3, width=96, dropout=0.5, lr=2e-3),
    # plain networks to which faults are applied
    "swiss_relu": Recipe(task="swiss", depth=4, width=44, lr=3e-3),
    "swiss_sgd": Recipe(task="swiss", depth=3, width=36, activation="tanh", optimizer="sgd", lr=0.05),
    "counts_gelu": Recipe(
        task="counts", depth=3, width=32, activation="gelu", lr=2e-3, extras=("training:events",)
    ),
    "bits_sigmoid": Recipe(
        task="bits", depth=2, width=64, activation="sigmoid", lr=1e-2, extras=("training:bits",)
    ),
    "photo_sgd": Recipe(
        arch="fourier_features", task="photo", depth=3, width=40, optimizer="sgd", lr=0.1, batch=128
    ),
    "heat_tanh": Recipe(task="heat", depth=5, width=36, activation="tanh", init="xavier", lr=2e-3),
    "pendulum_elu": Recipe(task="pendulum", depth=4, width=30, activation="elu", lr=5e-3),
    "units_digits": Recipe(
        depth=3, width=48, optimizer="sgd", momentum=0.9, lr=3e4, extras=("loss_factor:1e-6",), init="he"
    ),
    "units_swiss": Recipe(
        task="swiss", depth=3, width=40, optimizer="sgd", momentum=0.9, lr=5e4, extras=("loss_factor:4e-7",)
    ),
    "units_clusters": Recipe(
        task="clusters",
        depth=4,
        width=36,
        optimizer="sgd",
        lr=2e4,
        extras=("loss_factor:2e-6",),
        activation="gelu",
    ),
    "units_heat": Recipe(
        task="heat",
        depth=3,
        width=40,
        optimizer="nesterov",
        lr=5e4,
        extras=("loss_factor:4e-6",),
        activation="tanh",
    ),
    "units_bits": Recipe(
        task="bits",
        depth=2,
        width=56,
        optimizer="sgd",
        lr=1e4,
        activation="tanh",
        extras=("training:bits", "loss_factor:1e-4"),
    ),
    "softmax_wine": Recipe(
        task="wine",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.3,
        batch=178,
        extras=("same_batch", "label_noise:0.3"),
        steps=60,
    ),
    "softmax_digits": Recipe(
        depth=1, optimizer="sgd", momentum=0.0, lr=0.1, batch=500, extras=("same_batch", "label_noise:0.3")
    ),
    "full_swiss": Recipe(
        task="swiss",
        depth=3,
        width=32,
        activation="tanh",
        optimizer="sgd",
        momentum=0.0,
        lr=0.1,
        batch=400,
        extras=("same_batch",),
    ),
    "full_moons": Recipe(
        task="moons",
        depth=2,
        width=32,
        activation="tanh",
        optimizer="sgd",
        momentum=0.0,
        lr=0.2,
        batch=300,
        extras=("same_batch", "label_noise:0.1"),
    ),
    "full_iris_lion": Recipe(
        task="iris",
        depth=2,
        width=24,
        activation="tanh",
        optimizer="lion",
        lr=2e-3,
        batch=150,
        extras=("same_batch",),
    ),
    "softmax_iris": Recipe(
        task="iris",
        depth=1,
        optimizer="nesterov",
        momentum=0.5,
        lr=0.2,
        batch=140,
        extras=("same_batch", "label_noise:0.4"),
    ),
    "softmax_cancer": Recipe(
        task="cancer",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.1,
        batch=400,
        extras=("same_batch", "label_noise:0.3"),
    ),
    "softmax_moons": Recipe(
        task="moons",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.3,
        batch=300,
        extras=("same_batch", "label_noise:0.2"),
    ),
}
