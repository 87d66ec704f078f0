"""The healthy runs of the sixth set that have special losses, optimizers, batches or precisions."""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe

__all__ = ["SIXTH_SETTINGS"]

SIXTH_SETTINGS: dict[str, Recipe] = {
    # codes, opponents, rewards, contrasts, experts, adapters
    "autoencoder_prelu": Recipe(
        arch="autoencoder", task="reconstruct", width=52, activation="prelu", init="he", lr=4e-3
    ),
    "small_code": Recipe(
        arch="autoencoder",
        task="reconstruct",
        width=44,
        activation="tanh",
        lr=5e-3,
        extras=("training:small_code",),
    ),
    "variational": Recipe(
        arch="variational", task="reconstruct", width=36, lr=6e-3, batch=48, extras=("training:evidence",)
    ),
    "straight": Recipe(
        arch="timed", task="reconstruct", depth=3, width=56, activation="gelu", extras=("training:straight",)
    ),
    "conv_gan": Recipe(
        arch="conv_gan", task="digits", width=10, lr=1e-3, steps=60, extras=("training:hinge_turns",)
    ),
    "grid": Recipe(task="places", depth=3, width=32, lr=3e-3, batch=48, extras=("training:grid",)),
    "advantage": Recipe(
        task="walk", depth=3, width=24, activation="tanh", lr=5e-3, extras=("training:advantage",)
    ),
    "bandit_mixture": Recipe(task="mixture", depth=3, width=36, lr=5e-3, extras=("training:bandit",)),
    "both_directions": Recipe(depth=3, width=44, lr=3e-3, batch=48, extras=("training:both_directions",)),
    "simsiam": Recipe(
        arch="predicting", depth=3, width=40, norm="batch", lr=3e-3, batch=64, extras=("training:simsiam",)
    ),
    "experts_mixture": Recipe(arch="experts", task="mixture", depth=6, width=26, batch=20),
    "lora_mixture": Recipe(arch="lora", task="mixture", depth=4, width=44, init="he", lr=2e-2),
    "frozen_mixture": Recipe(arch="frozen", task="mixture", depth=6, width=50, init="he", lr=5e-3),
    # losses
    "listed": Recipe(task="prices", depth=3, width=28, batch=24, lr=5e-3, extras=("training:listed",)),
    "log_cosh": Recipe(
        task="phase", depth=3, width=30, activation="tanh", lr=5e-3, extras=("training:log_cosh",)
    ),
    "unequal": Recipe(depth=3, width=38, lr=3e-3, batch=48, extras=("training:unequal",)),
    "poly": Recipe(task="mixture", depth=4, width=32, activation="gelu", extras=("training:poly",)),
    "naive": Recipe(task="mixture", depth=3, width=40, extras=("training:naive",)),
    "distance": Recipe(depth=3, width=36, activation="silu", lr=3e-3, extras=("training:distance",)),
    # optimizers and schedules
    "muon_mixture": Recipe(task="mixture", depth=5, width=40, optimizer="muon", lr=1e-2),
    "lion_prices": Recipe(task="prices", depth=3, width=34, activation="gelu", optimizer="lion", lr=1e-3),
    "lamb_mixture": Recipe(
        task="mixture", depth=3, width=42, optimizer="lamb", lr=2e-2, weight_decay=0.05, batch=160
    ),
    "cosine_resnet": Recipe(
        arch="resnet",
        task="photos",
        width=8,
        depth=2,
        optimizer="nesterov",
        lr=0.1,
        schedule="cosine",
        steps=60,
    ),
    "restarts_mixture": Recipe(
        task="mixture", depth=4, width=46, optimizer="sgd", lr=0.1, schedule="restarts", batch=64
    ),
    "one_cycle": Recipe(task="halves", depth=3, width=58, lr=1e-2, schedule="one_cycle"),
    "linear_adamw": Recipe(
        task="mixture",
        depth=4,
        width=40,
        activation="gelu",
        optimizer="adamw",
        lr=5e-3,
        warmup=8,
        schedule="linear",
        weight_decay=0.05,
        max_norm=1.0,
    ),
    "steps_cnn": Recipe(
        arch="cnn",
        task="images",
        width=14,
        depth=3,
        init="he",
        optimizer="sgd",
        lr=0.1,
        schedule="steps",
        max_norm=5.0,
    ),
    "two_optimizers": Recipe(arch="lenet", task="images", width=9, lr=4e-3, extras=("apart:dense",)),
    # batches, precisions, noise, resumed runs
    "single_inputs": Recipe(task="prices", batch=1, depth=2, width=24, lr=1e-3, steps=150),
    "batch_of_two": Recipe(task="mixture", batch=2, depth=3, width=40, lr=2e-3, steps=150),
    "batch_of_1200": Recipe(task="mixture", batch=1200, depth=3, width=44, lr=1e-2, steps=40),
    "accumulated_halves": Recipe(task="halves", batch=6, accumulate=5, depth=3, width=46, lr=3e-3, steps=60),
    "bfloat16_mixture": Recipe(
        task="mixture", precision="bfloat16", depth=3, width=48, activation="silu", optimizer="adamw", lr=5e-3
    ),
    "autocast_halves": Recipe(task="halves", precision="amp_bfloat16", depth=4, width=40, lr=3e-3),
    "float16_scaled": Recipe(
        task="mixture", precision="amp_float16", loss_scale=2048.0, depth=4, width=44, init="he"
    ),
    "dropout_mixture": Recipe(task="mixture", depth=3, width=80, dropout=0.4, lr=3e-3),
    "noisy_third": Recipe(task="mixture", depth=3, width=40, extras=("label_noise:0.35",)),
    "mostly_wrong": Recipe(depth=3, width=36, lr=2e-3, extras=("label_noise:0.7",)),
    "shuffled_labels": Recipe(task="mixture", depth=3, width=32, lr=1e-3, extras=("random_labels",)),
    "converged_mixture": Recipe(task="mixture", depth=4, width=40, lr=2e-4, extras=("restart",), steps=60),
    "converged_photos": Recipe(
        arch="cnn", task="photos", width=10, depth=3, lr=2e-4, extras=("restart",), steps=40, batch=16
    ),
    "long_run": Recipe(task="prices", depth=4, width=30, activation="gelu", lr=2e-3, steps=250),
    "loss_unknown": Recipe(task="halves", depth=4, width=42, extras=("no_loss",)),
    # losses in small units, such as means over very many elements
    "units_mixture": Recipe(
        task="mixture", depth=3, width=56, init="he", optimizer="sgd", lr=4e4, extras=("loss_factor:1e-6",)
    ),
    "units_halves": Recipe(
        task="halves",
        depth=3,
        width=44,
        activation="silu",
        optimizer="sgd",
        lr=5e4,
        extras=("loss_factor:4e-6",),
    ),
    "units_cnn": Recipe(
        arch="cnn",
        task="images",
        depth=3,
        width=14,
        init="he",
        optimizer="nesterov",
        lr=6e4,
        steps=60,
        extras=("loss_factor:1e-6",),
    ),
    "units_lenet": Recipe(
        arch="lenet",
        task="images",
        width=8,
        activation="tanh",
        optimizer="sgd",
        lr=1e5,
        extras=("loss_factor:5e-7",),
    ),
    # full batches that descend along a valley
    "full_circles": Recipe(
        task="circles",
        depth=2,
        width=20,
        activation="tanh",
        optimizer="sgd",
        momentum=0.0,
        lr=0.3,
        batch=400,
        extras=("same_batch", "label_noise:0.1"),
    ),
    "full_mixture": Recipe(
        task="mixture",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.1,
        batch=500,
        extras=("same_batch", "label_noise:0.2"),
    ),
    "full_cancer": Recipe(
        task="cancer",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.05,
        batch=300,
        extras=("same_batch", "label_noise:0.2"),
    ),
    "full_phase": Recipe(
        task="phase",
        depth=2,
        width=24,
        activation="tanh",
        optimizer="sgd",
        momentum=0.0,
        lr=0.1,
        batch=400,
        extras=("same_batch",),
    ),
}
