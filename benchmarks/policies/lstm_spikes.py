"""An LSTM whose gradients spike now and then: a bad batch makes all of them a thousand times as large.

Trained by SGD, which a spike throws off at once, and by Adam, whose second moments remember it.

    python -m benchmarks.policies.lstm_spikes      prints the tables, writes results/lstm_spikes_*_cpu.json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gradkern
from benchmarks.policies.report import report
from benchmarks.policies.text import VOCABULARY, Batches, standard_library
from gradkern.policies import AGC, AdaGC, AutoClip, SkipOutliers, ZClip

SETTINGS = {
    "steps": 200,
    "width": 64,
    "length": 32,
    "batch": 8,
    "lr": {"sgd": 2.0, "adam": 3e-3},
    "spike": 1000.0,
    "probability": 0.03,
    "first_spike": 40,
}
CONTENDERS: dict[str, tuple[bool, Callable[[], dict[str, Any]]]] = {
    "no spikes, no clipping": (False, lambda: {"max_norm": math.inf}),
    "no clipping": (True, lambda: {"max_norm": math.inf}),
    "max_norm=1": (True, lambda: {"max_norm": 1.0}),
    "max_norm=0.1": (True, lambda: {"max_norm": 0.1}),
    "ZClip()": (True, lambda: {"policy": ZClip()}),
    "AutoClip(10)": (True, lambda: {"policy": AutoClip(10.0)}),
    "AutoClip(90)": (True, lambda: {"policy": AutoClip(90.0)}),
    "AdaGC()": (True, lambda: {"policy": AdaGC()}),
    "AGC(0.01)": (True, lambda: {"policy": AGC(0.01)}),
    "SkipOutliers()": (True, lambda: {"policy": SkipOutliers(window=64)}),
}


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.embedding(tokens))[0])
        return logits


def train(contender: str, kind: str, seed: int) -> float:
    """The held-out loss after training; NaN if it is no better than guessing evenly."""
    s: Any = SETTINGS
    spikes, arguments = CONTENDERS[contender]
    torch.manual_seed(seed)
    model = Model(s["width"])
    lr = s["lr"][kind]
    make: Any = torch.optim.SGD if kind == "sgd" else torch.optim.Adam
    optimizer = make(model.parameters(), lr=lr)
    clipper = gradkern.GradClipper(model, **arguments())
    batches = Batches(standard_library(), s["length"], s["batch"], seed)
    dice = torch.Generator().manual_seed(seed)
    for step in range(s["steps"]):
        loss = loss_of(model, *batches.next())
        optimizer.zero_grad()
        spike = torch.rand((), generator=dice) < s["probability"]
        if spikes and spike and step >= s["first_spike"]:
            loss = loss * s["spike"]
        loss.backward()
        stats = clipper.clip_()
        if stats.skip_step is None or not stats.skip_step:
            optimizer.step()
    with torch.no_grad():
        found = float(loss_of(model, *batches.held_out()))
    return found if found < math.log(VOCABULARY) else math.nan


def loss_of(model: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizer", choices=list(SETTINGS["lr"]), nargs="*", default=list(SETTINGS["lr"]))
    parser.add_argument("--only", metavar="TEXT", default="", help="contenders whose name has it")
    arguments = parser.parse_args()
    chosen = [name for name in CONTENDERS if arguments.only in name]
    for kind in arguments.optimizer:
        runs = {name: [train(name, kind, seed) for seed in range(arguments.seeds)] for name in chosen}
        print(f"\n{kind}")
        report(f"lstm_spikes_{kind}_cpu", {**SETTINGS, "optimizer": kind}, runs)


if __name__ == "__main__":
    main()
