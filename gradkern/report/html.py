"""The HTML page of a run: one file with data, style and script, without network access."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from gradkern.report.encode import json_in_script

#: In order of use. uPlot draws the line charts.
_SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    *("model.js", "text.js", "dom.js", "state.js", "charts.js", "controls.js"),
    *("surface.js", "heatmap.js"),
    *("profile.js", "extremes.js", "histogram.js", "findings.js", "events.js", "page.js"),
)
_STYLES = ("vendor/uPlot.min.css", "report.css")


@cache
def _asset(name: str) -> str:
    return (resources.files("gradkern.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") + "'"


def render(payload: dict[str, Any]) -> str:
    """The HTML of the page.

    Its content security policy allows only the style and the script below, by their hashes, and no request.
    Even if a name escaped from the data, it could not run.
    """
    style = "\n".join(_asset(name) for name in _STYLES)
    script = '(() => {\n"use strict";\n' + "\n".join(_asset(name) for name in _SCRIPTS) + "})();\n"
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en" data-theme="light">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(str(payload['title']))}</title>\n<style>{style}</style>\n</head>\n"
        "<body>\n<main></main>\n"
        "<noscript>This report draws with JavaScript, which is switched off.</noscript>\n"
        f'<script type="application/json" id="run">{json_in_script(payload)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def write(payload: dict[str, Any], path: Path) -> int:
    """Write the page atomically. Returns its size in bytes.

    Raises:
        OSError: the folder does not exist, is full or read-only. The error names the file.
    """
    content = render(payload).encode("utf-8")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        error.filename, error.filename2 = str(path), None  # not the partial one
        raise
    return len(content)
