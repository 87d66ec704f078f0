"""The third reported set, written after the misjudged runs of the earlier sets had been dealt with.

It was committed before any of its runs was diagnosed. Labels alone were checked before, by their traces.
Faults are relative to their recipe, so that a cured run differs from its twin in nothing else.
"""

from __future__ import annotations

from benchmarks.diagnosis.faulty import Case, Change, added, cases_of, changed, faster
from benchmarks.diagnosis.recipe import Recipe

__all__ = ["HEALTHY", "UNJUDGED", "third_cases"]

HEALTHY: dict[str, Recipe] = {
    # plain networks, and the twins of faults that need one
    "wine_silu_deep": Recipe(task="wine", depth=8, width=32, activation="silu", init="he", lr=2e-3, steps=70),
    "friedman_gelu": Recipe(task="friedman", depth=4, width=48, activation="gelu", lr=3e-3),
    "clusters_leaky": Recipe(task="clusters", depth=5, width=38, activation="leaky_relu", lr=2e-3, batch=48),
    "moons_leaky_sgd": Recipe(
        task="moons", depth=4, width=32, activation="leaky_relu", init="he", optimizer="nesterov", lr=0.05
    ),
    "digits_relu_sgd": Recipe(depth=4, width=48, init="he", optimizer="sgd", lr=0.03),
    "digits_tanh_six": Recipe(depth=6, width=40, activation="tanh", init="xavier", lr=1e-3),
    "digits_rmsprop": Recipe(depth=3, width=72, optimizer="rmsprop", lr=1e-3, activation="elu"),
    "friedman_sgd": Recipe(task="friedman", depth=3, width=44, optimizer="sgd", lr=0.02),
    "spirals_tanh_full": Recipe(
        task="spirals",
        depth=3,
        width=24,
        activation="tanh",
        optimizer="sgd",
        momentum=0.0,
        lr=0.3,
        batch=300,
        extras=("same_batch",),
    ),
    "clusters_softmax_noisy": Recipe(
        task="clusters",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.3,
        batch=400,
        extras=("same_batch", "label_noise:0.4"),
    ),
    "iris_logistic_noisy": Recipe(
        task="iris",
        depth=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.3,
        batch=150,
        extras=("same_batch", "label_noise:0.3"),
    ),
    "teacher_clipped": Recipe(task="teacher", depth=4, width=40, lr=3e-3, max_norm=2.0, warmup=8),
    "residual_leaky": Recipe(depth=12, width=26, residual=True, norm="layer", activation="leaky_relu"),
    # images
    "convnext": Recipe(arch="convnext", task="images", width=18, depth=2, lr=4e-3),
    "vision": Recipe(arch="vision", task="patches", width=24, depth=3, lr=4e-3),
    "unet": Recipe(arch="unet", task="images", width=8, lr=5e-3, batch=16, extras=("training:denoise",)),
    "squeeze_excite": Recipe(arch="squeeze_excite", task="images", width=14, depth=3, lr=2e-2),
    "inception_sgd": Recipe(
        arch="inception", task="images", width=24, depth=2, optimizer="nesterov", lr=0.05
    ),
    "variational": Recipe(
        arch="variational", task="reconstruct", width=48, lr=4e-3, extras=("training:evidence",)
    ),
    # sequences
    "selective_scan": Recipe(arch="selective_scan", task="text", width=24, depth=2, batch=8, lr=6e-3),
    "translator": Recipe(arch="translator", task="text", width=28, lr=8e-3, extras=("training:reversal",)),
    "spiking": Recipe(arch="spiking", task="rows", width=44, lr=6e-3),
    # of other kinds
    "flow": Recipe(arch="flow", task="friedman", width=28, depth=4, lr=4e-3, extras=("training:likelihood",)),
    "kan": Recipe(arch="kan", task="friedman", width=12, depth=3, lr=1e-2),
    "hyper": Recipe(arch="hyper", width=22, depth=3, lr=5e-3),
    "equilibrium": Recipe(arch="equilibrium", task="clusters", width=32, depth=10, lr=5e-3),
    "ternary": Recipe(arch="ternary", depth=4, width=48, lr=3e-3),
    "maxout": Recipe(arch="maxout", task="clusters", depth=4, width=24, lr=2e-3),
    "drop_path": Recipe(arch="drop_path", depth=8, width=30, lr=3e-3, activation="gelu"),
    "siamese": Recipe(depth=3, width=32, batch=64, extras=("training:siamese",), lr=2e-3),
    "q_learning": Recipe(depth=3, width=40, batch=48, extras=("training:q_learning",), lr=3e-3),
}
#: Recipes whose loss need not fall: the target moves.
UNJUDGED = frozenset({"q_learning"})

_PLAIN = {"norm": "none", "residual": False}

#: Name of the fault: (key of `LABELS`, what it does to a recipe).
CHANGES: dict[str, tuple[str, Change]] = {
    "sigmoid_ten": ("vanishing", changed(activation="sigmoid", depth=10, init="default", **_PLAIN)),
    "tanh_small": ("vanishing_signal", changed(activation="tanh", depth=18, init="gain:0.4", **_PLAIN)),
    "default_deep": ("vanishing_signal", changed(depth=21, init="default", activation="relu", **_PLAIN)),
    "normal_small": ("vanishing_signal", changed(depth=6, init="normal:0.012", **_PLAIN)),
    "gain_3": ("wrong_gain", changed(depth=10, init="gain:3.0", activation="relu", **_PLAIN)),
    "normal_large": ("wrong_gain", changed(init="normal:1.1", depth=5, activation="relu", **_PLAIN)),
    "constant": ("constant", changed(init="constant:0.2")),
    "tanh_large": ("saturated", changed(activation="tanh", init="normal:1.3", depth=4, **_PLAIN)),
    "pixels": ("large_inputs", changed(input_scale=255.0, **_PLAIN)),
    "pixels_tanh": ("saturated", changed(input_scale=150.0, activation="tanh", **_PLAIN)),
    "dollars": ("large_inputs", changed(target_scale=500.0)),
    "sixty_times": ("large_steps", faster(60.0, warmup=0)),
    "two_hundred_times": ("large_steps", faster(200.0, warmup=0)),
    "diverging": ("diverging", faster(120.0)),
    "millionth": ("small_steps", faster(1e-6)),
    "rate_none": ("small_steps", changed(lr=0.0)),
    "step_forgotten": ("small_steps", added("no_step")),
    "bfloat16_lost": ("small_steps", faster(1e-4, precision="bfloat16", momentum=0.0)),
    "head_forgotten": ("left_out", added("missing:head")),
    "embedding_forgotten": ("left_out", added("missing:embed")),
    "first_forgotten": ("left_out", added("missing:blocks.0")),
    "detached": ("no_gradient", added("detach")),
    "dead_second": ("dead", added("dead:1", activation="relu")),
    "dead_first": ("dead", added("dead:0", activation="relu")),
    "nan_batch": ("nonfinite", added("nan_batch:28")),
    "nan_loss": ("nonfinite", added("nan_loss:19")),
    "nan_in_head": ("nonfinite", added("nan_gradient:head.weight")),
    "never_zeroed": ("summed", added("no_zero_grad")),
    "uphill": ("exploding", added("ascend")),
    "inflated": ("growth", added("inflate:1.04")),
    "decayed": ("collapse", changed(weight_decay=2.0)),
    "spike": ("spike", added("spike:47")),
    "choked": ("throttled", changed(max_norm=1e-5)),
    "float16_lost": ("underflow", faster(1e6, extras=("loss_factor:1e-6",), precision="float16")),
    "swinging": ("swings", faster(60.0)),
}

#: The faults that are applied to each healthy recipe.
_PAIRS = {
    "wine_silu_deep": "sixty_times gain_3 nan_batch",
    "friedman_gelu": "uphill default_deep two_hundred_times rate_none",
    "clusters_leaky": "never_zeroed normal_small dead_second head_forgotten",
    "moons_leaky_sgd": "never_zeroed decayed choked diverging",
    "digits_relu_sgd": "float16_lost decayed millionth bfloat16_lost pixels dead_first diverging spike",
    "digits_tanh_six": "tanh_small tanh_large pixels_tanh sigmoid_ten sixty_times",
    "digits_rmsprop": "normal_large detached first_forgotten step_forgotten inflated",
    "friedman_sgd": "dollars never_zeroed choked",
    "spirals_tanh_full": "swinging",
    "clusters_softmax_noisy": "swinging",
    "iris_logistic_noisy": "swinging",
    "teacher_clipped": "constant nan_loss",
    "residual_leaky": "sixty_times nan_in_head",
    "convnext": "two_hundred_times nan_loss",
    "vision": "sixty_times head_forgotten",
    "unet": "two_hundred_times never_zeroed",
    "squeeze_excite": "embedding_forgotten nan_loss",
    "inception_sgd": "never_zeroed millionth",
    "variational": "sixty_times head_forgotten",
    "selective_scan": "sixty_times embedding_forgotten",
    "translator": "nan_loss head_forgotten",
    "spiking": "head_forgotten sixty_times",
    "flow": "two_hundred_times nan_batch",
    "kan": "sixty_times millionth",
    "hyper": "sixty_times head_forgotten",
    "equilibrium": "sixty_times nan_loss",
    "ternary": "sixty_times first_forgotten",
    "maxout": "sixty_times rate_none",
    "drop_path": "head_forgotten sixty_times",
    "siamese": "rate_none nan_batch",
    "q_learning": "rate_none uphill",
}


def third_cases() -> list[Case]:
    """Each case of the third reported set."""
    return list(cases_of(_PAIRS, HEALTHY, CHANGES))
