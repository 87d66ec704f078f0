"""`write_report`: write the HTML report of a run."""

from __future__ import annotations

import os
from pathlib import Path

from gradkern.report import html
from gradkern.report.data import Source
from gradkern.report.load import load
from gradkern.report.payload import payload


def write_report(run: Source, path: str | os.PathLike[str] | None = None) -> Path:
    """Write a self-contained HTML report of a run.

    Args:
        run: a History, or the folder of a run, which may still be recorded.
        path: the file to write, or a folder (an existing one, or a path that ends with a slash) for
            ``report.html``. Default: the folder of the run.

    Returns:
        The path of the file.

    Raises:
        HistoryError: the folder has no run that can be read.
        OSError: the file cannot be written. The error names it, and an existing file is not changed.

    Notes:
        The page makes no network requests. It is made from downsampled data and stays under 6 MB for 3,000
        parameters and any number of steps.
    """
    data = load(run)
    target = Path(path if path is not None else data.folder or ".")
    if path is None or os.fspath(path).endswith(("/", os.sep)) or target.is_dir():
        target /= "report.html"
    html.write(payload(data), target)
    return target
