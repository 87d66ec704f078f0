"""The healthy runs of the eighth set on images and on sequences."""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe

__all__ = ["EIGHTH_SIGNALS"]

EIGHTH_SIGNALS: dict[str, Recipe] = {
    # images
    "cnn_five": Recipe(arch="cnn", task="images", depth=5, width=12, init="he", lr=4e-3, batch=24, steps=90),
    "cnn_gratings_sgd": Recipe(
        arch="cnn", task="gratings", depth=3, width=14, init="he", optimizer="nesterov", lr=0.02, steps=70
    ),
    "cnn_layernorm": Recipe(
        arch="cnn", task="disks", depth=5, width=12, norm="layer", activation="gelu", lr=4e-3, steps=60
    ),
    "cnn_residual_colored": Recipe(
        arch="cnn",
        task="colored",
        depth=5,
        width=14,
        norm="batch",
        residual=True,
        lr=3e-3,
        batch=24,
        steps=60,
    ),
    "cnn_tanh": Recipe(
        arch="cnn", task="images", depth=3, width=18, activation="tanh", init="xavier", lr=5e-3, steps=70
    ),
    "lenet_relu": Recipe(
        arch="lenet", task="images", width=10, activation="relu", init="he", lr=3e-3, batch=24
    ),
    "vgg_images": Recipe(
        arch="vgg", task="images", width=9, init="he", optimizer="nesterov", lr=0.02, batch=40, steps=70
    ),
    "resnet_gratings": Recipe(arch="resnet", task="gratings", width=10, depth=2, lr=3e-3, batch=24, steps=50),
    "separable_silu": Recipe(
        arch="separable", task="images", width=22, depth=2, norm="batch", activation="silu", lr=4e-3, steps=60
    ),
    "bottlenecks_sgd": Recipe(
        arch="bottleneck_net", task="colored", width=16, depth=2, optimizer="sgd", lr=0.05, steps=60
    ),
    "ghosts_colored": Recipe(arch="ghost_net", task="colored", width=20, depth=2, lr=4e-3, steps=60),
    "pools_gratings": Recipe(arch="pool_net", task="gratings", width=18, depth=2, lr=4e-3, steps=60),
    "shift_images": Recipe(
        arch="shift_net", task="images", width=20, depth=2, norm="batch", lr=5e-3, steps=80
    ),
    "shift_colored": Recipe(
        arch="shift_net",
        task="colored",
        width=16,
        depth=2,
        activation="gelu",
        norm="layer",
        lr=4e-3,
        steps=60,
    ),
    "scales_images": Recipe(
        arch="scales_net", task="images", width=24, depth=2, norm="batch", lr=4e-3, steps=70
    ),
    "scales_disks": Recipe(
        arch="scales_net", task="disks", width=16, depth=2, activation="silu", lr=4e-3, steps=70
    ),
    "shuffle_images": Recipe(
        arch="channel_shuffle", task="images", width=24, depth=3, norm="batch", lr=5e-3, steps=70
    ),
    "response_images": Recipe(arch="response_norm", task="images", width=16, depth=2, lr=4e-3, steps=70),
    "response_sgd": Recipe(
        arch="response_norm", task="colored", width=14, depth=2, optimizer="sgd", lr=0.03, steps=70
    ),
    "octave_images": Recipe(arch="octave", task="images", width=16, depth=2, lr=4e-3, steps=70),
    "pixel_graph_images": Recipe(arch="pixel_graph", task="images", width=24, depth=3, lr=5e-3, steps=90),
    "attended_colored": Recipe(arch="attended", task="colored", width=16, depth=2, lr=4e-3, steps=60),
    # sequences
    "lstm_writing": Recipe(arch="lstm", task="writing", depth=1, width=28, lr=6e-3, batch=24, steps=80),
    "lstm_drift": Recipe(
        arch="lstm", task="drift", depth=1, width=16, optimizer="rmsprop", lr=4e-3, batch=24, max_norm=2.0
    ),
    "gru_english": Recipe(arch="gru", task="english", depth=1, width=32, batch=10, lr=8e-3, steps=60),
    "gru_two": Recipe(arch="gru", task="rows", depth=2, width=22, lr=6e-3, batch=24),
    "rnn_pulses": Recipe(arch="rnn", task="patches", depth=1, width=30, lr=3e-3, batch=24, max_norm=5.0),
    "rnn_rows_sgd": Recipe(
        arch="rnn", task="rows", depth=1, width=34, optimizer="sgd", lr=0.05, steps=100, max_norm=4.0
    ),
    "gpt_opcodes": Recipe(
        arch="small_gpt",
        task="opcodes",
        depth=1,
        width=36,
        batch=10,
        lr=8e-3,
        warmup=8,
        schedule="linear",
        steps=70,
    ),
    "encoder_entities": Recipe(
        arch="encoder", task="entities", depth=2, width=24, lr=4e-3, batch=24, warmup=10, steps=70
    ),
    "post_ln_rows": Recipe(
        arch="transformer", task="rows", depth=3, width=28, lr=3e-3, warmup=15, extras=("post_ln",)
    ),
    "tied_text": Recipe(
        arch="transformer",
        task="text",
        depth=2,
        width=28,
        batch=8,
        lr=6e-3,
        warmup=8,
        steps=60,
        extras=("tied",),
    ),
    "queries_opcodes": Recipe(
        arch="grouped_queries", task="opcodes", depth=2, width=24, batch=8, lr=5e-3, warmup=5, steps=60
    ),
    "words_families": Recipe(arch="sentence_cnn", task="families", width=24, lr=4e-3, batch=24),
    "attention_free_english": Recipe(
        arch="attention_free", task="english", depth=2, width=28, batch=8, lr=6e-3, steps=60
    ),
    "attention_free_rows": Recipe(
        arch="attention_free", task="rows", depth=1, width=30, optimizer="adamw", lr=5e-3
    ),
    "synthesizer_opcodes": Recipe(
        arch="synthesizer", task="opcodes", depth=1, width=32, batch=8, lr=7e-3, steps=60
    ),
    "talking_text": Recipe(
        arch="talking_heads", task="text", depth=2, width=24, batch=8, lr=6e-3, warmup=5, steps=60
    ),
    "averages_tides": Recipe(arch="moving_average", task="tides", depth=1, width=26, lr=5e-3),
    "gated_writing": Recipe(
        arch="gated_convolution", task="writing", depth=2, width=24, lr=5e-3, batch=24, steps=70
    ),
    "without_norm_rows": Recipe(arch="without_norm", task="rows", depth=2, width=26, lr=3e-3, warmup=10),
    "adapted_english": Recipe(
        arch="adapted_attention", task="english", depth=2, width=28, batch=8, lr=1e-2, steps=60
    ),
    "simple_beats": Recipe(arch="simple_recurrence", task="beats", depth=2, width=24, lr=8e-3, steps=90),
    "multiplicative_rows": Recipe(arch="multiplicative", task="rows", width=26, lr=6e-3),
    "stack_patches": Recipe(arch="stack", task="patches", width=28, lr=6e-3, max_norm=2.0),
    "pairs_rows": Recipe(arch="pairwise", task="rows", width=32, lr=5e-3, steps=90),
    "moments_patches": Recipe(arch="moments_set", task="rows", width=36, lr=5e-3, batch=40, steps=90),
}
