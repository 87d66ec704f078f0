"""A small transformer trained by Muon and AdamW, with an outlier in one gradient.

One element of the token embedding's gradient becomes 5e7, in every step or in half of them, as a bad kernel
may make it. A global limit then makes every other gradient small; groups leave them alone.

    python -m benchmarks.policies.muon_outlier     prints the table, writes results/muon_outlier_cpu.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gradkern
from benchmarks.policies.report import report
from benchmarks.policies.text import VOCABULARY, Batches, standard_library
from gradkern.policies import PerLayerNorm

SETTINGS = {
    "steps": 100,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "length": 64,
    "batch": 8,
    "lr_muon": 0.02,
    "lr_adamw": 3e-3,
    "max_norm": 1.0,
    "outlier": 5e7,
}


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def is_matrix(name: str, param: Tensor) -> bool:
    return name.startswith("blocks.") and param.ndim == 2


def two_groups(limit: float) -> dict[str, Any]:
    return {"groups": {"muon": (is_matrix, limit), "adamw": ("*", limit)}}


def three_groups(limit: float) -> dict[str, Any]:
    return {"groups": {"muon": (is_matrix, limit), "tokens": ("tokens.*", limit), "adamw": ("*", limit)}}


#: How often there is an outlier, and how gradients are clipped.
CONTENDERS: dict[str, tuple[float, Callable[[float], dict[str, Any]]]] = {
    "no outlier; global limit": (0.0, lambda limit: {"max_norm": limit}),
    "no outlier; groups": (0.0, two_groups),
    "in every step; no limit": (1.0, lambda limit: {"max_norm": float("inf")}),
    "in every step; global limit": (1.0, lambda limit: {"max_norm": limit}),
    "in every step; groups: Muon, AdamW": (1.0, two_groups),
    "in every step; groups: Muon, embedding, rest of AdamW": (1.0, three_groups),
    "in every step; PerLayerNorm": (1.0, lambda limit: {"policy": PerLayerNorm(limit)}),
    "in half of the steps; global limit": (0.5, lambda limit: {"max_norm": limit}),
    "in half of the steps; groups: Muon, embedding, rest of AdamW": (0.5, three_groups),
}


def train(contender: str, seed: int) -> float:
    """The held-out loss after training."""
    s: Any = SETTINGS
    probability, arguments = CONTENDERS[contender]
    torch.manual_seed(seed)
    model = Transformer(s["width"], s["layers"], s["heads"], s["length"])
    named = list(model.named_parameters())
    matrices = [p for n, p in named if is_matrix(n, p)]
    others = [p for n, p in named if not is_matrix(n, p)]
    optimizers = [torch.optim.Muon(matrices, lr=s["lr_muon"]), torch.optim.AdamW(others, lr=s["lr_adamw"])]
    clipper = gradkern.GradClipper(model, **arguments(s["max_norm"]))
    batches = Batches(standard_library(), s["length"], s["batch"], seed)
    dice = torch.Generator().manual_seed(seed)
    for _ in range(s["steps"]):
        loss = loss_of(model, *batches.next())
        model.zero_grad()
        loss.backward()
        if torch.rand((), generator=dice) < probability:
            grad = model.tokens.weight.grad
            assert grad is not None
            grad.view(-1)[torch.randint(grad.numel(), (), generator=dice)] = s["outlier"]
        clipper.clip_()
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        return float(loss_of(model, *batches.held_out()))


def loss_of(model: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", metavar="TEXT", default="", help="contenders whose name has it")
    parser.add_argument("--save", metavar="NAME", default="muon_outlier_cpu")
    arguments = parser.parse_args()
    chosen = [name for name in CONTENDERS if arguments.only in name]
    runs = {name: [train(name, seed) for seed in range(arguments.seeds)] for name in chosen}
    report(arguments.save, SETTINGS, runs)


if __name__ == "__main__":
    main()
