"""Looking at a run afterwards: one HTML file, figures for notebooks, PNGs.

matplotlib is imported only by what draws with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradkern.report.write import write_report

if TYPE_CHECKING:
    from gradkern.report.figures import (
        plot_clip_rate,
        plot_depth_profile,
        plot_heatmap,
        plot_histogram,
        plot_loss,
        plot_total_norm,
        plot_update_ratios,
        save_figures,
    )

__all__ = [
    "plot_clip_rate",
    "plot_depth_profile",
    "plot_heatmap",
    "plot_histogram",
    "plot_loss",
    "plot_total_norm",
    "plot_update_ratios",
    "save_figures",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # only the figures are left to come here
        from gradkern.report import figures

        return getattr(figures, name)
    raise AttributeError(f"module 'gradkern.report' has no attribute {name!r}")
