"""The healthy runs of the ninth set that have special losses, optimizers, batches or precisions."""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe

__all__ = ["NINTH_SETTINGS"]


def _small(factor: str, lr: float, **values: object) -> Recipe:
    """A recipe whose loss is in small units, and its large rate."""
    return Recipe(lr=lr, extras=(f"loss_factor:{factor}",), **values)  # type: ignore[arg-type]


def _full(lr: float, *extras: str, **values: object) -> Recipe:
    """A recipe that descends along a valley of one batch."""
    return Recipe(optimizer="sgd", momentum=0.0, lr=lr, extras=("same_batch", *extras), **values)  # type: ignore[arg-type]


def _by(training: str, **values: object) -> Recipe:
    """A recipe with a loss of its own."""
    return Recipe(extras=(f"training:{training}",), **values)  # type: ignore[arg-type]


NINTH_SETTINGS: dict[str, Recipe] = {
    # codes, opponents, rewards, contrasts, adapters
    "autoencoder_gelu": Recipe(
        arch="autoencoder", task="reconstruct", width=72, activation="gelu", lr=3e-3, batch=48, steps=100
    ),
    "autoencoder_turned": Recipe(arch="autoencoder", task="turned", width=80, activation="elu", lr=4e-3),
    "tied_code_blurred": Recipe(arch="tied_autoencoder", task="reconstruct", width=50, lr=4e-3, batch=40),
    "variational_gentle": _by(
        "evidence", arch="variational", task="reconstruct", width=60, lr=3e-3, batch=64, steps=100
    ),
    "grouped_code": _by("sparse_code", arch="coder", task="reconstruct", width=48, lr=3e-3, batch=48),
    "rivals_in_turns": _by("squares", arch="gan", width=30, lr=1e-3, batch=48),
    "bandit_overlapping": _by("bandit", task="overlapping", depth=3, width=32, lr=5e-3, batch=64),
    "values_collinear": _by("value", task="collinear", depth=3, width=36, lr=2e-3, batch=48),
    "simsiam_odd": _by("simsiam", arch="predicting", depth=3, width=52, lr=2e-3, batch=64),
    "soft_actor_throws": _by("soft_actor", task="throws", depth=3, width=36, lr=4e-3, batch=64),
    "soft_actor_arm": _by("soft_actor", task="arm", depth=3, width=40, activation="tanh", lr=5e-3, batch=64),
    "contrast_overlapping": _by(
        "contrastive", task="blobs", depth=3, width=40, norm="batch", lr=3e-3, batch=48
    ),
    "sigmoid_pairs_odd": _by("sigmoid_pairs", task="digits", depth=3, width=44, lr=3e-3, batch=40),
    "sigmoid_pairs_tags": _by(
        "sigmoid_pairs", task="clusters", depth=2, width=40, activation="gelu", lr=4e-3, batch=32
    ),
    "orientation_images": _by(
        "orientation", arch="cnn", task="images", depth=4, width=14, init="he", lr=4e-3, batch=12, steps=90
    ),
    "corrupted_rows": _by(
        "corrupted", task="reconstruct", depth=3, width=80, activation="gelu", lr=4e-3, batch=48, steps=160
    ),
    "distant_digits": _by("distant", depth=3, width=64, init="he", lr=3e-3, batch=48),
    "expectiles_prices": _by("expectiles", task="prices", depth=3, width=36, activation="silu", lr=5e-3),
    "expectiles_sgd": _by(
        "expectiles", task="collinear", depth=3, width=32, init="he", optimizer="sgd", lr=0.05, batch=40
    ),
    "bins_heat": _by("bins", task="heat", depth=3, width=48, activation="gelu", lr=4e-3, batch=40),
    "balanced_digits": _by("balanced_logits", depth=3, width=50, init="he", lr=3e-3, batch=64),
    "overlap_tags": _by("tversky", task="tags", depth=3, width=44, lr=5e-3, batch=64, steps=100),
    "huber_throws": _by("huber", task="throws", depth=4, width=34, activation="gelu", lr=5e-3, batch=40),
    "smoothed_overlapping": _by(
        "smoothed", task="overlapping", depth=3, width=46, init="he", lr=4e-3, batch=40
    ),
    "mixup_blobs": _by("mixup", task="blobs", depth=3, width=48, activation="silu", lr=4e-3, batch=48),
    "experts_odd": Recipe(arch="experts", task="odd", depth=4, width=36, lr=4e-3, batch=64),
    "two_experts_kepler": Recipe(arch="two_experts", task="kepler", depth=4, width=24, lr=5e-3, batch=64),
    "lora_overlapping": Recipe(arch="lora", task="overlapping", depth=3, width=44, init="he", lr=1e-2),
    "frozen_odd": Recipe(arch="frozen", task="odd", depth=4, width=64, init="he", lr=4e-3, batch=40),
    # optimizers and schedules
    "adamw_odd": Recipe(
        task="odd", depth=4, width=46, optimizer="adamw", lr=3e-3, weight_decay=0.1, schedule="linear"
    ),
    "lion_blobs": Recipe(task="blobs", depth=3, width=44, optimizer="lion", lr=8e-4, batch=40),
    "radam_arm": Recipe(
        task="arm", depth=3, width=48, activation="silu", optimizer="radam", lr=1e-2, batch=48
    ),
    "nadam_overlapping": Recipe(task="overlapping", depth=3, width=38, optimizer="nadam", lr=4e-3),
    "adagrad_odd": Recipe(task="odd", depth=3, width=48, init="he", optimizer="adagrad", lr=0.02, batch=40),
    "adafactor_turned": Recipe(
        task="turned", depth=2, width=72, activation="gelu", optimizer="adafactor", lr=0.03, steps=100
    ),
    "muon_digits": Recipe(depth=4, width=48, init="he", optimizer="muon", lr=6e-3, batch=40),
    "cycle_odd": Recipe(
        task="odd", depth=4, width=40, init="he", optimizer="sgd", lr=0.1, schedule="one_cycle", batch=40
    ),
    "restarts_collinear": Recipe(
        task="collinear", depth=3, width=40, init="he", lr=5e-3, schedule="restarts", batch=40, steps=90
    ),
    "roots_logic": Recipe(
        task="logic", depth=4, width=48, lr=8e-3, warmup=10, schedule="inverse_sqrt", batch=64
    ),
    # batches, precisions, noise, resumed runs
    "batch_of_two": Recipe(
        task="blobs", batch=2, depth=2, width=36, optimizer="sgd", momentum=0.0, lr=0.02, steps=250
    ),
    "batch_of_1200": Recipe(task="overlapping", batch=1200, depth=4, width=44, lr=8e-3, steps=50),
    "accumulated_odd": Recipe(task="odd", batch=12, accumulate=4, depth=3, width=44, lr=4e-3, steps=60),
    "accumulated_manual": Recipe(
        arch="transformer",
        task="manual",
        batch=4,
        accumulate=2,
        depth=1,
        width=28,
        lr=8e-3,
        warmup=8,
        steps=50,
    ),
    "bfloat16_odd": Recipe(
        task="odd", precision="bfloat16", depth=3, width=52, activation="silu", optimizer="adamw", lr=4e-3
    ),
    "autocast_mlp": Recipe(task="mixture", precision="amp_bfloat16", depth=4, width=48, init="he", lr=4e-3),
    "autocast_transformer": Recipe(
        arch="transformer", task="columns", precision="amp_bfloat16", depth=1, width=32, lr=5e-3, warmup=5
    ),
    "float16_scaled_odd": Recipe(
        task="odd", precision="amp_float16", loss_scale=1024.0, depth=4, width=40, init="he", lr=3e-3
    ),
    "float16_scaled_collinear": Recipe(
        task="collinear", precision="amp_float16", loss_scale=256.0, depth=3, width=36, activation="gelu"
    ),
    "dropout_odd": Recipe(task="odd", depth=3, width=90, dropout=0.25, init="he", lr=3e-3, batch=48),
    "noisy_blobs": Recipe(task="blobs", depth=3, width=40, lr=4e-3, steps=100, extras=("label_noise:0.25",)),
    "random_blobs": Recipe(task="blobs", depth=3, width=32, lr=1e-3, extras=("random_labels",)),
    "converged_odd": Recipe(task="odd", depth=3, width=40, lr=3e-4, extras=("restart",), steps=60),
    "converged_kepler": Recipe(
        task="kepler",
        depth=3,
        width=30,
        activation="tanh",
        optimizer="sgd",
        lr=0.01,
        extras=("restart",),
        steps=60,
    ),
    "loss_untold_overlapping": Recipe(task="overlapping", depth=3, width=48, lr=4e-3, extras=("no_loss",)),
    "clipped_turned": Recipe(task="turned", depth=3, width=64, init="he", lr=4e-3, max_norm=1.0, batch=40),
    # losses in small units, such as means over very many elements
    "units_blobs": _small("2e-6", 4e4, task="blobs", depth=3, width=40, init="he", optimizer="sgd", batch=40),
    "units_odd_gelu": _small(
        "1e-6", 5e4, task="odd", depth=3, width=44, activation="gelu", optimizer="nesterov", batch=48
    ),
    "units_overlapping": _small(
        "3e-6", 2e4, task="overlapping", depth=4, width=36, init="he", optimizer="sgd"
    ),
    "units_collinear": _small(
        "2e-6", 2e4, task="collinear", depth=3, width=40, activation="silu", optimizer="nesterov", batch=40
    ),
    "units_turned": _small(
        "1e-6", 3e5, task="turned", depth=2, width=64, activation="tanh", optimizer="nesterov", steps=100
    ),
    "units_cnn_crosses": _small(
        "1e-6", 3e4, arch="cnn", task="crosses", depth=4, width=14, init="he", optimizer="nesterov", steps=80
    ),
    "units_throws": _small(
        "2e-6", 2e4, task="throws", depth=3, width=32, activation="mish", optimizer="sgd", batch=40
    ),
    "units_mixture_elu": _small(
        "1e-6", 4e4, task="mixture", depth=3, width=38, activation="elu", optimizer="sgd", batch=48
    ),
    # full batches that descend along a valley
    "full_blobs": _full(
        0.3, "label_noise:0.1", task="blobs", depth=2, width=28, activation="tanh", batch=700
    ),
    "full_overlapping": _full(
        0.3, "label_noise:0.1", task="overlapping", depth=2, width=32, activation="tanh", batch=600
    ),
    "full_collinear": _full(0.05, task="collinear", depth=2, width=24, activation="tanh", batch=500),
    "full_alcohol": _full(0.05, task="alcohol", depth=2, width=20, activation="tanh", batch=178),
    "full_odd": _full(0.2, "label_noise:0.1", task="odd", depth=1, batch=800),
    "full_throws": _full(0.1, task="throws", depth=2, width=28, activation="tanh", batch=500),
}
