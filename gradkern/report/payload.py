"""A downsampled run as plain data for the page's script."""

from __future__ import annotations

import math
from typing import Any

from gradkern._util.names import common_prefix
from gradkern._util.text import fit, visible
from gradkern.diagnosis.evidence_words import in_words
from gradkern.report.data import Histogram, Matrix, ReportData
from gradkern.report.encode import pack_matrix, plain, plain_number

_NAME_LIMIT = 300  # characters


def payload(run: ReportData) -> dict[str, Any]:
    """Everything on the page, as plain values for `json.dumps`."""
    bands = run.ratio_bands()
    ratio, skip = run.matrices.get("ratio"), len(common_prefix(run.names))
    return {
        "title": visible(run.title),
        "subtitle": _subtitle(run),
        "phase": run.phase,
        "run": {key: _plain_any(value) for key, value in run.summary.items()}
        | {"steps": run.records, "max_norm": _plain_any(run.max_norm)},
        "names": fit([visible(name[skip:], len(name)) for name in run.names], _NAME_LIMIT),
        "numel": run.numel.tolist(),
        "series": {"first": run.bins.first.tolist(), "last": run.bins.last.tolist()}
        | {key: plain(values) for key, values in run.series.items()},
        "clipping": {
            "first": run.rates.bins.first.tolist(),
            "last": run.rates.bins.last.tolist(),
            "rate": plain(run.rates.rate),
            "coef": plain(run.rates.coef),
        },
        "matrices": {key: _matrix(matrix) for key, matrix in run.matrices.items()},
        "ratio_bands": None
        if bands is None or ratio is None
        else {"first": ratio.first.tolist(), "last": ratio.last.tolist()}
        | {key: plain(values) for key, values in bands.items()},
        "ratio_note": run.ratio_note,
        "histogram": None if run.histogram is None else _histogram(run.histogram),
        "findings": [_finding(finding, skip) for finding in run.findings],
        "events": [
            {"step": notice.step, "kind": visible(notice.kind, 80), "severity": notice.severity}
            | {"title": visible(notice.title, 80), "text": visible(notice.text, 600)}
            for notice in run.events
        ],
        "happened": {visible(kind, 80): count for kind, count in run.happened.items()},
        "groups": {visible(name, 80): plain(norms) for name, norms in run.groups.items()},
        "own": [
            {"title": visible(title, 80)}
            | {"curves": {visible(name, 80): plain(values) for name, values in curves.items()}}
            for title, curves in run.own.items()
        ],
    }


def _finding(finding: dict[str, Any], skip: int) -> dict[str, Any]:
    """A finding with the names of layers that the page shows, and its evidence in words."""
    shown: dict[str, Any] = _plain_any(finding)
    layers = [layer[skip:] or layer for layer in shown.get("layers", [])]
    return shown | {"layers": layers, "numbers": visible(in_words(finding.get("evidence", {})), 2000)}


def _subtitle(run: ReportData) -> str:
    seconds = run.summary.get("seconds")
    if not seconds or not math.isfinite(seconds) or run.records < 2:
        return "gradient report"
    hours, rest = divmod(int(seconds), 3600)
    return f"gradient report · {hours:d} h {rest // 60:02d} min {rest % 60:02d} s from first to last step"


def _matrix(matrix: Matrix) -> dict[str, Any]:
    return {"first": matrix.first.tolist(), "last": matrix.last.tolist()} | pack_matrix(
        matrix.values, matrix.bad
    )


def _histogram(histogram: Histogram) -> dict[str, Any]:
    return {
        "first": histogram.steps.tolist(),
        "last": histogram.steps.tolist(),
        "low": histogram.low,
        "shares": [plain(row) for row in histogram.shares],
        "underflow": {name: plain(shares) for name, shares in histogram.underflow.items()},
        "note": histogram.note,
    }


def _plain_any(value: Any) -> Any:
    if isinstance(value, float):
        return plain_number(value)
    if isinstance(value, str):
        return "\n".join(visible(line, 4000) for line in value.split("\n"))  # code has several lines
    if isinstance(value, dict):
        return {str(key): _plain_any(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_any(entry) for entry in value]
    return value
