"""The matplotlib figures: what they show, empty states, PNGs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from gradkern import report
from gradkern.report.figures import FIGURES, save_figures
from tests.support.synthetic import HOSTILE, make_run

Make = Callable[..., Path]


@pytest.mark.parametrize("name", list(FIGURES))
@pytest.mark.parametrize(
    "options", [{}, {"steps": 0}, {"steps": 1}, {"all_nan": True}, {"names": ()}], ids=str
)
def test_every_figure_draws_every_kind_of_run(recorded: Make, name: str, options: dict[str, object]) -> None:
    figure = FIGURES[name](recorded(**options))
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_title(loc="left")
    figure.draw_without_rendering()


def test_the_curve_is_the_recorded_norm(recorded: Make) -> None:
    axes = report.plot_total_norm(recorded(steps=40)).axes[0]
    line = axes.get_lines()[0]
    assert line.get_xdata().tolist() == list(range(1, 41))
    assert axes.get_yscale() == "log"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["total norm", "threshold 2", "clipped"]


def test_profiles_at_chosen_steps(recorded: Make) -> None:
    axes = report.plot_depth_profile(recorded(steps=40), steps=[3, 30]).axes[0]
    assert [line.get_label() for line in axes.get_lines()] == ["step 3", "step 30"]


def test_names_are_labels_and_nothing_else(recorded: Make) -> None:
    figure = report.plot_heatmap(recorded(names=("$\\frac{", HOSTILE, "c")))
    figure.draw_without_rendering()  # a broken formula would raise here
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "\x1b" not in "".join(labels)


def test_another_metric_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[plot_heatmap\] metric: expected 'rms' or 'ratio', got 'norm'"):
        report.plot_heatmap(make_run(3, 5), metric="norm")


def test_axes_of_ones_own(recorded: Make) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    assert report.plot_loss(recorded(), ax=axes) is figure
    assert len(axes.get_lines()) == 1


def test_a_figure_shows_itself_in_a_notebook(recorded: Make) -> None:
    assert report.plot_loss(recorded())._repr_png_().startswith(b"\x89PNG")


def test_pngs_of_all_figures(recorded: Make, tmp_path: Path) -> None:
    files = save_figures(recorded(), tmp_path / "new" / "folder", dpi=40)
    assert [file.stem for file in files] == list(FIGURES)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_zeros_are_told_from_what_was_not_recorded() -> None:
    run = make_run(6, 40)
    values = run.matrices["rms"].values
    values[1], values[2] = 0.0, np.nan
    figure = report.plot_heatmap(run)
    shown = [mesh.get_array() for mesh in figure.axes[0].collections]
    assert shown[0].mask[1].all()
    assert not shown[1].mask[1].any()
    assert shown[1].mask[2].all()
