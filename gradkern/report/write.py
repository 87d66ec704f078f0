"""Writes the report of a run."""

from __future__ import annotations

import os
from pathlib import Path

from gradkern.report import html
from gradkern.report.data import Source
from gradkern.report.load import load
from gradkern.report.payload import payload


def write_report(run: Source, path: str | os.PathLike[str] | None = None) -> Path:
    """Write one self-contained HTML file about a run.

    The page makes no request. It is made from downsampled data and stays under 6 MB for 3,000 parameters
    and any number of steps.

    Args:
        run: a History, or the folder of a run; it may still be recorded.
        path: the file to write, or a folder (an existing one, or a path that ends with a slash) for
            ``report.html``. The folder of the run if None.

    Returns:
        The path written.

    Raises:
        HistoryError: the folder holds no run that can be read.
        OSError: the file cannot be written; names it. An existing file is left unchanged.
    """
    data = load(run)
    target = Path(path if path is not None else data.folder or ".")
    if path is None or os.fspath(path).endswith(("/", os.sep)) or target.is_dir():
        target /= "report.html"
    html.write(payload(data), target)
    return target
