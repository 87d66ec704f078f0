"""How the operations of a run's loss end: the sign of the loss, and what is in front of its softmax.

All of it needs the graph of the loss. The operations are in the order of execution.
"""

from __future__ import annotations

from itertools import pairwise

from gradkern.diagnosis.case import Case
from gradkern.diagnosis.model import CLAMPING, GATING

#: Losses of a prediction and a target that are never below zero. Others may be (the Kullback-Leibler
#: divergence of what is no distribution), or are negated on purpose (binary cross-entropy, by a generator
#: that plays against a critic).
NEVER_NEGATIVE = {"nll_loss", "nll_loss2d", "nll_loss_nd", "cross_entropy", "cross_entropy_loss"}
NEVER_NEGATIVE |= {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}
#: Operations behind a loss that keep its sign; `mul` does not: policy gradients multiply by an advantage.
KEEPING = {"mean", "sum", "div"}
#: How log-probabilities of targets are taken.
TAKING = {"gather", "index", "index_select", "take_along_dim"}


def is_negated(case: Case) -> bool:
    """Whether a run's only loss is one that is never negative, negated; or a mean log-probability."""
    ending = [o for o in _operations(case) if o not in KEEPING]
    losses = [o for o in ending if "loss" in o or o.endswith("cross_entropy")]
    if len(losses) == 1 and losses[0] in NEVER_NEGATIVE:
        return ending[-2:] == [losses[0], "neg"]
    return not losses and len(ending) > 1 and ending[-2] == "log_softmax" and ending[-1] in TAKING


def in_front_of_softmax(case: Case) -> str:
    """The operation directly in front of the last log-softmax: "softmax", "relu" or another."""
    before = [first for first, second in pairwise(_operations(case)) if second == "log_softmax"]
    name = before[-1] if before else ""
    return "relu" if name in GATING | CLAMPING else name


def _operations(case: Case) -> list[str]:
    return [str(o).lower() for o in (case.evidence.facts.get("graph") or {}).get("operations", ())]
