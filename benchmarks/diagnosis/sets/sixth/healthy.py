"""The healthy runs of the sixth set: what people train, by family; its faults are in `faults`.

It was written by someone who had not read the rules, and committed before any of its runs was diagnosed.
Labels alone were checked before, by their traces. Two thirds are common networks with sizes, data, rates and
optimizers of their own; a third are models that no other set has.
"""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.sixth.settings import SIXTH_SETTINGS

__all__ = ["HEALTHY", "UNJUDGED"]

HEALTHY: dict[str, Recipe] = {
    # plain networks: depth, activation, initialization
    "mixture_relu": Recipe(task="mixture", depth=4, width=52, init="he"),
    "mixture_tanh": Recipe(task="mixture", depth=7, width=30, activation="tanh", init="xavier", lr=2e-3),
    "mixture_sgd": Recipe(task="mixture", depth=3, width=44, init="he", optimizer="sgd", lr=0.05),
    "mixture_mish": Recipe(task="mixture", depth=6, width=36, activation="mish", init="he", lr=2e-3),
    "impedance_gelu": Recipe(task="impedance", depth=4, width=34, activation="gelu", lr=4e-3),
    "impedance_sgd": Recipe(task="impedance", depth=3, width=46, optimizer="nesterov", lr=0.02),
    "phase_silu": Recipe(task="phase", depth=5, width=26, activation="silu", init="he"),
    "phase_relu": Recipe(task="phase", depth=3, width=42, optimizer="adamw", lr=5e-3, weight_decay=0.02),
    "hastie_relu": Recipe(task="hastie", depth=3, width=60, lr=5e-3, batch=64, steps=100),
    "circles_relu": Recipe(task="circles", depth=3, width=22, lr=1e-2, steps=60),
    "halves_relu": Recipe(task="halves", depth=3, width=66, optimizer="rmsprop", lr=1e-3),
    "prices_softplus": Recipe(task="prices", depth=3, width=24, activation="softplus", lr=1e-2),
    "prices_prelu": Recipe(task="prices", depth=5, width=34, activation="prelu", init="he"),
    "prices_sgd": Recipe(task="prices", depth=4, width=40, init="he", optimizer="sgd", lr=0.01),
    "digits_hardswish": Recipe(depth=4, width=34, activation="hardswish", lr=5e-3),
    "digits_leaky_twelve": Recipe(depth=12, width=34, activation="leaky_relu", init="he", lr=1e-3),
    "digits_sigmoid_two": Recipe(depth=2, width=70, activation="sigmoid", lr=2e-2),
    "wine_elu": Recipe(task="wine", depth=4, width=22, activation="elu", optimizer="nadam", lr=3e-3),
    "cancer_gelu": Recipe(task="cancer", depth=3, width=34, activation="gelu", optimizer="sgd", lr=0.05),
    "diabetes_tanh": Recipe(task="diabetes", depth=2, width=18, activation="tanh", lr=1e-2),
    "logistic_mixture": Recipe(task="mixture", depth=1, optimizer="sgd", lr=0.05),
    # skips and norms
    "residual_mixture": Recipe(task="mixture", depth=16, width=24, residual=True, norm="layer"),
    "residual_plain": Recipe(task="halves", depth=7, width=44, residual=True, init="gain:0.5", lr=1e-3),
    "residual_batch": Recipe(
        task="mixture", depth=10, width=32, residual=True, norm="batch", optimizer="sgd", lr=0.01, batch=64
    ),
    "layernorm_phase": Recipe(task="phase", depth=6, width=28, norm="layer", activation="gelu"),
    "highway_mixture": Recipe(arch="highway", task="mixture", depth=10, width=30, activation="gelu", lr=2e-3),
    "rezero_prices": Recipe(arch="rezero", task="prices", depth=14, width=28),
    "siren_photo": Recipe(arch="siren", task="photo", depth=4, width=40, lr=5e-4, batch=160),
    "dense_mixture": Recipe(arch="dense", task="mixture", depth=7, width=12, lr=2e-3),
    "fixup": Recipe(arch="fixup", task="mixture", depth=6, width=36, lr=2e-3),
    # vectors and tables, by models of this set
    "funnel": Recipe(arch="funnel", depth=6, width=72, init="he", lr=2e-3),
    "wide_deep": Recipe(arch="wide_deep", task="prices", depth=3, width=26, lr=5e-3),
    "feature_steps": Recipe(arch="feature_steps", task="cancer", depth=3, width=16, lr=1e-2, batch=64),
    "both_signs": Recipe(arch="both_signs", task="mixture", depth=4, width=24, lr=3e-3),
    "polynomial": Recipe(arch="polynomial", task="impedance", depth=4, width=30, lr=3e-3),
    "quaternions": Recipe(arch="quaternions", depth=3, width=40, lr=3e-3),
    "tensor_train": Recipe(arch="tensor_train", depth=3, width=49, lr=3e-3),
    "sparse_links": Recipe(arch="sparse_links", task="mixture", depth=3, width=60, lr=3e-3),
    "group_sort": Recipe(arch="group_sort", task="phase", depth=3, width=32, lr=3e-3),
    "runge_kutta": Recipe(arch="runge_kutta", task="circles", depth=2, width=24, lr=5e-3),
    "random_kernel": Recipe(arch="random_kernel", task="circles", width=90, optimizer="sgd", lr=0.05),
    "examples": Recipe(arch="prototypes", depth=3, width=34, lr=5e-3),
    "adapters": Recipe(arch="adapters", depth=4, width=48, init="he", lr=5e-3),
    "biases_alone": Recipe(arch="biases_alone", task="mixture", depth=4, width=64, init="he", lr=1e-2),
    "product_keys": Recipe(arch="product_keys", task="mixture", depth=2, width=32, lr=5e-3),
    "interactions": Recipe(arch="interactions", task="profiles", width=12, lr=1e-2, batch=96, steps=120),
    # images
    "cnn_gratings": Recipe(arch="cnn", task="gratings", width=13, depth=4, lr=5e-3, batch=24, steps=60),
    "cnn_photos": Recipe(
        arch="cnn", task="photos", width=18, depth=5, norm="batch", optimizer="sgd", lr=0.01, steps=70
    ),
    "cnn_lights": Recipe(arch="cnn", task="lights", width=17, depth=3, activation="gelu", lr=5e-3),
    "lenet": Recipe(arch="lenet", task="images", width=8, activation="tanh", lr=5e-3),
    "lenet_sgd": Recipe(arch="lenet", task="images", width=10, init="he", optimizer="nesterov", lr=0.02),
    "vgg": Recipe(arch="vgg", task="images", width=12, init="he", lr=2e-3, steps=70),
    "resnet": Recipe(arch="resnet", task="images", width=12, depth=3, optimizer="sgd", lr=0.05, steps=70),
    "resnext": Recipe(
        arch="resnet", task="gratings", width=12, depth=2, batch=20, steps=50, extras=("groups:4",)
    ),
    "fire": Recipe(arch="fire", task="images", width=24, depth=3, lr=5e-3, steps=70),
    "coordinates": Recipe(arch="coordinates", task="lights", width=14, depth=3, lr=5e-3),
    "rotations": Recipe(arch="rotations", task="images", width=12, depth=2, lr=3e-2, batch=24, steps=50),
    "automaton": Recipe(arch="automaton", task="images", width=16, depth=3, lr=2e-2, batch=24, steps=60),
    "axial": Recipe(arch="axial", task="images", width=20, depth=1, lr=7e-3, batch=24),
    "denoiser": Recipe(
        arch="unet", task="images", width=6, lr=5e-3, batch=16, steps=60, extras=("training:noise_to_noise",)
    ),
    "conv_autoencoder": Recipe(arch="conv_autoencoder", task="reconstruct", width=14, lr=5e-3),
    # sequences
    "lstm_opcodes": Recipe(arch="lstm", task="opcodes", depth=1, width=26, batch=12, lr=1e-2, steps=60),
    "lstm_patches": Recipe(arch="lstm", task="patches", depth=2, width=18, lr=1e-2, steps=60),
    "lstm_long": Recipe(arch="lstm", task="remembered", depth=1, width=15, batch=16, lr=3e-2, steps=40),
    "gru_pulses": Recipe(arch="gru", task="pulses", depth=1, width=22, lr=1e-2, max_norm=2.0, steps=100),
    "rnn_forecast": Recipe(arch="rnn", task="forecast", depth=1, width=26, lr=3e-3),
    "transformer_opcodes": Recipe(
        arch="transformer", task="opcodes", depth=2, width=26, batch=8, warmup=8, lr=5e-3, steps=60
    ),
    "post_ln": Recipe(
        arch="transformer",
        task="opcodes",
        depth=3,
        width=24,
        batch=8,
        warmup=25,
        lr=4e-3,
        steps=70,
        extras=("post_ln",),
    ),
    "tied_opcodes": Recipe(
        arch="transformer", task="opcodes", depth=1, width=28, batch=8, lr=7e-3, warmup=6, extras=("tied",)
    ),
    "llama_opcodes": Recipe(
        arch="llama", task="opcodes", depth=2, width=22, batch=8, lr=7e-3, max_norm=1.0, steps=60
    ),
    "small_gpt": Recipe(
        arch="small_gpt",
        task="opcodes",
        depth=2,
        width=24,
        batch=8,
        optimizer="adamw",
        lr=1e-2,
        warmup=10,
        schedule="cosine",
        weight_decay=0.1,
        steps=70,
    ),
    "slopes": Recipe(arch="slopes", task="opcodes", depth=2, width=20, batch=8, lr=7e-3, steps=60),
    "switch": Recipe(
        arch="switch", task="opcodes", depth=4, width=20, batch=8, lr=1e-2, extras=("training:balanced",)
    ),
    "universal": Recipe(arch="universal", task="rows", depth=3, width=24, lr=5e-3),
    "slots": Recipe(arch="slots", task="patches", width=24, lr=1e-2),
    "clockwork": Recipe(arch="clockwork", task="rows", width=30, lr=5e-3),
    "antisymmetric": Recipe(arch="antisymmetric", task="patches", width=24, lr=1e-2, steps=60),
    "conv_lstm": Recipe(arch="conv_lstm", task="rows", width=8, lr=1e-2, steps=60),
    "hierarchy": Recipe(arch="hierarchy", task="patches", width=20, lr=1e-2),
    "zoneout": Recipe(arch="zoneout", task="opcodes", width=24, batch=10, lr=1e-2, steps=60),
    "residual_lstm": Recipe(arch="residual_lstm", task="patches", depth=3, width=16, lr=1e-2, steps=60),
    "prompted": Recipe(arch="prompted", task="rows", depth=2, width=32, lr=2e-2),
    "text_cnn_families": Recipe(arch="textcnn", task="families", depth=2, width=20, lr=7e-3),
    **SIXTH_SETTINGS,
}
#: Recipes whose loss need not fall: opponents, rewards, moving targets, nothing to learn, resumed runs.
UNJUDGED = frozenset(
    {
        "conv_gan",
        "grid",
        "advantage",
        "bandit_mixture",
        "shuffled_labels",
        "mostly_wrong",
        "converged_mixture",
        "converged_photos",
        "single_inputs",
    }
)
