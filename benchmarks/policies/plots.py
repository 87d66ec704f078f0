"""The two pictures of docs/policies.md, from benchmarks/results.

    python -m benchmarks.policies.plots     writes docs/images/policies/*.svg

Colours are readable on a light and on a dark page; the background is transparent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images" / "policies"
TEXT, GOOD, BAD = "#808080", "#2f81f7", "#e5534b"  # each at least 3:1 against white and against black
STYLE = {
    "font.size": 9,
    "svg.hashsalt": "gradkern",  # the same file every time
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
Runs = dict[str, dict[str, Any]]


def runs_of(name: str) -> Runs:
    runs: Runs = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))[
        "runs"
    ]
    return runs


def draw(axes: Axes, runs: Runs, labels: dict[str, str], reference: str, worse: float) -> None:
    """A row for each contender: a dot for each seed and a line at the median.

    Args:
        labels: the contenders to draw from top to bottom, and what to call them.
        reference: the contender whose median is the dashed line.
        worse: how far above the reference a median is drawn as bad.
    """
    best = runs[reference]["median"]
    axes.axvline(best, color=TEXT, linewidth=0.8, linestyle=(0, (4, 3)))
    for row, name in enumerate(labels):
        run = runs[name]
        if run["median"] is None:
            axes.text(
                best,
                row,
                f"  diverged in {run['broken']} of {len(run['losses'])} runs",
                color=BAD,
                va="center",
            )
            continue
        color = BAD if run["median"] > best + worse else GOOD
        losses = [loss for loss in run["losses"] if loss is not None]
        axes.plot(losses, [row] * len(losses), "o", color=color, markersize=5, alpha=0.6, markeredgewidth=0)
        axes.plot([run["median"]] * 2, [row - 0.3, row + 0.3], color=color, linewidth=2)
    axes.set_yticks(range(len(labels)), list(labels.values()))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel("held-out loss")


def save(figure: Figure, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"{name}.svg", transparent=True, bbox_inches="tight", metadata={"Date": None})


def muon() -> None:
    labels = {
        "no outlier; global limit": "no outlier, global limit",
        "in every step; global limit": "outliers, global limit",
        "in every step; groups: Muon, AdamW": "outliers, groups: Muon | AdamW",
        "in every step; groups: Muon, embedding, rest of AdamW": "outliers, groups: Muon | embedding | rest",
        "in every step; PerLayerNorm": "outliers, PerLayerNorm",
    }
    figure = Figure(figsize=(6.5, 2.1))
    draw(figure.subplots(), runs_of("muon_outlier_cpu"), labels, "no outlier; global limit", worse=0.1)
    save(figure, "muon_outlier")


def lstm() -> None:
    names = ("no spikes, no clipping", "no clipping", "max_norm=1", "max_norm=0.1", "ZClip()", "AutoClip(10)",
             "AutoClip(90)", "AdaGC()", "AGC(0.01)", "SkipOutliers()")  # fmt: skip
    labels = {name: name if "clipping" in name else f"spikes, {name}" for name in names}
    labels["no clipping"] = "spikes, no clipping"
    figure = Figure(figsize=(7.5, 3.1))
    for axes, optimizer in zip(figure.subplots(1, 2, sharey=True), ("SGD", "Adam")):
        draw(axes, runs_of(f"lstm_spikes_{optimizer.lower()}_cpu"), labels, names[0], worse=0.1)
        axes.set_title(optimizer, fontsize=10)
    figure.axes[1].invert_yaxis()  # shared: turned round once for each
    save(figure, "lstm_spikes")


if __name__ == "__main__":
    with mpl.rc_context(STYLE):
        muon()
        lstm()
