"""The healthy runs of the tuning set. Those to report on are in `sets.reported`."""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe

__all__ = ["TUNED", "UNJUDGED"]

#: Constants may be tuned on these.
TUNED: dict[str, Recipe] = {
    "mlp_digits": Recipe(),
    "mlp_sgd": Recipe(optimizer="sgd", lr=0.05, batch=64),
    "mlp_deep": Recipe(depth=12, init="he", lr=1e-3),
    "mlp_tanh": Recipe(activation="tanh", init="xavier", depth=5, optimizer="sgd", lr=0.05),
    "mlp_sigmoid": Recipe(activation="sigmoid", init="xavier", depth=2, lr=1e-2),
    "mlp_batchnorm": Recipe(depth=8, norm="batch", optimizer="sgd", lr=0.05),
    "mlp_residual": Recipe(depth=14, norm="layer", residual=True),
    "mlp_diabetes": Recipe(task="diabetes", depth=3, optimizer="sgd", lr=0.01),
    "mlp_clusters_adamw": Recipe(task="clusters", optimizer="adamw", weight_decay=0.01, schedule="cosine"),
    "mlp_noise": Recipe(extras=("label_noise:0.6",)),
    "mlp_converged": Recipe(extras=("restart",), lr=1e-4),
    "mlp_clipped": Recipe(max_norm=1.0, optimizer="adamw", warmup=10),
    "mlp_batch_of_1": Recipe(batch=1, lr=1e-3, steps=160),
    "mlp_teacher": Recipe(task="teacher", activation="gelu", depth=4),
    "cnn": Recipe(arch="cnn", task="images", width=16),
    "cnn_batchnorm": Recipe(
        arch="cnn", task="images", width=16, depth=6, norm="batch", optimizer="sgd", lr=0.05
    ),
    "autoencoder": Recipe(arch="autoencoder", task="reconstruct", width=48),
    "rnn": Recipe(arch="rnn", task="rows", depth=1, optimizer="rmsprop", lr=1e-3),
    "lstm_text": Recipe(arch="lstm", task="text", depth=1, batch=12, lr=1e-2),
    "transformer_text": Recipe(arch="transformer", task="text", depth=2, batch=8, warmup=10),
    "gan": Recipe(arch="gan", extras=("training:gan",), lr=1e-3),
    "bandit": Recipe(depth=3, extras=("training:bandit",), lr=1e-2),
    "contrastive": Recipe(depth=3, extras=("training:contrastive",)),
    "experts": Recipe(arch="experts", batch=16),
    "lora": Recipe(arch="lora", depth=3, extras=("restart",)),
    "frozen": Recipe(arch="frozen", depth=5, init="he"),
    "walk": Recipe(task="diabetes", depth=2, extras=("training:value",), batch=16),
    "walk_small": Recipe(task="digits", depth=4, extras=("training:value",), batch=8, activation="tanh"),
    "lstm_origin": Recipe(arch="lstm", task="origin", depth=1, width=16, lr=2e-2, batch=16),
    "siren": Recipe(arch="siren", task="wave", depth=4, lr=3e-4, batch=128),
    "amp_float16": Recipe(precision="amp_float16", loss_scale=1024.0),
    "amp_bfloat16": Recipe(precision="amp_bfloat16", activation="gelu"),
    "embeddings": Recipe(arch="factors", task="ratings", width=4, lr=3e-2),
    # depth, activations, initializations
    "wine_gelu": Recipe(task="wine", activation="gelu", depth=3, width=24),
    "cancer_silu": Recipe(task="cancer", activation="silu", depth=4, width=24),
    "digits_elu": Recipe(activation="elu", depth=6, init="he", lr=1e-3),
    "digits_selu": Recipe(activation="selu", depth=10, init="gain:1", lr=1e-3),
    "digits_softplus": Recipe(activation="softplus", depth=3),
    "digits_leaky_deep": Recipe(activation="leaky_relu", depth=16, init="he", lr=1e-3),
    "digits_relu_deep_narrow": Recipe(depth=10, width=20, init="he", lr=1e-3),
    "digits_tanh_orthogonal": Recipe(activation="tanh", depth=8, init="orthogonal", optimizer="sgd", lr=0.03),
    "clusters_tanh": Recipe(task="clusters", activation="tanh", depth=3, init="xavier"),
    "cancer_sigmoid": Recipe(task="cancer", activation="sigmoid", depth=3, init="xavier", lr=1e-2),
    "spirals_relu": Recipe(task="spirals", depth=5, width=48, lr=5e-3, batch=64),
    "teacher_linear": Recipe(task="teacher", depth=1, optimizer="sgd", lr=0.05),
    "wine_logistic": Recipe(task="wine", depth=1, lr=2e-2),
    "diabetes_linear": Recipe(task="diabetes", depth=1, optimizer="sgd", lr=0.02),
    "digits_two_layers_wide": Recipe(depth=2, width=192, lr=1e-3),
    "deep_linear": Recipe(task="teacher", activation="identity", depth=6, init="xavier", lr=1e-3),
    "teacher_dropout": Recipe(task="teacher", depth=4, width=64, dropout=0.2),
    # residual connections and normalization
    "residual_deep": Recipe(depth=20, residual=True, norm="layer", activation="gelu", width=24),
    "residual_no_norm": Recipe(depth=8, residual=True, init="gain:0.3", lr=1e-3),
    "residual_batchnorm": Recipe(depth=12, residual=True, norm="batch", optimizer="sgd", lr=0.03),
    "layernorm_plain": Recipe(depth=8, norm="layer", task="clusters", lr=2e-3),
    "layernorm_tanh": Recipe(depth=6, norm="layer", activation="tanh", lr=2e-3),
    "batchnorm_deep": Recipe(depth=14, norm="batch", task="clusters", lr=1e-3),
    "highway": Recipe(arch="highway", depth=8, activation="tanh"),
    "rezero": Recipe(arch="rezero", depth=10),
    "siren_deep": Recipe(arch="siren", task="wave", depth=6, width=48, lr=2e-4, batch=256),
    # images
    "cnn_deep": Recipe(arch="cnn", task="images", width=12, depth=7, init="he"),
    "cnn_residual": Recipe(arch="cnn", task="images", width=12, depth=8, residual=True, norm="batch"),
    "cnn_groupnorm": Recipe(arch="cnn", task="images", width=16, depth=5, norm="layer", activation="silu"),
    "separable": Recipe(arch="separable", task="images", width=16, depth=3, norm="batch", lr=5e-3),
    "autoencoder_denoising": Recipe(
        arch="autoencoder", task="reconstruct", width=32, activation="tanh", extras=("noise:0.3",)
    ),
    "autoencoder_gelu": Recipe(
        arch="autoencoder",
        task="reconstruct",
        width=64,
        activation="gelu",
        optimizer="adamw",
        weight_decay=0.1,
    ),
    "mixer": Recipe(arch="mixer", task="rows", depth=2, width=24),
    # sequences
    "gru_text": Recipe(arch="gru", task="text", depth=1, batch=12, lr=1e-2),
    "gru_origin": Recipe(arch="gru", task="origin", depth=1, width=24, lr=2e-2, steps=120),
    "lstm_two_layers": Recipe(arch="lstm", task="rows", depth=2, width=24, lr=5e-3),
    "lstm_adding": Recipe(arch="lstm", task="adding", depth=1, width=16, lr=1e-2, max_norm=1.0),
    "rnn_adding": Recipe(arch="rnn", task="adding", depth=1, width=24, lr=2e-3, max_norm=1.0),
    "rnn_text": Recipe(arch="rnn", task="text", depth=1, width=32, batch=12, lr=3e-3),
    "transformer_rows": Recipe(arch="transformer", task="rows", depth=2, width=24, lr=2e-3),
    "transformer_tied": Recipe(
        arch="transformer", task="text", depth=1, batch=8, warmup=8, max_norm=1.0, extras=("tied",)
    ),
    "transformer_post_ln": Recipe(
        arch="transformer", task="rows", depth=2, width=24, warmup=20, lr=2e-3, extras=("post_ln",)
    ),
    "transformer_origin": Recipe(
        arch="transformer", task="origin", depth=1, width=24, lr=3e-3, schedule="inverse_sqrt", warmup=10
    ),
    "text_cnn": Recipe(arch="textcnn", task="origin", depth=2, width=24, lr=1e-2),
    "neighbors": Recipe(arch="neighbors", task="neighbors", width=24, lr=1e-2, batch=64),
    # parts that take turns or are frozen
    "experts_many": Recipe(arch="experts", depth=8, batch=8, task="clusters", width=24),
    "heads": Recipe(arch="heads", lr=3e-3),
    "lora_deep": Recipe(arch="lora", depth=5, width=24, lr=1e-2, init="he"),
    "frozen_deep": Recipe(arch="frozen", depth=8, norm="layer", task="clusters"),
    "factors_sgd": Recipe(arch="factors", task="ratings", width=6, optimizer="sgd", lr=0.5, batch=128),
    # training without a supervised loss
    "gan_wide": Recipe(arch="gan", width=48, extras=("training:gan",), lr=5e-4, batch=64),
    "bandit_sgd": Recipe(
        depth=2, width=48, extras=("training:bandit",), optimizer="sgd", lr=0.1, task="clusters"
    ),
    "value": Recipe(task="teacher", depth=3, extras=("training:value",), lr=2e-3),
    "contrastive_deep": Recipe(depth=5, norm="layer", extras=("training:contrastive",), task="clusters"),
    "triplet": Recipe(depth=3, extras=("training:triplet",)),
    # ways of training
    "accumulation": Recipe(accumulate=3, batch=8, activation="gelu"),
    "batch_of_2": Recipe(batch=2, lr=5e-4, width=48, steps=120, task="clusters"),
    "full_batch_edge": Recipe(
        optimizer="sgd", momentum=0.0, lr=0.3, batch=300, extras=("same_batch",), activation="tanh"
    ),
    "momentum_large": Recipe(optimizer="sgd", momentum=0.97, lr=0.01, batch=64),
    "restarts": Recipe(schedule="restarts", task="clusters", activation="gelu", lr=5e-3),
    "step_schedule": Recipe(schedule="steps", optimizer="sgd", lr=0.1, task="cancer", depth=3),
    "clipped_hard": Recipe(max_norm=0.5, optimizer="adam", task="teacher", depth=5),
    "label_noise": Recipe(extras=("label_noise:0.8",), task="clusters", width=48),
    "random_labels": Recipe(extras=("random_labels",), depth=3, lr=1e-3),
    "converged": Recipe(extras=("restart",), task="clusters", depth=3, lr=3e-4),
    "resumed_decayed": Recipe(extras=("restart",), schedule="cosine", lr=1e-4, activation="gelu"),
    "weight_decay_strong": Recipe(optimizer="adamw", weight_decay=0.3, norm="layer", lr=1e-3),
    "pure_bfloat16": Recipe(precision="bfloat16", lr=5e-3, depth=3),
    "amp_float16_deep": Recipe(precision="amp_float16", loss_scale=4096.0, depth=8, init="he", lr=1e-3),
    "amp_bfloat16_residual": Recipe(precision="amp_bfloat16", residual=True, norm="layer", depth=8),
    "unscaled_float16_fine": Recipe(precision="amp_float16", depth=3, task="clusters"),
}
#: Healthy runs whose loss need not fall: they have no supervised loss, or nothing can be learned.
UNJUDGED = frozenset(
    {
        "gan",
        "gan_wide",
        "bandit",
        "bandit_sgd",
        "value",
        "walk",
        "walk_small",
        "random_labels",
        "converged",
        "resumed_decayed",
        "mlp_converged",
        "lora",
        "label_noise",
        "mlp_noise",
        "mlp_batch_of_1",
        "batch_of_2",
    }
)
