"""The final table of the demo, and the same numbers as JSON."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradkern.demo.cost import CLIPPER, FUNCTION, TORCH, ClipCost
from gradkern.demo.training import BATCH, LENGTH, MOMENTUM, DemoRun

WIDTH = 100  # characters of a line


@dataclass(frozen=True)
class LayerSummary:
    """A layer's gradient norms over one run, from before clipping."""

    name: str
    first: float
    last: float
    largest: float
    """The largest finite one; NaN if there is none."""
    largest_step: int
    """From 1; 0 if there is none."""
    nonfinite: int
    """Elements that were inf or NaN, over all steps."""


def summarize(run: DemoRun) -> list[LayerSummary]:
    """One row a layer, in the model's order."""
    rows = []
    for index, name in enumerate(run.layers):
        norms = [step[index] for step in run.layer_norm]
        finite = [(norm, -step) for step, norm in enumerate(norms, 1) if math.isfinite(norm)]
        largest, step = max(finite, default=(math.nan, 0))
        bad = sum(counts[index] for counts in run.nonfinite)
        rows.append(LayerSummary(name, norms[0], norms[-1], largest, -step, bad))
    return rows


def final_table(unclipped: DemoRun, clipped: DemoRun) -> str:
    """The comparison of one model's two runs, as text."""
    setting = clipped.setting
    lines = [
        f"{setting.title}: {sum(clipped.numel):,} parameters, SGD with learning rate "
        f"{setting.learning_rate:g} and momentum {MOMENTUM:g}, batches of {BATCH} x {LENGTH} characters"
    ]
    for name, run in (("without clipping", unclipped), (f"max_norm {clipped.max_norm:g}", clipped)):
        lines += ["", f"  {name}: {run.verdict()}", *_nonfinite_lines(run), *_layer_lines(run)]
    lines += ["", *_clipping_lines(clipped)]
    if clipped.cost:
        lines += ["", *_cost_lines(clipped, clipped.cost)]
    return "\n".join(lines)


def diagnoses(runs: Sequence[DemoRun]) -> str:
    """The diagnosis of each run in words: the headline and the first remedy, or that the run is healthy."""
    lines = ["Diagnosis"]
    for run in runs:
        how = f"max_norm {run.max_norm:g}" if run.clipping else "without clipping"
        alarms = [finding for finding in run.findings if finding.is_alarm]
        if not alarms:
            lines += ["", f"  {run.setting.title}, {how}: healthy, no rule found anything wrong"]
            continue
        head, *others = alarms
        lines += ["", f"  {run.setting.title}, {how}: {head.title} ({head.severity}; {head.where})"]
        said = [head.why, *(f"Do: {remedy.because}" for remedy in head.remedies[:2])]
        if others:
            said.append(f"Also seen: {', '.join(finding.title for finding in others)}.")
        for text in said:
            lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _nonfinite_lines(run: DemoRun) -> list[str]:
    found = run.first_nonfinite()
    if found is None:
        return []
    step, layers = found
    line = f"  first inf or NaN in a gradient: step {step}, layer {layers[0]}"
    if math.isfinite(run.loss[step - 1]):
        line += f", while the loss was still {run.loss[step - 1]:.3g}"
    else:
        line += f", reached from a loss that was {run.loss[step - 1]} already (the forward pass overflowed)"
    others = ", ".join(layers[1:])
    return (
        [line, f"    in the same step, in the order in which gradients arrive: {others}"]
        if others
        else [line]
    )


def _layer_lines(run: DemoRun) -> list[str]:
    rows = [("layer", "first", "last", "largest", "at step", "non-finite")]
    for layer in summarize(run):
        norms = (f"{layer.first:.4g}", f"{layer.last:.4g}", f"{layer.largest:.4g}")
        rows.append((layer.name, *norms, str(layer.largest_step), str(layer.nonfinite)))
    return _columns(rows)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "    " + "   ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in rows
    ]


def _clipping_lines(run: DemoRun) -> list[str]:
    steps = run.clipped_steps
    share = f"  clipping engaged in {len(steps)} of {run.steps} steps ({len(steps) / run.steps:.0%})"
    coefs = [run.clip_coef[step - 1] for step in steps]
    return [share + (f", smallest coefficient {min(coefs):.3g}" if coefs else "")]


def _cost_lines(run: DemoRun, cost: ClipCost) -> list[str]:
    engaged = run.clipped_steps
    idle = sorted(set(range(1, run.steps + 1)) - set(engaged))
    rows = [("microseconds a call", f"clipping ({len(engaged)} steps)", f"not clipping ({len(idle)} steps)")]
    rows += [
        (name, _spread(cost, name, engaged), _spread(cost, name, idle)) for name in (TORCH, FUNCTION, CLIPPER)
    ]
    step = sorted(run.step_seconds)[run.steps // 2] * 1e3
    return [
        *_columns(rows),
        "    (median, and quartiles in brackets: wall time of one call on the step's own gradients,",
        f"    {cost.tensors} tensors with {cost.elements:,} float32 elements, copied back before every call;",
        "    the calls take turns within each step, their order rotates. Threads: "
        f"{torch.get_num_threads()}. A whole training step takes {step:.1f} ms)",
    ]


def _spread(cost: ClipCost, name: str, steps: Sequence[int]) -> str:
    quartiles = cost.quartiles(name, steps)
    return "-" if quartiles is None else "{1:.0f} [{0:.0f}, {2:.0f}]".format(*quartiles)


def _number(value: float) -> float | str:
    """Replace inf and NaN, which JSON lacks, by strings that `float` accepts."""
    return value if math.isfinite(value) else str(value)


def as_dict(run: DemoRun) -> dict[str, Any]:
    """Everything a run recorded, as plain values for JSON."""
    return {
        "model": run.setting.name,
        "learning_rate": run.setting.learning_rate,
        "max_norm": _number(run.max_norm),
        "verdict": run.verdict(),
        "layers": list(run.layers),
        "numel": list(run.numel),
        "loss": [_number(x) for x in run.loss],
        "total_norm": [_number(x) for x in run.total_norm],
        "clip_coef": [_number(x) for x in run.clip_coef],
        "layer_norm": [[_number(x) for x in step] for step in run.layer_norm],
        "nonfinite": run.nonfinite,
        "step_seconds": run.step_seconds,
        "findings": [finding.to_json() for finding in run.findings],
        "clip_microseconds": run.cost.microseconds if run.cost else {},
    }


def write_record(runs: Sequence[DemoRun], path: Path) -> None:
    """Write every run's numbers as JSON."""
    path.write_text(json.dumps({"runs": [as_dict(run) for run in runs]}, allow_nan=False), encoding="utf-8")
