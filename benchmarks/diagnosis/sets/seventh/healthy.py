"""The healthy runs of the seventh set: what people train, by family; its faults are in `faults`.

It was written by someone who had not read the rules, and committed before any of its runs was diagnosed.
Labels alone were checked before, by their traces. Two thirds are common networks with sizes, data, rates and
optimizers of their own; a third are models that no other set has.
"""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.seventh.settings import SEVENTH_SETTINGS

__all__ = ["HEALTHY", "UNJUDGED"]

HEALTHY: dict[str, Recipe] = {
    # plain networks: depth, activation, initialization
    "five_relu": Recipe(task="at_least_five", depth=4, width=48, init="he"),
    "five_sgd": Recipe(task="at_least_five", depth=3, width=56, init="he", optimizer="sgd", lr=0.05),
    "shells_relu": Recipe(task="shells", depth=5, width=40, init="he", lr=5e-3),
    "shells_tanh": Recipe(task="shells", depth=3, width=40, activation="tanh", init="xavier", lr=2e-2),
    "shells_sigmoid": Recipe(task="shells", depth=2, width=60, activation="sigmoid", lr=3e-2, steps=120),
    "tags_leaky": Recipe(task="tags", depth=6, width=44, activation="leaky_relu", init="he", lr=2e-3),
    "tags_sgd": Recipe(task="tags", depth=3, width=38, optimizer="sgd", lr=0.1),
    "regression_relu": Recipe(task="regression", depth=3, width=40, init="he"),
    "regression_sgd": Recipe(task="regression", depth=3, width=32, init="he", optimizer="sgd", lr=0.01),
    "ribbon_gelu": Recipe(task="ribbon", depth=5, width=32, activation="gelu", lr=3e-3),
    "ribbon_tanh": Recipe(task="ribbon", depth=6, width=30, activation="tanh", init="xavier", lr=2e-3),
    "tumors_elu": Recipe(task="tumors", depth=3, width=26, activation="elu", lr=5e-3),
    "tumors_sgd": Recipe(task="tumors", depth=3, width=24, optimizer="nesterov", lr=0.01, batch=24),
    "wine_colors_silu": Recipe(task="wine_colors", depth=3, width=24, activation="silu", lr=5e-3, batch=24),
    "flower_gelu": Recipe(task="flower", depth=5, width=48, activation="gelu", lr=3e-3, batch=128),
    "digits_ten": Recipe(depth=10, width=40, init="he", lr=1e-3),
    "digits_mish": Recipe(depth=5, width=36, activation="mish", init="he", lr=2e-3),
    "cancer_relu": Recipe(task="cancer", depth=4, width=28, init="he", lr=2e-3),
    "diabetes_relu": Recipe(task="diabetes", depth=3, width=26, init="he", optimizer="sgd", lr=0.01),
    # skips and norms
    "residual_shells": Recipe(task="shells", depth=14, width=28, residual=True, norm="layer", lr=2e-3),
    "residual_five": Recipe(
        task="at_least_five", depth=8, width=40, residual=True, norm="batch", lr=2e-3, batch=48
    ),
    "batchnorm_tags": Recipe(task="tags", depth=4, width=44, norm="batch", optimizer="sgd", lr=0.1, batch=64),
    "layernorm_ribbon": Recipe(task="ribbon", depth=7, width=30, norm="layer", activation="silu"),
    "highway_five": Recipe(arch="highway", task="at_least_five", depth=8, width=32, lr=3e-3),
    "rezero_shells": Recipe(arch="rezero", task="shells", depth=10, width=30, lr=5e-3),
    "siren_flower": Recipe(arch="siren", task="flower", depth=3, width=48, lr=5e-4, batch=200),
    "wide_deep_tumors": Recipe(arch="wide_deep", task="tumors", depth=3, width=28, lr=5e-3),
    "funnel_tags": Recipe(arch="funnel", task="tags", depth=5, width=64, init="he", lr=2e-3),
    # vectors, pairs and pictures, by models of this set
    "statements": Recipe(arch="statements", task="triples", width=12, lr=2e-2, batch=128, steps=120),
    "word_vectors": Recipe(
        arch="word_vectors", task="together", width=10, optimizer="adagrad", lr=0.1, batch=128
    ),
    "hyperbolic": Recipe(arch="hyperbolic", task="tree_distances", width=6, lr=2e-2, batch=128),
    "top_code": Recipe(arch="top_code", task="reconstruct", width=96, activation="gelu", lr=3e-3),
    "rays": Recipe(arch="rays", task="rays", depth=2, width=40, lr=5e-3, batch=48),
    "splats": Recipe(arch="splats", task="flower", width=60, lr=2e-2, batch=256),
    "grids": Recipe(arch="grids", task="flower", width=24, lr=2e-2, batch=256),
    "circulant": Recipe(arch="circulant", depth=3, width=64, lr=3e-3),
    "orthogonal_layers": Recipe(
        arch="orthogonal_layers", task="shells", depth=3, width=24, activation="elu", lr=5e-3
    ),
    "spectral_layers": Recipe(arch="spectral_layers", task="tags", depth=3, width=32, lr=5e-3),
    "gated_residuals": Recipe(arch="gated_residuals", task="tumors", depth=3, width=22, lr=5e-3),
    "wavelets": Recipe(arch="wavelets", task="ribbon", width=40, lr=1e-2),
    "oblivious_trees": Recipe(arch="oblivious_trees", task="shells", depth=4, width=24, lr=3e-2, batch=64),
    "trend_season": Recipe(arch="trend_season", task="tides", lr=1e-2),
    "basis_blocks": Recipe(arch="basis_blocks", task="tides", depth=3, width=28, lr=3e-3),
    # images
    "cnn_disks": Recipe(arch="cnn", task="disks", depth=4, width=14, init="he", lr=5e-3, batch=24, steps=70),
    "cnn_colored": Recipe(arch="cnn", task="colored", depth=4, width=16, norm="batch", lr=3e-3, steps=70),
    "cnn_sgd": Recipe(arch="cnn", task="images", depth=3, width=16, init="he", optimizer="sgd", lr=0.05),
    "lenet_tanh": Recipe(arch="lenet", task="images", width=9, activation="tanh", optimizer="sgd", lr=0.05),
    "vgg_colored": Recipe(arch="vgg", task="colored", width=12, init="he", lr=2e-3, steps=70),
    "alexnet": Recipe(arch="alexnet", task="images", width=12, init="he", lr=2e-3, steps=80),
    "alexnet_sgd": Recipe(
        arch="alexnet", task="images", width=10, init="he", optimizer="nesterov", lr=0.03, steps=100
    ),
    "resnet_colored": Recipe(
        arch="resnet", task="colored", width=12, depth=2, optimizer="sgd", lr=0.05, steps=60
    ),
    "bottleneck_net": Recipe(arch="bottleneck_net", task="images", width=20, depth=3, lr=3e-3, steps=60),
    "ghost_net": Recipe(arch="ghost_net", task="images", width=24, depth=2, lr=5e-3, steps=60),
    "pool_net": Recipe(arch="pool_net", task="images", width=20, depth=2, lr=3e-3, steps=70),
    "mender": Recipe(arch="mender", task="mended", width=8, activation="gelu", lr=5e-3, batch=24, steps=60),
    # sequences
    "lstm_english": Recipe(arch="lstm", task="english", depth=1, width=30, batch=12, lr=1e-2, steps=70),
    "lstm_beats": Recipe(arch="lstm", task="beats", depth=2, width=18, lr=1e-2, max_norm=1.0, steps=70),
    "lstm_long": Recipe(arch="lstm", task="long_drift", depth=1, width=14, batch=12, lr=1e-2, steps=40),
    "gru_writing": Recipe(arch="gru", task="writing", depth=1, width=24, lr=5e-3, steps=70),
    "gru_drift": Recipe(arch="gru", task="drift", depth=1, width=20, lr=5e-3, steps=60),
    "rnn_tides": Recipe(arch="rnn", task="tides", depth=1, width=24, lr=3e-3, max_norm=5.0),
    "rnn_drift": Recipe(arch="rnn", task="drift", depth=1, width=20, lr=3e-3, steps=60),
    "encoder_english": Recipe(
        arch="encoder", task="english", depth=2, width=28, batch=8, warmup=10, lr=5e-3, steps=70
    ),
    "encoder_post": Recipe(
        arch="encoder",
        task="writing",
        depth=3,
        width=24,
        batch=16,
        warmup=30,
        lr=3e-3,
        steps=80,
        extras=("post_ln",),
    ),
    "masked": Recipe(
        arch="encoder",
        task="english",
        depth=1,
        width=28,
        batch=16,
        warmup=10,
        lr=7e-3,
        steps=80,
        extras=("training:masked",),
    ),
    "gpt_english": Recipe(
        arch="small_gpt",
        task="english",
        depth=2,
        width=28,
        batch=8,
        optimizer="adamw",
        lr=1e-2,
        warmup=10,
        schedule="cosine",
        weight_decay=0.1,
        max_norm=1.0,
        steps=70,
    ),
    "tied_english": Recipe(
        arch="transformer", task="english", depth=1, width=32, batch=8, lr=7e-3, warmup=8, extras=("tied",)
    ),
    "sessions": Recipe(arch="encoder", task="sessions", depth=1, width=32, batch=48, lr=1e-2, steps=120),
    "grouped_queries": Recipe(
        arch="grouped_queries", task="english", depth=1, width=24, batch=8, lr=7e-3, steps=70
    ),
    "difference": Recipe(arch="difference", task="writing", depth=1, width=24, batch=16, lr=5e-3, steps=60),
    "receptance": Recipe(arch="receptance", task="english", depth=1, width=24, batch=8, lr=7e-3, steps=50),
    "patched": Recipe(arch="patched", task="tides", depth=1, width=24, lr=5e-3),
    "sentence_cnn": Recipe(arch="sentence_cnn", task="entities", width=20, dropout=0.2, lr=5e-3),
    "attentive": Recipe(arch="attentive", task="entities", width=18, lr=1e-2, steps=60),
    "peepholes": Recipe(arch="peepholes", task="tides", width=20, lr=1e-2, batch=24, steps=60),
    **SEVENTH_SETTINGS,
}
#: Recipes whose loss need not fall: opponents, rewards, moving targets, nothing to learn, resumed runs.
UNJUDGED = frozenset(
    {
        "squares_gan",
        "balance",
        "shares",
        "follows",
        "joint",
        "random_shells",
        "converged_five",
        "converged_ribbon",
        "single_shells",
    }
)
