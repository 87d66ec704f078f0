"""The remedies for steps that are too large or too small: clipping and the learning rate."""

from __future__ import annotations

import numpy as np

from gradkern._util.text import percent
from gradkern.diagnosis import amounts
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.finding import Remedy
from gradkern.diagnosis.optimizer import momentum


def clip(case: Case, *, hold: bool = False) -> Remedy:
    """At a quantile of the run's norms; with `hold`, for steps that are too large, where SGD's are good."""
    limit, held = amounts.max_norm(case), amounts.held_norm(case) if hold else np.inf
    why = "which 90 % of this run's healthy steps stay below"
    if held < limit:
        why = f"so that a step moves the weights by at most {percent(amounts.FIRST_STEP)} of their norm"
    limit = min(limit, held)
    return Remedy(
        "clip",
        f"Clip the total norm at {limit:.2g}, {why}.",
        f"clipper = gradkern.GradClipper(model, max_norm={limit:.2g})\n"
        "# after loss.backward(), before optimizer.step()\nclipper.clip_()",
    )


def raise_max_norm(case: Case) -> Remedy:
    limit = amounts.max_norm(case)
    return Remedy(
        "raise_max_norm",
        f"Raise max_norm to {limit:.2g}, which 90 % of this run's steps stay below: clipping is meant for "
        "outliers.",
        f"clipper = gradkern.GradClipper(model, max_norm={limit:.2g})",
    )


def lower_lr(case: Case) -> Remedy:
    factor, step = amounts.lower_factor(case), amounts.step_to_lower(case)
    aim = f", so that the first steps move the weights by about {percent(amounts.FIRST_STEP)} of their norm"
    aim = aim if _is_near(factor * step, amounts.FIRST_STEP) else ""
    return Remedy(
        "lower_lr",
        f"Multiply the learning rate by {factor:.1g}{aim}.",
        _multiplied(case, factor),
    )


def raise_lr(case: Case) -> Remedy:
    if amounts.rate_is_zero(case):
        return Remedy(
            "raise_lr",
            "Set a learning rate. It is 0, perhaps because of a scheduler; 1e-3 is common for Adam.",
            'for group in optimizer.param_groups:\n    group["lr"] = 1e-3',
        )
    factor, step = amounts.raise_factor(case), amounts.step_to_raise(case)
    aim = f", so that a step moves the weights by about {percent(amounts.GOOD_STEP, 1)} of their norm"
    aim = aim if _is_near(factor * step, amounts.GOOD_STEP) else ""
    return Remedy(
        "raise_lr",
        f"Multiply the learning rate by {factor:.1g}{aim}.",
        _multiplied(case, factor),
    )


def _is_near(step: float, aim: float) -> bool:
    """Whether a step has the size that is aimed at; a factor is rounded to one digit, and bounded."""
    return 0.6 * aim <= step <= 1.5 * aim


def _multiplied(case: Case, factor: float) -> str:
    rates = case.evidence.lr[np.isfinite(case.evidence.lr)]
    becomes = f"# {rates[0]:.2g} becomes {rates[0] * factor:.2g}\n" if len(rates) else ""
    return f'{becomes}for group in optimizer.param_groups:\n    group["lr"] *= {factor:.1g}'


def check_schedule(case: Case) -> Remedy:
    rates = case.evidence.lr[np.isfinite(case.evidence.lr)]
    course = f"rises from {rates[0]:.2g} to {rates[-1]:.2g} and does not come down"
    if rates[-1] < rates[0]:
        middle = float(np.median(rates))
        course = (
            f"falls from {rates[0]:.2g} to {middle:.2g} in half of the run, as if each step were an epoch"
        )
    return Remedy(
        "check_schedule",
        f"Check the schedule: the learning rate {course}.",
        f'# at first, for example\nfor group in optimizer.param_groups:\n    group["lr"] = {rates[0]:.2g}',
    )


def less_momentum(case: Case) -> Remedy:
    now = momentum(case)
    return Remedy(
        "less_momentum",
        f"Lower the momentum to 0.9: at {now:g} each gradient acts on {1 / max(1 - now, 1e-6):.3g} steps, in "
        "all with as many times the learning rate.",
        'for group in optimizer.param_groups:\n    group["momentum"] = 0.9',
    )


def find_lr() -> Remedy:
    return Remedy(
        "find_lr",
        "Search for a learning rate: raise it from 1e-6 tenfold every 15 steps, and start again with a tenth "
        "of the rate at which the loss was lowest.",
        """\
rates, losses = [10 ** (-6 + step / 15) for step in range(100)], []
for rate, batch in zip(rates, loader):
    for group in optimizer.param_groups:
        group["lr"] = rate
    losses.append(float(train_step(model, batch)))
# use a fresh model; smooth the losses if they are noisy
print(rates[losses.index(min(losses))] / 10)""",
    )


def warmup() -> Remedy:
    return Remedy(
        "warmup",
        "Warm up the learning rate, because the first steps of an adaptive optimizer are its largest.",
        "scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=500)\n"
        "# after each optimizer.step()\nscheduler.step()",
    )
