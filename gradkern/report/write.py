"""From a run to its report."""

from __future__ import annotations

import os
from pathlib import Path

from gradkern.report import html
from gradkern.report.data import Source
from gradkern.report.load import load
from gradkern.report.payload import payload


def write_report(run: Source, path: str | os.PathLike[str] | None = None) -> Path:
    """Write one self-contained HTML file about a run.

    It makes no request and stays under 6 MB for 3,000 parameters and any number of steps, since it
    is made from downsampled data.

    Args:
        run: a History, or the folder of a run; it may still be recorded.
        path: the file, or a folder (one that is there, or a text that ends with a slash) for a
            ``report.html``; the folder of the run if None.

    Returns:
        The path written.

    Raises:
        HistoryError: the folder holds no run that can be read.
        OSError: the file cannot be written; names it, and leaves what was there before as it is.
    """
    data = load(run)
    target = Path(path if path is not None else data.folder or ".")
    if path is None or os.fspath(path).endswith(("/", os.sep)) or target.is_dir():
        target /= "report.html"
    html.write(payload(data), target)
    return target
