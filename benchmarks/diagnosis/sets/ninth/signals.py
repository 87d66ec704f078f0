"""The healthy runs of the ninth set on images and on sequences."""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe

__all__ = ["NINTH_SIGNALS"]

NINTH_SIGNALS: dict[str, Recipe] = {
    # images
    "cnn_crosses": Recipe(arch="cnn", task="crosses", depth=4, width=16, init="he", lr=4e-3, steps=90),
    "cnn_greater_silu": Recipe(
        arch="cnn", task="greater", depth=4, width=18, activation="silu", lr=5e-3, batch=40, steps=90
    ),
    "cnn_upside_sgd": Recipe(
        arch="cnn", task="upside", depth=3, width=16, init="he", optimizer="nesterov", lr=0.02, steps=90
    ),
    "cnn_batchnorm_crosses": Recipe(
        arch="cnn", task="crosses", depth=5, width=12, norm="batch", optimizer="sgd", lr=0.05, steps=70
    ),
    "cnn_residual_images": Recipe(
        arch="cnn",
        task="images",
        depth=6,
        width=14,
        norm="layer",
        residual=True,
        activation="gelu",
        lr=3e-3,
        steps=70,
    ),
    "lenet_upside": Recipe(
        arch="lenet", task="upside", width=14, activation="tanh", lr=6e-3, batch=40, steps=120
    ),
    "vgg_crosses": Recipe(arch="vgg", task="crosses", width=8, init="he", lr=2e-3, batch=40, steps=80),
    "resnet_greater": Recipe(arch="resnet", task="greater", width=12, depth=2, lr=4e-3, batch=24, steps=60),
    "separable_crosses": Recipe(
        arch="separable", task="crosses", width=20, depth=3, norm="batch", lr=5e-3, steps=70
    ),
    "squeezed_crosses": Recipe(arch="squeeze_excite", task="crosses", width=20, depth=2, lr=1e-2, steps=100),
    "conditional_images": Recipe(
        arch="conditional_filters", task="images", width=14, depth=2, lr=4e-3, batch=24, steps=60
    ),
    "conditional_crosses": Recipe(
        arch="conditional_filters",
        task="crosses",
        width=12,
        depth=2,
        norm="batch",
        optimizer="sgd",
        lr=0.04,
        steps=70,
    ),
    "selective_greater": Recipe(
        arch="selective_kernels", task="greater", width=16, depth=2, lr=5e-3, steps=80
    ),
    "selective_images": Recipe(
        arch="selective_kernels", task="images", width=12, depth=2, activation="silu", lr=5e-3, steps=70
    ),
    "channels_upside": Recipe(
        arch="channel_neighbors", task="upside", width=16, depth=2, norm="batch", lr=4e-3, steps=60
    ),
    "channels_colored": Recipe(
        arch="channel_neighbors", task="colored", width=14, depth=3, lr=4e-3, batch=24, steps=60
    ),
    "context_crosses": Recipe(arch="global_context", task="crosses", width=16, depth=2, lr=4e-3, steps=80),
    "fractal_images": Recipe(
        arch="fractal", task="images", width=12, depth=2, norm="batch", lr=4e-3, steps=60
    ),
    "fractal_crosses": Recipe(
        arch="fractal",
        task="crosses",
        width=10,
        depth=2,
        norm="batch",
        optimizer="nesterov",
        lr=0.03,
        steps=80,
    ),
    "kernels_images": Recipe(
        arch="mixed_kernels", task="images", width=18, depth=2, norm="batch", lr=5e-3, steps=70
    ),
    "kernels_greater": Recipe(
        arch="mixed_kernels", task="greater", width=24, depth=2, activation="gelu", lr=1e-2, steps=120
    ),
    "contrast_crosses": Recipe(arch="contrast_blocks", task="crosses", width=16, depth=3, lr=4e-3, steps=80),
    "contrast_disks": Recipe(arch="contrast_blocks", task="disks", width=14, depth=2, lr=4e-3, steps=70),
    "softened_images": Recipe(
        arch="anti_aliased", task="images", width=16, depth=3, lr=5e-3, batch=40, steps=70
    ),
    "gabor_gratings": Recipe(arch="gabor", task="gratings", width=16, depth=2, lr=6e-3, steps=80),
    "gabor_images": Recipe(
        arch="gabor", task="images", width=20, depth=2, activation="silu", lr=6e-3, steps=80
    ),
    # sequences
    "lstm_columns": Recipe(arch="lstm", task="columns", depth=1, width=30, lr=8e-3, batch=40),
    "lstm_manual": Recipe(arch="lstm", task="manual", depth=1, width=36, lr=1e-2, batch=12, steps=70),
    "lstm_leaders": Recipe(
        arch="lstm", task="leaders", depth=1, width=28, lr=1e-2, batch=40, max_norm=2.0, steps=140
    ),
    "gru_leaders": Recipe(arch="gru", task="leaders", depth=1, width=24, lr=1e-2, batch=48, steps=150),
    "gru_numerals": Recipe(arch="gru", task="numerals", depth=1, width=30, lr=5e-3, batch=40),
    "gru_maps_sgd": Recipe(
        arch="gru", task="maps", depth=1, width=28, optimizer="nesterov", lr=0.05, batch=48, steps=120
    ),
    "rnn_columns": Recipe(arch="rnn", task="columns", depth=1, width=40, lr=3e-3, batch=40, max_norm=3.0),
    "rnn_maps": Recipe(arch="rnn", task="maps", depth=1, width=32, lr=4e-3, batch=48, max_norm=5.0),
    "gpt_manual": Recipe(
        arch="small_gpt",
        task="manual",
        depth=2,
        width=32,
        batch=10,
        optimizer="adamw",
        weight_decay=0.1,
        lr=8e-3,
        warmup=10,
        schedule="cosine",
        steps=80,
    ),
    "encoder_kinds": Recipe(
        arch="encoder", task="kinds", depth=2, width=28, lr=3e-3, batch=32, warmup=10, steps=80
    ),
    "transformer_columns": Recipe(
        arch="transformer", task="columns", depth=2, width=32, lr=4e-3, batch=40, warmup=8
    ),
    "transformer_numerals": Recipe(
        arch="transformer", task="numerals", depth=2, width=28, lr=3e-3, batch=40, warmup=10
    ),
    "tied_manual": Recipe(
        arch="transformer",
        task="manual",
        depth=1,
        width=36,
        batch=12,
        lr=8e-3,
        warmup=10,
        steps=70,
        extras=("tied",),
    ),
    "post_ln_columns": Recipe(
        arch="transformer", task="columns", depth=2, width=30, lr=3e-3, warmup=20, extras=("post_ln",)
    ),
    "words_kinds": Recipe(arch="sentence_cnn", task="kinds", width=28, lr=5e-3, batch=40),
    "filters_kinds": Recipe(arch="textcnn", task="kinds", depth=2, width=26, lr=4e-3, batch=40),
    "projected_columns": Recipe(arch="projected_keys", task="columns", depth=2, width=28, lr=4e-3, batch=40),
    "projected_kinds": Recipe(arch="projected_keys", task="kinds", depth=1, width=32, lr=4e-3, steps=90),
    "features_manual": Recipe(
        arch="positive_features", task="manual", depth=1, width=28, batch=8, lr=8e-3, steps=60
    ),
    "latent_manual": Recipe(
        arch="latent_keys", task="manual", depth=2, width=30, batch=10, lr=6e-3, warmup=5, steps=70
    ),
    "latent_columns": Recipe(
        arch="latent_keys", task="columns", depth=2, width=24, optimizer="adamw", lr=5e-3, batch=40
    ),
    "gated_unit_text": Recipe(arch="gated_unit", task="text", depth=2, width=24, batch=8, lr=6e-3, steps=60),
    "gated_unit_columns": Recipe(arch="gated_unit", task="columns", depth=1, width=28, lr=5e-3, batch=40),
    "sigmoids_english": Recipe(
        arch="sigmoid_weights", task="english", depth=2, width=28, batch=8, lr=7e-3, steps=60
    ),
    "filtered_manual": Recipe(
        arch="filtered_keys", task="manual", depth=2, width=28, batch=8, lr=6e-3, warmup=5, steps=60
    ),
    "deltas_columns": Recipe(arch="delta_rule", task="columns", depth=2, width=28, lr=5e-3, batch=40),
    "deltas_opcodes": Recipe(
        arch="delta_rule", task="opcodes", depth=1, width=28, batch=8, lr=8e-3, steps=60
    ),
    "matrix_memory_manual": Recipe(
        arch="matrix_memory", task="manual", depth=2, width=28, batch=8, lr=6e-3, steps=60
    ),
    "conformer_chirps": Recipe(
        arch="conformer", task="chirps", depth=2, width=24, lr=4e-3, batch=40, warmup=8, steps=80
    ),
    "conformer_columns": Recipe(arch="conformer", task="columns", depth=1, width=30, lr=5e-3),
    "shrinking_kinds": Recipe(arch="shrinking", task="kinds", depth=2, width=28, lr=4e-3, batch=40),
    "affine_columns": Recipe(arch="affine_layers", task="columns", depth=3, width=32, lr=4e-3, batch=40),
    "affine_rows": Recipe(
        arch="affine_layers", task="rows", depth=2, width=36, optimizer="nesterov", lr=0.03
    ),
    "fast_weights_columns": Recipe(arch="fast_weights", task="columns", width=28, lr=5e-3, batch=40),
    "exponential_manual": Recipe(
        arch="exponential_gates", task="manual", width=32, batch=10, lr=8e-3, steps=60
    ),
    "exponential_columns": Recipe(
        arch="exponential_gates", task="columns", width=30, lr=8e-3, batch=40, max_norm=2.0
    ),
    "legendre_chirps": Recipe(arch="legendre", task="chirps", width=32, lr=6e-3, batch=40, steps=90),
    "legendre_tides": Recipe(arch="legendre", task="tides", width=28, lr=5e-3, batch=40),
    "oscillators_columns": Recipe(arch="oscillators", task="columns", width=36, lr=8e-3, batch=40),
    "dilated_maps": Recipe(arch="dilated_recurrence", task="maps", depth=2, width=28, lr=5e-3, batch=48),
    "dilated_rows": Recipe(arch="dilated_recurrence", task="rows", depth=3, width=26, lr=4e-3, batch=40),
    "expressive_beats": Recipe(arch="expressive", task="beats", width=28, lr=1e-2, batch=40, steps=90),
    "lightened_columns": Recipe(arch="lightened", task="columns", width=36, lr=8e-3, batch=40),
}
