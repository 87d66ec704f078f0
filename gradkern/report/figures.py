"""Figures of a run with matplotlib, for notebooks and files."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradkern._util.names import common_prefix
from gradkern._util.text import fit, visible
from gradkern.report.data import Matrix, ReportData, Source
from gradkern.report.load import load

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap, LogNorm, to_rgba
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "gradkern's pictures need matplotlib: pip install matplotlib (extra: gradkern[monitor])"
    ) from error


class RunFigure(Figure):
    """A matplotlib Figure that a notebook displays, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        return buffer.getvalue()


def _figure(ax: Axes | None, height: float = 3.2) -> tuple[Figure, Axes]:
    if ax is not None:
        owner = ax.get_figure(root=True) if hasattr(ax.figure, "get_figure") else ax.figure
        assert isinstance(owner, Figure)
        return owner, ax
    figure = RunFigure(figsize=(9.0, height), layout="constrained")
    return figure, figure.add_subplot()


def _finish(ax: Axes, title: str, ylabel: str, xlabel: str = "step") -> None:
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)


def _nothing(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color="gray")
    ax.set_xticks([])
    ax.set_yticks([])


def _labels(names: Sequence[str], width: int) -> list[str]:
    """Names as labels: different from each other, without a common beginning, control characters, or dollar
    signs, which matplotlib would read as formulas."""
    skip = len(common_prefix(names))
    return [text.replace("$", r"\$") for text in fit([visible(name[skip:]) for name in names], width)]


def _curve(ax: Axes, run: ReportData, key: str, color: str, label: str) -> None:
    at = (run.bins.first + run.bins.last) / 2
    mid = run.series[key]
    marker = "o" if int(np.isfinite(mid).sum()) == 1 else None
    ax.plot(at, mid, color=color, label=label, linewidth=1.2, marker=marker)
    if f"{key}_low" in run.series:
        low, high = run.series[f"{key}_low"], run.series[f"{key}_high"]
        ax.fill_between(at, low, high, color=color, alpha=0.22, linewidth=0)


def plot_total_norm(run: Source, ax: Axes | None = None) -> Figure:
    """Plot the total norm over steps, with the threshold and marks for clipped and non-finite steps.

    Args:
        run: a History, or the folder of a run.
        ax: axes to draw into. Default: a new figure.

    Returns:
        The matplotlib Figure.

    Raises:
        HistoryError: the folder has no run that can be read.
        ImportError: matplotlib is not installed.

    Notes:
        The data is downsampled first, so that the time depends little on the length of the run.
    """
    data, (figure, ax) = load(run), _figure(ax)
    _finish(ax, f"Total norm, {data.phase}", "norm")
    if not np.isfinite(data.series["norm"]).any():
        _nothing(ax, "no finite total norm was recorded")
        return figure
    _curve(ax, data, "norm", "C0", "total norm")
    if (data.series["norm"] > 0).any():
        ax.set_yscale("log", nonpositive="clip")
    if data.max_norm is not None and np.isfinite(data.max_norm):
        ax.axhline(
            data.max_norm, color="C1", linestyle="--", linewidth=1, label=f"threshold {data.max_norm:g}"
        )
    at = (data.bins.first + data.bins.last) / 2
    clipped, bad = data.series["clip_rate"] > 0, data.series["nonfinite"] > 0
    foot = ax.get_xaxis_transform()
    if clipped.any():
        colors = np.tile(to_rgba("C1"), (int(clipped.sum()), 1))
        colors[:, 3] = np.clip(0.15 + 0.85 * data.series["clip_rate"][clipped], 0, 1)
        ax.scatter(
            at[clipped], np.full(len(colors), 0.015), c=colors, marker="|", transform=foot, label="clipped"
        )
    if bad.any():
        ax.vlines(at[bad], 0, 1, color="C3", alpha=0.4, linewidth=1, transform=foot, label="inf or NaN")
    ax.legend(loc="upper right", fontsize=8, frameon=False)
    return figure


def plot_loss(run: Source, ax: Axes | None = None) -> Figure:
    """Plot the loss over steps. Arguments, result and errors as in `plot_total_norm`."""
    data, (figure, ax) = load(run), _figure(ax)
    _finish(ax, "Loss", "loss")
    if not np.isfinite(data.series["loss"]).any():
        _nothing(ax, "no loss was recorded")
        return figure
    _curve(ax, data, "loss", "C2", "loss")
    return figure


def plot_clip_rate(run: Source, ax: Axes | None = None) -> Figure:
    """Plot the share of clipped steps and the smallest coefficient. Otherwise as `plot_total_norm`."""
    data, (figure, ax) = load(run), _figure(ax)
    _finish(ax, "Clip rate and coefficient", "share")
    if not np.isfinite(data.series["clip_rate"]).any():
        _nothing(ax, "no clipping was recorded")
        return figure
    at, marker = data.rates.bins.first, "o" if len(data.rates.bins) == 1 else None
    ax.plot(at, data.rates.rate, color="C1", label="steps clipped", marker=marker)
    ax.plot(at, data.rates.coef, color="C4", linestyle="--", label="smallest coefficient", marker=marker)
    ax.set_ylim(-0.02, 1.2)
    ax.legend(loc="upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def plot_heatmap(run: Source, metric: str = "rms", ax: Axes | None = None) -> Figure:
    """Plot a heatmap of all parameters × steps on a logarithmic colour scale.

    Zeros are grey, inf and NaN red; white means that nothing was recorded.

    Args:
        run: a History, or the folder of a run.
        metric: "rms" (of the gradient) or "ratio" (‖Δw‖ / ‖w‖, if recorded).
        ax: axes to draw into. Default: a new figure.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: `metric` is something else.
        HistoryError, ImportError: as in `plot_total_norm`.
    """
    if metric not in ("rms", "ratio"):
        raise ValueError(f"[plot_heatmap] metric: expected 'rms' or 'ratio', got {metric!r}")
    data = load(run)
    height = 2.2 + min(len(data.names), 40) * 0.14
    figure, ax = _figure(ax, height=height)
    _finish(ax, "rms of the gradient" if metric == "rms" else "update ratio", "")
    matrix = data.matrices.get(metric)
    if matrix is None or not len(matrix.first):
        _nothing(ax, "nothing was recorded")
        return figure
    _draw_matrix(figure, ax, data, matrix)
    return figure


def _draw_matrix(figure: Figure, ax: Axes, data: ReportData, matrix: Matrix) -> None:
    usable = np.isfinite(matrix.values) & (matrix.values > 0) & ~matrix.bad
    low, high = np.percentile(matrix.values[usable], [1, 99]) if usable.any() else (0.1, 1.0)
    edges = np.append(matrix.first, matrix.last[-1] + 1).astype(float)
    rows = np.arange(len(data.names) + 1)
    shown = np.ma.array(matrix.values, mask=~usable)
    scale = LogNorm(max(low, 1e-300), max(high, low * 1.01, 1e-299))
    mesh = ax.pcolormesh(edges, rows, shown, norm=scale, cmap="viridis", rasterized=True)
    for where, color in ((matrix.values == 0, "#b9c0ca"), (matrix.bad, "#e0115f")):
        if where.any():
            flat = np.ma.array(np.ones_like(matrix.values), mask=~where)
            ax.pcolormesh(edges, rows, flat, cmap=ListedColormap([color]), rasterized=True)
    figure.colorbar(mesh, ax=ax, pad=0.01)
    ax.invert_yaxis()
    every = max(1, -(-len(data.names) // 40))
    ax.set_yticks(np.arange(0, len(data.names), every) + 0.5)
    ax.set_yticklabels(_labels(data.names, 46)[::every], fontsize=7)


def plot_depth_profile(run: Source, steps: Sequence[int] | None = None, ax: Axes | None = None) -> Figure:
    """Plot the rms of every parameter's gradient in model order, at some steps.

    Args:
        run: a History, or the folder of a run.
        steps: the steps. Of each the bin that contains it is shown. Default: the first, middle and last.
        ax: axes to draw into. Default: a new figure.

    Returns:
        The matplotlib Figure.

    Raises:
        HistoryError, ImportError: as in `plot_total_norm`.
    """
    data = load(run)
    figure, ax = _figure(ax, height=4.6)
    _finish(ax, "Profile over depth", "rms of the gradient", "parameter, in model order")
    matrix = data.matrices["rms"]
    if not len(matrix.first):
        _nothing(ax, "nothing was recorded")
        return figure
    if steps is None:
        steps = [int(matrix.first[i]) for i in (0, len(matrix.first) // 2, len(matrix.first) - 1)]
    size = max(1.0, min(5.0, 300 / max(1, len(data.names))))
    for step in dict.fromkeys(steps):
        column = max(0, int(np.searchsorted(matrix.first, step, side="right")) - 1)
        values = np.where(matrix.bad[:, column], np.nan, matrix.values[:, column])
        ax.plot(np.where(values > 0, values, np.nan), "o", markersize=size, alpha=0.8, label=f"step {step:,}")
    ax.set_yscale("log")
    if len(data.names) <= 40:
        ax.set_xticks(range(len(data.names)))
        ax.set_xticklabels(_labels(data.names, 28), rotation=90, fontsize=7)
    ax.legend(fontsize=8, frameon=False)
    return figure


def plot_update_ratios(run: Source, ax: Axes | None = None) -> Figure:
    """Plot the median, spread and maximum of the update ratios. Otherwise as `plot_total_norm`."""
    data, (figure, ax) = load(run), _figure(ax)
    _finish(ax, "Update ratios ‖Δw‖ / ‖w‖, over parameters", "ratio")
    bands = data.ratio_bands()
    if bands is None or not np.isfinite(bands["mid"]).any():
        _nothing(ax, "no update ratios were recorded")
        return figure
    at = data.matrices["ratio"].first
    ax.fill_between(
        at, bands["low"], bands["high"], color="C0", alpha=0.22, linewidth=0, label="10 % to 90 %"
    )
    ax.plot(at, bands["mid"], color="C0", linewidth=1.2, label="median", marker="o" if len(at) == 1 else None)
    ax.plot(at, bands["top"], color="C3", linewidth=1, linestyle="--", label="largest")
    ax.set_yscale("log", nonpositive="mask")
    ax.legend(fontsize=8, frameon=False)
    return figure


def plot_histogram(run: Source, step: int | None = None, ax: Axes | None = None) -> Figure:
    """Plot the histogram of gradient magnitudes, as powers of two.

    Args:
        run, ax: as in `plot_total_norm`.
        step: the step. Default: the last one with a histogram.

    Returns:
        The matplotlib Figure.

    Raises:
        HistoryError, ImportError: as in `plot_total_norm`.
    """
    data, (figure, ax) = load(run), _figure(ax)
    _finish(ax, "Magnitudes of elements", "share of elements", "log2 |g|")
    recorded = data.histogram
    if recorded is None or not len(recorded.steps):
        _nothing(ax, "no histograms were recorded")
        return figure
    row = len(recorded.steps) - 1
    if step is not None:
        row = max(0, int(np.searchsorted(recorded.steps, step, side="right")) - 1)
    exponents = recorded.low + np.arange(recorded.shares.shape[1])
    ax.bar(exponents + 0.5, recorded.shares[row], width=0.9, color="C0")
    lost = ", ".join(f"{name} {100 * number_[row]:.3g} %" for name, number_ in recorded.underflow.items())
    ax.set_title(f"Magnitudes of elements, step {recorded.steps[row]:,}", loc="left", fontsize=11)
    if lost:
        ax.set_title(f"underflow: {lost}", loc="right", fontsize=8, color="gray")
    return figure


FIGURES: dict[str, Callable[[Any], Figure]] = {
    "total_norm": plot_total_norm,
    "loss": plot_loss,
    "clip_rate": plot_clip_rate,
    "heatmap": plot_heatmap,
    "depth_profile": plot_depth_profile,
    "update_ratios": plot_update_ratios,
    "histogram": plot_histogram,
}


def save_figures(run: Source, folder: str | Path, dpi: int = 120) -> list[Path]:
    """Save every figure as a PNG file.

    Args:
        run: a History, or the folder of a run.
        folder: where to save them. Created if it does not exist.
        dpi: resolution in dots per inch.

    Returns:
        The paths of the files.

    Raises:
        HistoryError, ImportError: as in `plot_total_norm`.
        OSError: a file cannot be written.
    """
    target, data = Path(folder), load(run)
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in FIGURES.items():
        files.append(target / f"{name}.png")
        plot(data).savefig(files[-1], dpi=dpi)
    return files
