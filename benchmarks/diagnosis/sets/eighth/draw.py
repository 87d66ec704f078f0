"""Draw the faulty runs of the eighth set: ``python -m benchmarks.diagnosis.sets.eighth.draw [KIND ...]``.

The faults are those of the fourth to the seventh set. If two of these give a name to different changes, the
later one counts. For each expected kind, all pairs of a fault and a healthy recipe to which it applies are
shuffled by ``random.Random(8)``, kinds in alphabetical order. Pairs are tried in this order until `EACH` are
accepted: the twin is healthy and the trace at the first seed shows the label. A pair that cannot be built is
passed over. Nothing is diagnosed. The result is printed and kept in `faults`.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from torch import nn

from benchmarks.diagnosis.build import build_model
from benchmarks.diagnosis.judge import is_strictly_well
from benchmarks.diagnosis.labels import LABELS
from benchmarks.diagnosis.models import Block
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.eighth.faults import CHANGES
from benchmarks.diagnosis.sets.eighth.healthy import HEALTHY, UNJUDGED
from benchmarks.diagnosis.train import train

SEED = 1900
#: Pairs of each expected kind.
EACH = 9
FOLDER = Path("build/diagnosis")
DESCENT = ("sgd", "nesterov")
#: Faults that say which part they are in, by what follows their name.
_OF_PARAMETERS, _OF_MODULES = (
    ("missing", "standing", "apart", "nan_gradient", "loud", "fill"),
    ("cut", "blocked", "signed", "hard"),
)


def main() -> None:
    wanted = sys.argv[1:]
    for kind, pairs in drawn().items():
        if not wanted or kind in wanted:
            found: list[str] = []
            for name, fault in pairs:
                if len(found) < EACH and _accepted(name, fault):
                    found.append(f"{name}/{fault}")
            print(kind, *found, flush=True)


def drawn() -> dict[str, list[tuple[str, str]]]:
    """The pairs of each kind in the order in which they are tried."""
    chance = random.Random(8)
    models = {name: build_model(recipe, SEED) for name, recipe in HEALTHY.items()}
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for name, recipe in sorted(HEALTHY.items()):
        for fault, (key, change) in sorted(CHANGES.items()):
            if name not in UNJUDGED and applies(recipe, change(recipe), key, models[name]):
                by_kind.setdefault(LABELS[key].kind, []).append((name, fault))
    for _, pairs in sorted(by_kind.items()):
        chance.shuffle(pairs)
    return dict(sorted(by_kind.items()))


def applies(recipe: Recipe, sick: Recipe, key: str, model: nn.Module) -> bool:
    """Whether a change reaches the model and the training, as in the sets that it is from."""
    if recipe.extra("no_loss") is not None or recipe.extra("no_optimizer") is not None:
        return False
    if key == "swings" and recipe.extra("same_batch") is None:  # a valley of one loss
        return False
    if key == "underflow" and recipe.extra("loss_factor") is None:  # a loss in small units
        return False
    if key in ("throttled", "dead_by_steps", "diverging") and recipe.optimizer not in DESCENT:
        return False  # steps of Adam's kind do not depend on the size of gradients
    if key == "saturated" and sick.activation not in ("tanh", "sigmoid"):
        return False
    return _reaches(recipe, sick, model)


def _reaches(recipe: Recipe, sick: Recipe, model: nn.Module) -> bool:
    """Whether the model has the part that is changed."""
    blocks = any(isinstance(module, Block) for module in model.modules())
    structure = ("activation", "depth")
    if not blocks and any(getattr(recipe, name) != getattr(sick, name) for name in structure):
        return False
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    for extra in sick.extras[len(recipe.extras) :]:
        name, _, part = extra.partition(":")
        part = part.partition("=")[0]
        if name in _OF_PARAMETERS and not any(part in n for n in parameters):
            return False
        if name in _OF_MODULES and part not in modules:
            return False
        if name in ("dead", "negative", "stuck") and f"blocks.{part}.layer.bias" not in parameters:
            return False
        if name == "states" and recipe.arch != "rnn":
            return False
    return True


def _accepted(name: str, fault: str) -> bool:
    key, change = CHANGES[fault]
    try:
        trace = train(change(HEALTHY[name]), SEED, FOLDER, reuse=True)[1]
    except Exception:  # whatever a model or a task says to a change that does not fit it
        return False
    twin = train(HEALTHY[name], SEED, FOLDER, reuse=True)[1]
    if not is_strictly_well(name, twin) or LABELS[key].symptom(trace, twin) is None:
        return False
    return key != "unclipped" or bool(trace.norm.max() < 0.1 * change(HEALTHY[name]).max_norm)


if __name__ == "__main__":
    main()
