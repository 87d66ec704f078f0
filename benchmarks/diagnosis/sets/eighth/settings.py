"""The healthy runs of the eighth set that have special losses, optimizers, batches or precisions."""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe

__all__ = ["EIGHTH_SETTINGS"]

EIGHTH_SETTINGS: dict[str, Recipe] = {
    # codes, opponents, rewards, contrasts, adapters
    "autoencoder_silu": Recipe(
        arch="autoencoder", task="reconstruct", width=60, activation="silu", lr=4e-3, batch=40
    ),
    "variational_wider": Recipe(
        arch="variational", task="reconstruct", width=52, lr=4e-3, batch=48, extras=("training:evidence",)
    ),
    "coder_sliced": Recipe(
        arch="coder",
        task="reconstruct",
        width=36,
        activation="gelu",
        lr=5e-3,
        extras=("training:sparse_code",),
    ),
    "turns_of_gan": Recipe(arch="gan", width=36, lr=2e-3, batch=40, extras=("training:squares",)),
    "bandit_rings": Recipe(task="rings", depth=3, width=28, lr=3e-3, batch=64, extras=("training:bandit",)),
    "values_shells": Recipe(task="teacher", depth=3, width=30, lr=2e-3, batch=40, extras=("training:value",)),
    "simsiam_wider": Recipe(
        arch="predicting", depth=3, width=46, lr=2e-3, batch=48, extras=("training:simsiam",)
    ),
    "contrast_halves": Recipe(
        task="mixture", depth=3, width=36, norm="batch", lr=4e-3, batch=40, extras=("training:contrastive",)
    ),
    "experts_rings": Recipe(arch="experts", task="rings", depth=4, width=32, lr=5e-3, batch=64),
    "lora_tags": Recipe(arch="lora", task="tags", depth=3, width=36, init="he", lr=2e-2),
    "frozen_rings": Recipe(arch="frozen", task="rings", depth=4, width=56, init="he", lr=5e-3),
    "huber_prices": Recipe(
        task="prices", depth=3, width=36, optimizer="nesterov", lr=0.02, extras=("training:huber",)
    ),
    "focal_digits": Recipe(depth=3, width=58, lr=3e-3, batch=40, extras=("training:focal",)),
    # optimizers and schedules
    "adamw_clusters": Recipe(
        task="clusters", depth=3, width=48, optimizer="adamw", lr=4e-3, weight_decay=0.05, schedule="cosine"
    ),
    "radam_teacher": Recipe(task="teacher", depth=4, width=38, activation="elu", optimizer="radam", lr=8e-3),
    "lion_halves": Recipe(task="halves", depth=3, width=40, optimizer="lion", lr=1e-3, batch=48),
    "nadam_hastie": Recipe(task="hastie", depth=3, width=44, activation="mish", optimizer="nadam", lr=3e-3),
    "adagrad_bodies": Recipe(task="bodies", depth=3, width=36, init="he", optimizer="adagrad", lr=0.03),
    "cycle_clusters": Recipe(
        task="clusters", depth=3, width=40, init="he", optimizer="sgd", lr=0.1, schedule="one_cycle", batch=48
    ),
    "triangles_five": Recipe(
        task="at_least_five", depth=3, width=36, init="he", optimizer="sgd", lr=0.08, schedule="triangles"
    ),
    "steps_cnn_sgd": Recipe(
        arch="cnn",
        task="colored",
        depth=3,
        width=12,
        init="he",
        optimizer="sgd",
        lr=0.05,
        schedule="steps",
        steps=70,
    ),
    # batches, precisions, noise, resumed runs
    "batch_of_four": Recipe(
        task="rings", batch=4, depth=3, width=36, optimizer="sgd", momentum=0.0, lr=0.05, steps=180
    ),
    "batch_of_900": Recipe(task="clusters", batch=900, depth=4, width=40, lr=8e-3, steps=50),
    "accumulated_tags": Recipe(task="tags", batch=10, accumulate=3, depth=3, width=40, lr=4e-3, steps=60),
    "bfloat16_rings": Recipe(
        task="rings", precision="bfloat16", depth=3, width=48, activation="gelu", optimizer="adamw", lr=5e-3
    ),
    "bfloat16_halves": Recipe(
        task="halves", precision="bfloat16", depth=4, width=44, activation="silu", optimizer="adamw", lr=4e-3
    ),
    "autocast_cnn": Recipe(
        arch="cnn", task="images", precision="amp_bfloat16", depth=4, width=14, init="he", lr=4e-3, steps=60
    ),
    "float16_scaled_shells": Recipe(
        task="shells", precision="amp_float16", loss_scale=512.0, depth=4, width=36, init="he", lr=4e-3
    ),
    "float16_scaled_clusters": Recipe(
        task="clusters", precision="amp_float16", loss_scale=4096.0, depth=3, width=44, init="he"
    ),
    "dropout_tags": Recipe(task="tags", depth=3, width=70, dropout=0.3, lr=4e-3),
    "noisy_clusters": Recipe(
        task="clusters", depth=3, width=44, lr=3e-3, steps=100, extras=("label_noise:0.3",)
    ),
    "random_rings": Recipe(task="rings", depth=3, width=36, lr=1e-3, extras=("random_labels",)),
    "converged_tags": Recipe(task="tags", depth=3, width=36, lr=5e-4, extras=("restart",), steps=60),
    "converged_swiss": Recipe(
        task="swiss", depth=3, width=32, optimizer="sgd", lr=0.01, extras=("restart",), steps=60
    ),
    "loss_untold_rings": Recipe(task="rings", depth=4, width=42, lr=4e-3, extras=("no_loss",)),
    # losses in small units, such as means over very many elements
    "units_rings": Recipe(
        task="rings", depth=3, width=44, init="he", optimizer="sgd", lr=5e4, extras=("loss_factor:2e-6",)
    ),
    "units_halves_gelu": Recipe(
        task="halves",
        depth=3,
        width=36,
        activation="gelu",
        optimizer="sgd",
        lr=5e4,
        extras=("loss_factor:3e-6",),
    ),
    "units_clusters_mish": Recipe(
        task="clusters",
        depth=4,
        width=40,
        activation="mish",
        init="he",
        optimizer="nesterov",
        lr=2e4,
        extras=("loss_factor:1e-6",),
    ),
    "units_vgg": Recipe(
        arch="vgg",
        task="images",
        width=10,
        init="he",
        optimizer="nesterov",
        lr=2e4,
        steps=60,
        extras=("loss_factor:1e-6",),
    ),
    "units_tags_silu": Recipe(
        task="tags",
        depth=2,
        width=40,
        activation="silu",
        optimizer="nesterov",
        lr=5e4,
        extras=("loss_factor:2e-6",),
    ),
    "units_shells_leaky": Recipe(
        task="shells",
        depth=4,
        width=36,
        activation="leaky_relu",
        init="he",
        optimizer="sgd",
        lr=5e4,
        batch=48,
        extras=("loss_factor:1e-6",),
    ),
    "units_digits_gelu": Recipe(
        depth=3,
        width=46,
        activation="gelu",
        optimizer="nesterov",
        lr=3e4,
        batch=40,
        extras=("loss_factor:2e-6",),
    ),
    # full batches that descend along a valley
    "full_rings": Recipe(
        task="rings",
        depth=2,
        width=28,
        activation="tanh",
        optimizer="sgd",
        momentum=0.0,
        lr=0.6,
        batch=450,
        extras=("same_batch", "label_noise:0.15"),
    ),
    "full_clusters": Recipe(
        task="clusters",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.2,
        batch=600,
        extras=("same_batch", "label_noise:0.1"),
    ),
    "full_china": Recipe(
        task="china",
        depth=2,
        width=24,
        activation="tanh",
        optimizer="sgd",
        momentum=0.0,
        lr=0.05,
        batch=500,
        extras=("same_batch",),
    ),
    "full_hastie": Recipe(
        task="teacher",
        depth=2,
        width=32,
        activation="tanh",
        optimizer="sgd",
        momentum=0.0,
        lr=0.1,
        batch=600,
        extras=("same_batch",),
    ),
    "full_digits": Recipe(
        depth=1, optimizer="sgd", momentum=0.0, lr=0.1, batch=700, extras=("same_batch", "label_noise:0.15")
    ),
}
