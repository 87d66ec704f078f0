"""Draw the faulty runs of a set: ``python -m benchmarks.diagnosis.draw ninth [KIND ...]``.

The faults are those of the fourth to the seventh set. If two of these give a name to different changes, the
later one counts. For each expected kind, all pairs of a fault and a healthy recipe to which it applies are
shuffled by ``random.Random`` with a seed of the set, kinds in alphabetical order. Pairs are tried in this
order until enough are accepted: the twin is healthy and the trace at the first seed shows the label. A pair
that cannot be built is passed over. Nothing is diagnosed. The result is printed and kept in the set's
`faults`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from benchmarks.diagnosis.build import build_model
from benchmarks.diagnosis.faulty import Change
from benchmarks.diagnosis.judge import is_strictly_well
from benchmarks.diagnosis.labels import LABELS
from benchmarks.diagnosis.models import Block
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.eighth import faults as eighth_faults
from benchmarks.diagnosis.sets.eighth import healthy as eighth
from benchmarks.diagnosis.sets.ninth import healthy as ninth
from benchmarks.diagnosis.train import train

__all__ = ["DRAWINGS", "Drawing", "applies", "drawn"]

FOLDER = Path("build/diagnosis")
DESCENT = ("sgd", "nesterov")
#: Faults that say which part they are in, by what follows their name.
_OF_PARAMETERS, _OF_MODULES = (
    ("missing", "standing", "apart", "nan_gradient", "loud", "fill"),
    ("cut", "blocked", "signed", "hard"),
)


@dataclass(frozen=True)
class Drawing:
    """What the pairs of a set are drawn from, and how."""

    recipes: Mapping[str, Recipe]
    unjudged: frozenset[str]
    changes: Mapping[str, tuple[str, Change]]
    seed: int
    """The first seed of the set's runs, with which a label has to be confirmed."""
    chance: int
    """The seed of the shuffle."""
    each: int
    """Pairs of each expected kind."""


DRAWINGS = {
    "eighth": Drawing(eighth.HEALTHY, eighth.UNJUDGED, eighth_faults.CHANGES, seed=1900, chance=8, each=9),
    "ninth": Drawing(ninth.HEALTHY, ninth.UNJUDGED, eighth_faults.CHANGES, seed=2100, chance=9, each=10),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("set", choices=DRAWINGS)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="all of them if none is given")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where runs are recorded")
    options = parser.parse_args()
    drawing = DRAWINGS[options.set]
    for kind, pairs in drawn(drawing).items():
        if not options.kinds or kind in options.kinds:
            found: list[str] = []
            for name, fault in pairs:
                if len(found) < drawing.each and _accepted(drawing, name, fault, options.folder):
                    found.append(f"{name}/{fault}")
            print(kind, *found, flush=True)


def drawn(drawing: Drawing) -> dict[str, list[tuple[str, str]]]:
    """The pairs of each kind in the order in which they are tried."""
    chance = random.Random(drawing.chance)
    models = {name: build_model(recipe, drawing.seed) for name, recipe in drawing.recipes.items()}
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for name, recipe in sorted(drawing.recipes.items()):
        for fault, (key, change) in sorted(drawing.changes.items()):
            if name not in drawing.unjudged and applies(recipe, change(recipe), key, models[name]):
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


def _accepted(drawing: Drawing, name: str, fault: str, folder: Path) -> bool:
    key, change = drawing.changes[fault]
    recipe, seed = drawing.recipes[name], drawing.seed
    try:
        trace = train(change(recipe), seed, folder, reuse=True)[1]
    except Exception:  # whatever a model or a task says to a change that does not fit it
        return False
    twin = train(recipe, seed, folder, reuse=True)[1]
    if not is_strictly_well(name, twin) or LABELS[key].symptom(trace, twin) is None:
        return False
    return key != "unclipped" or bool(trace.norm.max() < 0.1 * change(recipe).max_norm)


if __name__ == "__main__":
    main()
