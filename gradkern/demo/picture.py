"""The picture of the demo: losses, the gradient norm of every layer, and the steps that were clipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradkern.demo.training import DemoRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The palette of Okabe and Ito, which colour-blind readers can tell apart, without its pale yellow.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
_UNCLIPPED, _CLIPPED = "#D55E00", "#0072B2"
_GREY = "#555555"
#: Lower end of the axis: norms of a saturated layer (1e-45, for example) would squeeze everything else.
_SMALLEST = 1e-12


def draw(pairs: Sequence[tuple[DemoRun, DemoRun]], path: Path) -> None:
    """Draw one row of four panels per model and write a PNG file.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 5.6 * len(pairs)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(pairs), 1, squeeze=False, hspace=0.06)[:, 0]
    for row, (unclipped, clipped) in zip(rows, pairs):
        _row(row, unclipped, clipped)
    figure.savefig(path)


def _row(figure: Any, unclipped: DemoRun, clipped: DemoRun) -> None:
    from matplotlib.ticker import MaxNLocator

    setting = clipped.setting
    figure.suptitle(
        f"{setting.title}, SGD with learning rate {setting.learning_rate:g}", fontsize=16, weight="bold"
    )
    loss, exploding, steady, total = figure.subplots(1, 4)
    _losses(loss, unclipped, clipped)
    _layers(exploding, unclipped, f"Gradient norms without clipping\n{_blow_up(unclipped)}")
    _layers(
        steady, clipped, f"Gradient norms with clipping\nbefore it is applied; max_norm {clipped.max_norm:g}"
    )
    _total(total, clipped)
    for axes in (loss, exploding, steady, total):
        axes.set_xlabel("step", fontsize=12)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.tick_params(labelsize=11)
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = steady.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels) + 1, fontsize=12, frameon=False,
        title="layers, from input to output", title_fontsize=12,
    )  # fmt: skip


def _blow_up(run: DemoRun) -> str:
    found = run.first_nonfinite()
    if found is None:
        return "finite to the end"
    return f"first inf or NaN: {found[1][0]}, step {found[0]}"


def _losses(axes: Axes, unclipped: DemoRun, clipped: DemoRun) -> None:
    """The losses, on a linear axis over the range in which a model learns. Larger ones are given as text."""
    top = 2 * clipped.loss[0]
    axes.plot(_steps(clipped), clipped.loss, color=_CLIPPED, linewidth=1.6)
    axes.plot(_steps(unclipped), unclipped.loss, color=_UNCLIPPED, linewidth=1.6)
    axes.set_ylim(0, top)
    axes.set_ylabel("loss (nats a character)", fontsize=12)
    axes.set_title(f"Loss\nwith clipping {clipped.loss[0]:.2f} to {clipped.loss[-1]:.2f}", fontsize=13)
    largest = max((x for x in unclipped.loss if math.isfinite(x)), default=math.nan)
    text = "without clipping"
    if largest > top:
        text += f": up to {largest:.1g}"
    if not math.isfinite(unclipped.loss[-1]):
        text += f",\n{unclipped.loss[-1]} at step {unclipped.steps}"
    axes.text(0.97, 0.96, text, transform=axes.transAxes, ha="right", va="top", fontsize=12, color=_UNCLIPPED)
    axes.text(0.97, 0.06, "with clipping", transform=axes.transAxes, ha="right", fontsize=12, color=_CLIPPED)


def _layers(axes: Axes, run: DemoRun, title: str) -> None:
    """The norm of each layer, with thicker lines for earlier layers, so that lines on top of each other are
    visible, and a vertical line at the first inf or NaN."""
    steps = _steps(run)
    for index, name in enumerate(run.layers):
        colour = _COLOURS[index % len(_COLOURS)]
        norms = [row[index] for row in run.layer_norm]
        finite = [norm if 0 < norm < math.inf else math.nan for norm in norms]
        axes.plot(steps, finite, label=name, color=colour, linewidth=max(1.0, 3.2 - 0.4 * index))
    axes.set_yscale("log")
    if axes.get_ylim()[0] < _SMALLEST:
        axes.set_ylim(bottom=_SMALLEST)
    axes.set_title(title, fontsize=13)
    axes.set_ylabel("gradient norm of the layer", fontsize=12)
    found = run.first_nonfinite()
    if found:
        axes.axvline(found[0], color=_GREY, linestyle="--", linewidth=1.5)


def _total(axes: Axes, run: DemoRun) -> None:
    """The total norm, its threshold, and a mark at every step that was clipped."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    steps = _steps(run)
    clipped = run.clipped_steps
    axes.plot(steps, run.total_norm, color=_CLIPPED, linewidth=1.2, label="total norm")
    axes.axhline(run.max_norm, color=_GREY, linestyle="--", linewidth=1.5, label="max_norm")
    norms = [run.total_norm[step - 1] for step in clipped]
    axes.plot(clipped, norms, "o", color=_UNCLIPPED, markersize=4, label="clipped")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(
        f"Total norm before clipping\nclipping engaged in {len(clipped)} of {run.steps} steps", fontsize=13
    )
    axes.set_ylabel("gradient norm of the model", fontsize=12)
    axes.legend(loc="upper right", fontsize=12, frameon=False)


def _steps(run: DemoRun) -> list[int]:
    return list(range(1, run.steps + 1))
