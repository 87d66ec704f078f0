"""The healthy runs of the seventh set that have special losses, optimizers, batches or precisions."""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe

__all__ = ["SEVENTH_SETTINGS"]

SEVENTH_SETTINGS: dict[str, Recipe] = {
    # codes, opponents, rewards, contrasts, adapters
    "sparse_code": Recipe(
        arch="coder",
        task="reconstruct",
        width=54,
        activation="relu",
        lr=4e-3,
        extras=("training:sparse_code",),
    ),
    "sliced": Recipe(
        arch="coder",
        task="reconstruct",
        width=45,
        activation="elu",
        lr=4e-3,
        batch=64,
        extras=("training:sliced",),
    ),
    "groups": Recipe(
        arch="coder", task="reconstruct", width=48, activation="gelu", lr=4e-3, extras=("training:groups",)
    ),
    "perceptual": Recipe(
        arch="autoencoder",
        task="reconstruct",
        width=56,
        activation="gelu",
        lr=5e-3,
        extras=("training:perceptual",),
    ),
    "ladder": Recipe(arch="two_codes", task="reconstruct", width=48, lr=4e-3, extras=("training:ladder",)),
    "squares_gan": Recipe(arch="gan", width=44, lr=1e-3, extras=("training:squares",)),
    "joint": Recipe(arch="predicting", depth=3, width=48, lr=3e-3, batch=64, extras=("training:joint",)),
    "contrastive": Recipe(
        task="tags", depth=3, width=40, norm="batch", lr=3e-3, batch=48, extras=("training:contrastive",)
    ),
    "balance": Recipe(
        task="cart", depth=3, width=24, activation="tanh", lr=5e-3, batch=24, extras=("training:balance",)
    ),
    "shares": Recipe(task="shells", depth=3, width=24, lr=5e-3, extras=("training:shares",)),
    "follows": Recipe(
        arch="actor_and_critic", task="moons", width=24, lr=1e-2, batch=64, extras=("training:follows",)
    ),
    "preference": Recipe(
        arch="encoder",
        task="english",
        depth=1,
        width=24,
        batch=8,
        lr=2e-3,
        steps=50,
        extras=("training:preference",),
    ),
    "reward": Recipe(task="regression", depth=3, width=32, lr=3e-3, extras=("training:reward",)),
    "adapting": Recipe(
        task="wave", depth=3, width=24, activation="tanh", lr=5e-3, steps=60, extras=("training:adapting",)
    ),
    "marginal": Recipe(
        arch="deep_kernel", task="ribbon", depth=3, width=24, lr=5e-3, batch=40, extras=("training:marginal",)
    ),
    "experts_shells": Recipe(arch="experts", task="shells", depth=3, width=36, lr=5e-3, batch=64),
    "lora_shells": Recipe(arch="lora", task="shells", depth=3, width=40, init="he", lr=2e-2),
    "frozen_tags": Recipe(arch="frozen", task="tags", depth=5, width=60, init="he", lr=5e-3),
    # losses
    "heavy": Recipe(task="diabetes", depth=2, width=22, lr=5e-3, extras=("training:heavy",)),
    "gamma": Recipe(task="tumors", depth=3, width=26, lr=5e-3, extras=("training:gamma",)),
    "huber_ribbon": Recipe(
        task="ribbon", depth=3, width=28, optimizer="sgd", lr=0.05, extras=("training:huber",)
    ),
    # optimizers and schedules
    "adamw_decay": Recipe(
        task="tags", depth=3, width=50, activation="gelu", optimizer="adamw", lr=5e-3, weight_decay=0.1
    ),
    "nesterov_cosine": Recipe(
        task="at_least_five", depth=3, width=48, init="he", optimizer="nesterov", lr=0.03, schedule="cosine"
    ),
    "radam_shells": Recipe(task="shells", depth=4, width=34, optimizer="radam", lr=1e-2),
    "lion_shells": Recipe(task="shells", depth=3, width=40, optimizer="lion", lr=1e-3),
    "one_cycle_shells": Recipe(
        task="shells", depth=4, width=44, optimizer="sgd", lr=0.3, schedule="one_cycle", batch=64
    ),
    "restarts_tags": Recipe(task="tags", depth=3, width=42, optimizer="sgd", lr=0.2, schedule="restarts"),
    "steps_regression": Recipe(
        task="regression", depth=2, width=30, optimizer="sgd", lr=0.02, schedule="steps", max_norm=10.0
    ),
    "plain_descent": Recipe(
        task="tags", depth=2, width=32, activation="tanh", optimizer="sgd", momentum=0.0, lr=0.5, steps=120
    ),
    # batches, precisions, noise, resumed runs
    "single_shells": Recipe(
        task="shells", batch=1, depth=2, width=32, optimizer="sgd", momentum=0.0, lr=0.02, steps=200
    ),
    "batch_of_1400": Recipe(task="shells", batch=1400, depth=3, width=36, lr=1e-2, steps=50),
    "accumulated_five": Recipe(
        task="at_least_five", batch=8, accumulate=4, depth=3, width=44, lr=3e-3, steps=60
    ),
    "bfloat16_tags": Recipe(
        task="tags", precision="bfloat16", depth=3, width=44, activation="gelu", optimizer="adamw", lr=5e-3
    ),
    "autocast_encoder": Recipe(
        arch="encoder",
        task="writing",
        precision="amp_bfloat16",
        depth=1,
        width=24,
        batch=16,
        lr=3e-3,
        steps=60,
    ),
    "float16_scaled_five": Recipe(
        task="at_least_five", precision="amp_float16", loss_scale=1024.0, depth=3, width=40, init="he"
    ),
    "dropout_digits": Recipe(depth=3, width=90, dropout=0.5, lr=3e-3),
    "noisy_shells": Recipe(task="shells", depth=3, width=40, lr=5e-3, steps=120, extras=("label_noise:0.3",)),
    "random_shells": Recipe(task="shells", depth=3, width=32, lr=1e-3, extras=("random_labels",)),
    "converged_five": Recipe(task="at_least_five", depth=3, width=44, lr=1e-3, extras=("restart",), steps=60),
    "converged_ribbon": Recipe(
        task="ribbon", depth=3, width=32, optimizer="sgd", lr=0.01, extras=("restart",), steps=60
    ),
    "loss_untold": Recipe(task="shells", depth=4, width=38, lr=5e-3, extras=("no_loss",)),
    "optimizer_untold": Recipe(task="tags", depth=3, width=34, extras=("no_optimizer",)),
    # losses in small units, such as means over very many elements
    "units_five": Recipe(
        task="at_least_five",
        depth=3,
        width=40,
        init="he",
        optimizer="sgd",
        lr=3e4,
        extras=("loss_factor:1e-6",),
    ),
    "units_shells": Recipe(
        task="shells",
        depth=3,
        width=40,
        activation="gelu",
        optimizer="sgd",
        lr=6e4,
        extras=("loss_factor:2e-6",),
    ),
    "units_disks": Recipe(
        arch="cnn",
        task="disks",
        depth=3,
        width=12,
        init="he",
        optimizer="nesterov",
        lr=3e4,
        steps=60,
        extras=("loss_factor:1e-6",),
    ),
    "units_tags": Recipe(
        task="tags",
        depth=3,
        width=48,
        activation="silu",
        optimizer="sgd",
        lr=6e4,
        extras=("loss_factor:3e-6",),
    ),
    # full batches that descend along a valley
    "full_shells": Recipe(
        task="shells",
        depth=2,
        width=24,
        activation="tanh",
        optimizer="sgd",
        momentum=0.9,
        lr=0.1,
        batch=500,
        extras=("same_batch", "label_noise:0.1"),
    ),
    "full_tags": Recipe(
        task="tags",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=2.0,
        batch=500,
        extras=("same_batch", "label_noise:0.2"),
    ),
    "full_tumors": Recipe(
        task="tumors",
        depth=2,
        width=20,
        activation="tanh",
        optimizer="sgd",
        momentum=0.0,
        lr=0.05,
        batch=400,
        extras=("same_batch",),
    ),
    "full_wine": Recipe(
        task="wine",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.2,
        batch=178,
        extras=("same_batch", "label_noise:0.3"),
    ),
    "full_five": Recipe(
        task="at_least_five",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.1,
        batch=600,
        extras=("same_batch", "label_noise:0.1"),
    ),
}
