"""The healthy runs of the fifth set; its faults are in `faults`.

It was written by someone who had not read the rules, and committed before any of its runs was diagnosed.
Labels alone were checked before, by their traces. Most of its models, losses, regimes and optimizers are in
no other set; plain networks are given data of their own.
"""

from __future__ import annotations

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fifth.settings import FIFTH_SETTINGS

__all__ = ["HEALTHY"]

HEALTHY: dict[str, Recipe] = {
    # vectors and tables
    "chebyshev": Recipe(arch="chebyshev", task="colors", width=10, depth=2, lr=1e-2),
    "complex": Recipe(arch="complex", width=24, depth=3, lr=2e-3),
    "reversible": Recipe(arch="reversible", width=40, depth=6, lr=2e-3),
    "reversible_rings": Recipe(
        arch="reversible", task="rings", width=32, depth=4, activation="tanh", lr=5e-3
    ),
    "hopfield": Recipe(arch="hopfield", width=32, lr=5e-3),
    "arithmetic": Recipe(arch="arithmetic_unit", task="arithmetic", width=12, lr=2e-2, steps=100),
    "sorter": Recipe(arch="sorter", task="unsorted", width=24, depth=2, lr=5e-3),
    "soft_experts": Recipe(arch="soft_experts", task="china", width=20, lr=3e-3),
    "inducing": Recipe(arch="inducing", task="colors", width=24, lr=3e-2),
    "unrolled": Recipe(arch="unrolled", task="codes", depth=3, lr=3e-3, batch=64),
    "searched": Recipe(arch="searched", width=32, depth=3, lr=3e-3),
    "monotone": Recipe(arch="monotone", task="china", width=16, depth=3, lr=1e-2),
    "glow": Recipe(arch="spectrum", task="china", width=20, depth=2, lr=3e-3, extras=("training:bits_back",)),
    "categorical": Recipe(arch="categorical", task="reconstruct", width=48, lr=5e-3, activation="gelu"),
    "top_few": Recipe(arch="sparse", task="reconstruct", width=40, lr=5e-3),
    "feedback_alignment": Recipe(
        arch="feedback_alignment", width=40, depth=3, activation="tanh", optimizer="sgd", lr=0.05
    ),
    "learned_steps": Recipe(arch="learned_steps", width=40, depth=4, init="he", lr=2e-3),
    "signs": Recipe(arch="signs", width=64, depth=3, norm="batch", lr=3e-3, batch=64),
    "structured": Recipe(arch="structured", width=48, depth=2, lr=2e-3),
    "noisy": Recipe(arch="noisy", width=36, depth=3, activation="elu", lr=3e-3),
    "categories": Recipe(arch="categories", task="visits", width=32, depth=3, lr=1e-2, batch=64),
    "trigrams": Recipe(arch="trigrams", task="names", width=24, depth=3, lr=1e-2),
    "trigrams_sgd": Recipe(arch="trigrams", task="names", width=20, depth=2, optimizer="nesterov", lr=0.2),
    "relation": Recipe(arch="relation", task="clock", width=10, lr=3e-2, batch=64, steps=100),
    "skip_gram": Recipe(
        arch="words", task="contexts", width=16, lr=3e-2, batch=128, extras=("training:negatives",)
    ),
    "towers": Recipe(arch="towers", width=32, depth=2, lr=3e-3, batch=48, extras=("training:match",)),
    "koopman": Recipe(
        arch="koopman", task="lorenz", width=32, activation="elu", lr=5e-3, extras=("training:forecast",)
    ),
    # images
    "involution": Recipe(arch="involution", task="images", width=14, depth=2, lr=1e-2, batch=20, steps=50),
    "non_local": Recipe(arch="non_local", task="images", width=12, depth=3, lr=1e-2, batch=24, steps=70),
    "local": Recipe(arch="local", task="images", width=4, lr=2e-3),
    "pyramid_overlap": Recipe(
        arch="pyramid", task="shapes", width=10, norm="batch", lr=5e-3, batch=16, extras=("training:overlap",)
    ),
    # points and graphs
    "point_net": Recipe(arch="point_net", task="points", width=32, depth=3, lr=5e-3),
    "edge_conv": Recipe(arch="edge_conv", task="points", width=20, depth=2, lr=1e-2, batch=24, steps=60),
    "messages": Recipe(arch="messages", task="graphs", width=20, depth=2, lr=5e-3),
    "messages_sgd": Recipe(
        arch="messages", task="graphs", width=16, depth=3, activation="silu", optimizer="nesterov", lr=0.02
    ),
    "edges": Recipe(arch="edges", task="graphs", width=12, depth=2, lr=5e-3),
    # sequences, sets and trees
    "retention": Recipe(arch="retention", task="text", width=20, depth=2, batch=6, lr=7e-3, steps=60),
    "long_filter": Recipe(arch="long_filter", task="text", width=20, depth=2, batch=6, lr=7e-3, steps=60),
    "quasi": Recipe(arch="quasi", task="tokens", width=20, depth=1, batch=16, lr=1e-2, steps=60),
    "rotating": Recipe(arch="rotating", task="rows", width=24, lr=5e-3, steps=60),
    "windowed": Recipe(arch="windowed", task="brackets", width=16, depth=2, batch=16, lr=5e-3, steps=60),
    "deep_norm": Recipe(arch="deep_norm", task="tokens", width=20, depth=2, batch=8, lr=5e-3, steps=60),
    "routed": Recipe(arch="routed", task="rows", width=24, depth=2, lr=5e-3),
    "grams": Recipe(arch="grams", task="tokens", width=16, depth=3, batch=16, lr=5e-3),
    "grams_sgd": Recipe(
        arch="grams", task="tokens", width=16, depth=2, batch=16, optimizer="sgd", lr=0.1, activation="elu"
    ),
    "induced_set": Recipe(arch="induced_set", task="majority", width=16, depth=1, lr=5e-3),
    "smoother": Recipe(arch="smoother", task="sensors", width=16, lr=1e-2, batch=24, steps=60),
    "tree": Recipe(arch="tree", task="expressions", width=24, lr=1e-2),
    "hidden_chain": Recipe(
        arch="hidden_chain", task="chains", width=6, lr=5e-2, batch=48, extras=("training:chain",), steps=60
    ),
    "process": Recipe(
        arch="process", task="functions", width=32, depth=2, lr=3e-3, extras=("training:process",), steps=100
    ),
    "tagger": Recipe(
        arch="tagger", task="tokens", width=16, lr=2e-2, batch=8, extras=("training:sequence",), steps=40
    ),
    **FIFTH_SETTINGS,
}
