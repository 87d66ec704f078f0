"""`starts_as_a_sum`: whether the first norms are those of gradients that add up."""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import Case, Floats
from gradkern.diagnosis.climb import climbs

#: While the weights have hardly moved, gradients are alike: a sum of n has a norm of sqrt(n) (if they are
#: noise) to n times the first one. So it rises at each step, to 1.4 … 2 at the second. The bounds are wider,
#: since gradients of batches differ and grow. Of 57 runs without zero_grad() 45 start like this (and 6 of the
#: labelled suite), of 1,001 others 4.
RISING = 6
BOUNDS = {1: (1.05, 3.0), 2: (1.4, 5.5), 5: (2.0, 15.0)}
#: Fall of a norm that is a dip. Of 18 sums that do not rise at each step 9 have one such dip, and of 1,980
#: healthy runs 8, whose later norms are not as smooth as those of a sum.
DIP = 0.12
#: Nesterov's momentum is added to the gradient in place (by the multi-tensor code of torch.optim.SGD), so
#: that what is not cleared grows by a constant factor: from the second step on by 2.2 … 2.5 (momentum 0.9),
#: at the first one as two batches differ. Nothing else makes a norm sixteen times as large while the loss
#: changes by less than twice what it was (`LEFT`; up to 1.1 times in eight runs, and none of 1,960 others
#: has such norms).
FIRST, FACTOR, ALIKE, LEFT = (1.5, 4.0), (1.8, 3.0), 1.25, 2.0


def starts_as_a_sum(case: Case, dips: int = 0) -> bool:
    """Whether the norm rises at each of the first steps, as that of a sum does, but for some small dips. A
    loop without zero_grad() shows this before anything else, and also where it clips or diverges later. If
    the loss rises at each of them too, the sign of the loss is wrong: the first sums still point downhill."""
    norm, loss = case.evidence.total_norm[:RISING], case.evidence.loss[:RISING]
    if len(norm) < RISING or not np.isfinite(norm).all() or not norm[0] > 0:
        return False
    if _multiplies(norm[:-1], loss[:-1]):
        return True
    if climbs(case, RISING) or (np.isfinite(loss).all() and (np.diff(loss) > 0).all()):
        return False
    times = norm / norm[0]
    inside = all(low <= times[at] <= high for at, (low, high) in BOUNDS.items())
    rises = norm[1:] / norm[:-1]
    return inside and int((rises <= 1).sum()) <= dips and bool(rises.min() > 1 - DIP)


def _multiplies(norm: Floats, loss: Floats) -> bool:
    """Whether the norm grows by about the same factor at each step, while the loss stays where it was."""
    if not (norm > 0).all():
        return False
    first, *times = (norm[1:] / norm[:-1]).tolist()
    alike = FACTOR[0] <= min(times) and max(times) <= min(FACTOR[1], ALIKE * min(times))
    stays = bool(np.abs(loss - loss[0]).max() < LEFT * abs(loss[0]))
    return FIRST[0] <= first <= FIRST[1] and alike and stays
