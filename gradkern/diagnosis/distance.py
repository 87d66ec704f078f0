"""How far the steps of a run move its weights, and by how much they can lower its loss."""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import Case

#: While the gradient stays the same, a loss falls by at most its norm times the distance of the steps. Steps
#: cannot make a fall that is larger than that by this factor.
BEYOND = 10.0


def reach(case: Case) -> float:
    """The most by which the steps can lower the loss: the gradient's norm times their distance."""
    norm, size = case.evidence.total_norm[case.finite], case.weight_size[np.isfinite(case.weight_size)]
    if not len(norm) or not len(size) or not np.isfinite(case.movement).any():
        return float("inf")
    return float(norm.max() * size.max()) * distance(case)


def distance(case: Case) -> float:
    """‖Δw‖ / ‖w‖ summed over the run. Between two looks, which lie closest together at first, steps are taken
    to be as large as the larger of the two."""
    e, known = case.evidence, np.isfinite(case.movement)
    movement, at = case.movement[known], np.append(e.update_steps[known], case.last_step + 1)
    at[0] = e.steps[0]
    return float((np.maximum(movement, np.append(movement[1:], 0.0)) * np.diff(at)).sum())


def steps_in_all(case: Case) -> int:
    """Steps of the run, also those that `every` left out."""
    return case.last_step - int(case.evidence.steps[0]) + 1
