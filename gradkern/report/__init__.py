"""Reports of a recorded run: an HTML file, figures for notebooks, PNG files.

matplotlib is imported only by the functions that draw with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradkern._util import lazy
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

if not TYPE_CHECKING:
    _figures = [name for name in __all__ if name != "write_report"]
    __getattr__, __dir__ = lazy.attach(__name__, dict.fromkeys(_figures, "gradkern.report.figures"))
