"""The rule for gradients that vanish over the time steps of a sequence, if `GradientOverTime` recorded them.

May be wrong if the loss does not depend on early inputs. Nothing is found if the loss is taken at every time
step, because the profile is flat then. LSTM and GRU with PyTorch's initialization keep half of their state at
each step, and show the same until they have learned to keep more. Therefore it is an alarm only if the loss
does not fall.
"""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import FEW_STEPS, Case
from gradkern.diagnosis.finding import Finding

#: Decades from the largest norm of the sequence to the norm at its start. Measured before the first step, 32
#: units, 60 time steps, five seeds: nn.RNN 10.8 … 15.5, nn.GRU 11.4 … 12.7, nn.LSTM 10.7 … 12.1; orthogonal
#: nn.RNN 2.2 … 3.5, nn.LSTM with a forget bias of 3 0.2 … 0.8.
FORGOTTEN = 4.0
#: Positions below which a sequence has no start and end; the part of them that is its start.
LEAST_POSITIONS, START = 8, 8
#: What a gradient that is zero in float32 counts as.
_ZERO = 1e-45


def vanishing_over_time(case: Case) -> list[Finding]:
    """The start of the sequence gets a vanishing part of the gradient at the end of it."""
    return [found for name in case.evidence.over_time for found in _of_module(case, name)]


def _of_module(case: Case, name: str) -> list[Finding]:
    norms = case.evidence.over_time[name]
    rows = np.flatnonzero(np.isfinite(norms).all(axis=1) & (norms.max(axis=1, initial=0.0) > 0))
    if norms.shape[1] < LEAST_POSITIONS or len(rows) < FEW_STEPS:
        return []
    logs = np.log10(np.maximum(norms[rows], _ZERO))
    lost = logs.max(axis=1) - np.median(logs[:, : norms.shape[1] // START], axis=1)
    typical = float(np.median(lost[len(lost) // 2 :]))
    if typical < FORGOTTEN:
        return []
    stays = case.trend.known and not case.trend.fell
    why = (
        f"At the start of the sequence the gradient at the input of {name} is {10.0**-typical:.0e} of the "
        "largest one: the network does not learn from inputs that far back."
    )
    e = case.evidence
    return [
        case.finding(
            "vanishing_gradient",
            "warning" if stays else "info",
            why,
            {"decades_over_time": typical, "positions": norms.shape[1]},
            layers=case.names(i for i, parameter in enumerate(e.names) if "weight_hh" in parameter),
            first=int(e.steps[rows[np.argmax(lost >= FORGOTTEN)]]),
        )
    ]
