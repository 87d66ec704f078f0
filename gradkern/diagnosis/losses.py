"""Kinds of losses, by the names of their operations and modules."""

from __future__ import annotations

#: Losses that compare with a class.
CLASSIFYING = ("nll_loss", "cross_entropy", "nllloss", "crossentropyloss")
#: The same for losses that compare each output with 0 or 1.
YES_OR_NO = ("binary_cross_entropy", "bceloss", "bcewithlogits")
#: Losses that compare with a number.
DISTANCES = ("mse", "l1", "smooth_l1", "smoothl1", "huber")
#: Losses of a prediction and a target that are never below zero. Others may be (the Kullback-Leibler
#: divergence of what is no distribution).
NEVER_NEGATIVE = (*CLASSIFYING, *YES_OR_NO, *DISTANCES)
#: Those that nobody negates on purpose. A generator that plays against a critic negates `YES_OR_NO`.
NEVER_NEGATED = (*CLASSIFYING, *DISTANCES)
#: A regression loss from which targets are regarded as large.
LARGE_LOSS = 1e3
#: Modules that are a loss, by their class, and the operation of each.
LOSS_MODULES = {
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "MSELoss": "mse_loss",
    "L1Loss": "l1_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
}
