"""Make the pictures of docs/diagnosis.md: for each kind of finding a run that has it, and its healthy twin.

    python scripts/make_handbook.py [KIND ...]

The runs are those of the labelled suite (benchmarks/diagnosis). Fails where a diagnosis does not find the
kind, or finds something alarming in the twin. Needs gradkern[monitor] and Pillow. Takes a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.diagnosis.faulty import CHANGES, added  # noqa: E402
from benchmarks.diagnosis.healthy import TUNED  # noqa: E402
from benchmarks.diagnosis.recipe import Recipe  # noqa: E402
from benchmarks.diagnosis.train import train  # noqa: E402
from gradkern.diagnosis import diagnose  # noqa: E402
from gradkern.history import History  # noqa: E402
from gradkern.report import figures  # noqa: E402

IMAGES = ROOT / "docs" / "images" / "diagnosis"
SIZE, DPI, COLORS, MOST_LABELS = (9.0, 2.5), 80, 48, 8


def weights(run: Path, ax: Axes) -> None:
    """The norm of all weights together."""
    with History.open(run) as history:
        ax.plot(history.update_steps, (history.weight_norm.astype(float) ** 2).sum(axis=1) ** 0.5, marker="o")
    ax.set(xlabel="step", ylabel="norm of the weights", yscale="log")
    ax.spines[["top", "right"]].set_visible(False)


def heatmap(run: Path, ax: Axes) -> None:
    figures.plot_heatmap(run, ax=ax)
    every = -(-len(ax.get_yticks()) // MOST_LABELS)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    ax.set_yticks(ax.get_yticks()[::every], labels[::every], fontsize=8)


def norm(run: Path, ax: Axes) -> None:
    figures.plot_total_norm(run, ax=ax)


def loss(run: Path, ax: Axes) -> None:
    figures.plot_loss(run, ax=ax)


def ratios(run: Path, ax: Axes) -> None:
    figures.plot_update_ratios(run, ax=ax)


def magnitudes(run: Path, ax: Axes) -> None:
    figures.plot_histogram(run, ax=ax)
    ax.set_title("", loc="right")


Plot = Callable[[Path, Axes], None]
Change = Callable[[Recipe], Recipe]
#: Plots whose vertical axis is the same for both runs.
ALIKE = (norm, loss, ratios, weights)
#: For each kind: the healthy recipe, the change applied to it, and the plot that shows it. Oscillating losses
#: are left out: no run of the suite has one without a worse fault.
SHOWN: dict[str, tuple[str, str | Change, Plot]] = {
    "nonfinite_gradient": ("mlp_batchnorm", "nan_in_first", heatmap),
    "low_precision_underflow": ("mlp_digits", "float16_underflow", magnitudes),
    "no_gradient": ("mlp_digits", "unused", heatmap),
    "dead_units": ("mlp_digits", "dead_layer", heatmap),
    "saturation": ("mlp_tanh", "normal_1", magnitudes),
    "vanishing_gradient": ("mlp_digits", "sigmoid_deep", heatmap),
    "exploding_gradient": ("mlp_digits", "ascent", norm),
    "poor_initialization": ("mlp_digits", "gain_3", loss),
    "update_too_large": ("mlp_digits", "adam_rate_x100", ratios),
    "update_too_small": ("mlp_digits", "rate_tiny", ratios),
    "weight_growth": ("mlp_digits", added("inflate:1.05"), weights),
    "weight_collapse": ("mlp_tanh", "decay_strong", weights),
    "gradient_spike": ("mlp_digits", "spike", norm),
    "always_clipping": ("mlp_diabetes", "throttled", norm),
    "never_clipping": ("mlp_clipped", "limit_too_high", norm),
    "loss_not_decreasing": ("mlp_digits", "wrong_labels", loss),
}


def found_in(run: Path) -> list[str]:
    """Kinds of the findings, "info" in brackets."""
    with History.open(run) as history:
        return [finding.kind if finding.is_alarm else f"({finding.kind})" for finding in diagnose(history)]


def draw(kind: str, runs: Path) -> str:
    """Draws the picture of a kind; returns what went wrong."""
    base, change, plot = SHOWN[kind]
    twin = TUNED[base]
    fault = CHANGES[change][1] if isinstance(change, str) else change
    faulty, _ = train(fault(twin), 0, runs)
    healthy, _ = train(twin, 0, runs)
    figure = Figure(figsize=SIZE, layout="constrained")
    left, right = figure.subplots(1, 2)
    for run, ax, title in ((faulty, left, kind.replace("_", " ")), (healthy, right, "healthy")):
        plot(run, ax)
        ax.set_title(title, loc="left", fontsize=11)
    if plot in ALIKE:
        _align(left, right)
    save(figure, IMAGES / f"{kind}.png")
    kinds, others = found_in(faulty), [found for found in found_in(healthy) if "(" not in found]
    if kind not in [found.strip("()") for found in kinds] or others:
        return f"{kind}: found {', '.join(kinds)}, in its twin {', '.join(others) or 'nothing'}"
    return ""


def _align(left: Axes, right: Axes) -> None:
    """Gives both plots the same vertical axis, logarithmic if the runs differ much."""
    low, high = (f(a, b) for f, a, b in zip((min, max), left.get_ylim(), right.get_ylim()))
    values = [v for ax in (left, right) for line in ax.lines for v in line.get_ydata() if v > 0]
    for ax in (left, right):
        if max(values) > 30 * min(values):
            ax.set_yscale("log")
            low = max(low, min(values) / 2)
        ax.set_ylim(low, high)


def save(figure: Figure, path: Path) -> None:
    """A small PNG."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(path, path.stat().st_size, "bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", choices=[[], *SHOWN], help="all by default")
    wanted = parser.parse_args().kinds or SHOWN
    with tempfile.TemporaryDirectory() as runs:
        problems = [problem for problem in (draw(kind, Path(runs)) for kind in wanted) if problem]
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
