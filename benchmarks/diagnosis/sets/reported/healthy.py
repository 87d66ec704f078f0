"""The reported set: recipes, faults and seeds on which no rule and no constant was tuned.

It was committed before it was run. Once a misjudged run has changed a rule, the set becomes part of the
tuning set and a new one is written.
"""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe

__all__ = ["HEALTHY", "UNJUDGED"]

HEALTHY: dict[str, Recipe] = {
    # plain networks
    "iris_narrow": Recipe(task="iris", depth=3, width=14, lr=1e-2, steps=60),
    "iris_tanh": Recipe(task="iris", depth=4, width=18, activation="tanh", optimizer="nesterov", lr=0.03),
    "friedman_relu": Recipe(task="friedman", depth=4, width=40, lr=4e-3),
    "friedman_tanh_he": Recipe(task="friedman", depth=6, width=28, activation="tanh", init="xavier", lr=2e-3),
    "friedman_sigmoid": Recipe(
        task="friedman", depth=2, width=36, activation="sigmoid", init="xavier", lr=2e-2
    ),
    "friedman_adagrad": Recipe(task="friedman", depth=3, width=44, optimizer="adagrad", lr=2e-2),
    "moons_gelu": Recipe(task="moons", depth=5, width=22, activation="gelu", optimizer="nadam", lr=4e-3),
    "moons_two": Recipe(task="moons", depth=2, width=56, optimizer="nesterov", lr=0.2, batch=64),
    "digits_mish_like": Recipe(activation="silu", depth=9, width=40, init="he", lr=1e-3),
    "digits_leaky": Recipe(activation="leaky_relu", depth=7, width=28, optimizer="rmsprop", lr=1e-3),
    "digits_elu_nadam": Recipe(activation="elu", depth=5, width=44, optimizer="nadam", lr=2e-3),
    "digits_selu_sgd": Recipe(activation="selu", depth=6, width=36, init="gain:1", optimizer="sgd", lr=0.02),
    "digits_relu_wide": Recipe(depth=3, width=96, optimizer="nesterov", lr=0.05, batch=48),
    "digits_orthogonal": Recipe(depth=14, width=30, init="orthogonal:1.41", lr=1e-3),
    "digits_softplus_deep": Recipe(activation="softplus", depth=4, width=26, lr=2e-3, norm="layer"),
    "wine_tanh": Recipe(task="wine", depth=3, width=18, activation="tanh", lr=1e-2, steps=60),
    "cancer_relu": Recipe(task="cancer", depth=5, width=22, optimizer="rmsprop", lr=2e-3),
    "cancer_wide_sgd": Recipe(task="cancer", depth=2, width=96, optimizer="sgd", lr=0.1),
    "diabetes_elu": Recipe(task="diabetes", depth=3, width=28, activation="elu", lr=3e-3),
    "spirals_tanh": Recipe(task="spirals", depth=4, width=40, activation="tanh", lr=1e-2, batch=64),
    "clusters_sigmoid_norm": Recipe(
        task="clusters", depth=5, width=30, activation="sigmoid", norm="batch", lr=1e-2, batch=64
    ),
    "teacher_muon": Recipe(task="teacher", depth=4, width=36, optimizer="muon", lr=1e-2),
    "digits_muon": Recipe(depth=6, width=44, optimizer="muon", lr=5e-3, activation="gelu"),
    # skips and norms
    "residual_tanh": Recipe(depth=10, width=28, residual=True, norm="layer", activation="tanh", lr=1e-3),
    "residual_batch_friedman": Recipe(
        task="friedman", depth=8, width=36, residual=True, norm="batch", optimizer="sgd", lr=0.002, batch=64
    ),
    "batchnorm_clusters": Recipe(task="clusters", depth=10, width=28, norm="batch", optimizer="nadam"),
    "layernorm_moons": Recipe(task="moons", depth=6, width=26, norm="layer", activation="elu"),
    "dense": Recipe(arch="dense", depth=6, width=14, lr=2e-3),
    "dense_friedman": Recipe(arch="dense", task="friedman", depth=9, width=10, activation="elu", lr=2e-3),
    "highway_relu": Recipe(arch="highway", depth=12, width=28, activation="relu", task="clusters", lr=2e-3),
    "rezero_deep": Recipe(arch="rezero", depth=18, width=22, task="friedman", activation="gelu"),
    "ordinary": Recipe(arch="ordinary", depth=8, width=28, task="clusters", lr=5e-3),
    "siren_wide": Recipe(arch="siren", task="wave", depth=3, width=56, lr=3e-4, batch=192),
    # images
    "inception": Recipe(arch="inception", task="images", width=18, depth=3, lr=5e-3),
    "inception_norm": Recipe(arch="inception", task="images", width=12, depth=4, norm="batch", lr=5e-3),
    "preactivated": Recipe(arch="preactivated", task="images", width=10, depth=4, lr=5e-3),
    "cnn_elu": Recipe(arch="cnn", task="images", width=14, depth=5, activation="elu", lr=2e-3),
    "cnn_tanh": Recipe(arch="cnn", task="images", width=18, depth=4, activation="tanh", init="xavier"),
    "separable_silu": Recipe(arch="separable", task="images", width=14, depth=4, activation="silu", lr=5e-3),
    "autoencoder_elu": Recipe(arch="autoencoder", task="reconstruct", width=40, activation="elu", lr=4e-3),
    "quantized": Recipe(arch="quantized", task="reconstruct", width=28, lr=5e-3),
    "mixer_small": Recipe(arch="mixer", task="rows", depth=3, width=18),
    # sequences
    "llama": Recipe(arch="llama", task="text", depth=2, width=28, batch=8, lr=3e-3, max_norm=1.0, warmup=5),
    "llama_no_clip": Recipe(
        arch="llama", task="text", depth=3, width=20, batch=8, optimizer="adamw", weight_decay=0.1
    ),
    "wavenet": Recipe(arch="wavenet", task="text", depth=4, width=22, batch=10, lr=5e-3),
    "perceiver": Recipe(arch="perceiver", task="rows", depth=3, width=20, lr=3e-3),
    "minimal_gated": Recipe(arch="minimal_gated", task="rows", width=28, lr=1e-2),
    "minimal_gated_long": Recipe(arch="minimal_gated", task="patches", width=22, lr=1e-2, max_norm=2.0),
    "deep_sets": Recipe(arch="deep_sets", task="rows", depth=3, width=40, lr=5e-3),
    "both_ways": Recipe(arch="both_ways", task="origin", width=18, lr=2e-2, batch=48, steps=100),
    "both_ways_rows": Recipe(arch="both_ways", task="patches", width=14, lr=1e-2),
    "gru_patches": Recipe(arch="gru", task="patches", depth=2, width=18, lr=1e-2),
    "lstm_patches_sgd": Recipe(
        arch="lstm", task="rows", depth=1, width=28, optimizer="nesterov", lr=0.3, max_norm=1.0
    ),
    "rnn_patches": Recipe(arch="rnn", task="patches", depth=1, width=28, lr=3e-3, batch=48),
    "transformer_patches": Recipe(arch="transformer", task="patches", depth=3, width=20, lr=3e-3),
    "transformer_text_sgd": Recipe(
        arch="transformer", task="text", depth=1, width=28, batch=8, optimizer="sgd", lr=0.3
    ),
    # of other kinds
    "similarity_graph": Recipe(arch="similarity_graph", task="clusters", depth=3, width=22, batch=48),
    "radial": Recipe(arch="radial", task="moons", width=30, lr=2e-2),
    "machine": Recipe(arch="machine", task="friedman", width=10, lr=1e-2),
    "experts_clusters": Recipe(arch="experts", depth=5, width=22, batch=24, task="clusters"),
    "frozen_gelu": Recipe(arch="frozen", depth=6, width=40, activation="gelu", init="he"),
    "lora_wide": Recipe(arch="lora", depth=4, width=40, lr=1e-2, init="he", task="clusters"),
    "score": Recipe(task="reconstruct", depth=3, width=56, activation="silu", extras=("training:score",)),
    "actor_critic": Recipe(depth=3, width=28, activation="tanh", extras=("training:actor_critic",), lr=5e-3),
    "prototypes": Recipe(depth=3, width=36, extras=("training:prototypes",), batch=48),
    "consistency": Recipe(depth=3, width=40, extras=("training:consistency",), batch=48),
    "mixture": Recipe(task="curve", depth=3, width=26, activation="tanh", extras=("training:mixture",)),
    "gan_narrow": Recipe(arch="gan", width=28, extras=("training:gan",), lr=7e-4, batch=48),
    "value_gelu": Recipe(task="digits", depth=3, width=28, activation="gelu", extras=("training:value",)),
    # ways of training
    "unrecorded_loss": Recipe(depth=5, width=36, extras=("no_loss",), activation="gelu"),
    "unknown_optimizer": Recipe(depth=4, width=28, extras=("no_optimizer",), optimizer="sgd", lr=0.05),
    "drop_in_clipped": Recipe(depth=4, width=40, extras=("drop_in",), max_norm=1.0, optimizer="sgd", lr=0.1),
    "head_ten_times": Recipe(depth=4, width=28, extras=("factor:head",), lr=1e-3),
    "own_optimizer_for_head": Recipe(depth=4, width=36, extras=("apart:head",), lr=2e-3),
    "batch_of_3": Recipe(batch=3, lr=1e-3, width=40, depth=3, steps=120),
    "large_batch": Recipe(batch=512, lr=5e-3, width=36, depth=4, steps=50),
    "all_at_once": Recipe(
        task="iris", batch=150, extras=("same_batch",), optimizer="sgd", lr=0.1, width=22, depth=3
    ),
    "accumulated_sgd": Recipe(accumulate=4, batch=6, optimizer="nesterov", lr=0.05, width=28),
    "cosine_sgd": Recipe(schedule="cosine", optimizer="nesterov", lr=0.1, depth=3, width=44, batch=48),
    "restarts_cnn": Recipe(schedule="restarts", arch="cnn", task="images", width=14, depth=3, lr=5e-3),
    "long_warmup": Recipe(warmup=60, depth=5, width=28, lr=4e-3, task="clusters"),
    "noisy_labels": Recipe(extras=("label_noise:0.4",), task="clusters", depth=3, width=28),
    "labels_by_chance": Recipe(extras=("random_labels",), task="clusters", depth=4, width=28, lr=1e-3),
    "resumed_friedman": Recipe(extras=("restart",), task="friedman", depth=3, width=28, lr=3e-4),
    "resumed_cnn": Recipe(
        extras=("restart",), arch="cnn", task="images", width=14, depth=3, lr=5e-4, schedule="cosine"
    ),
    "half_brain_precision": Recipe(precision="bfloat16", lr=5e-3, depth=4, width=44, activation="gelu"),
    "autocast_float16": Recipe(precision="amp_float16", loss_scale=512.0, depth=5, width=36, task="clusters"),
    "hundred_and_more": Recipe(depth=4, width=30, steps=250, task="friedman", lr=2e-3),
}
#: Recipes whose loss need not fall: they have no supervised loss, or nothing can be learned.
UNJUDGED = frozenset(
    {
        "actor_critic",
        "gan_narrow",
        "value_gelu",
        "labels_by_chance",
        "noisy_labels",
        "resumed_friedman",
        "resumed_cnn",
        "batch_of_3",
        "lora_wide",
        "consistency",
    }
)
