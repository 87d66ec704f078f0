"""Data and losses: real ones (scikit-learn's sets, the source of the standard library) and synthetic ones."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fifth.data import FIFTH_DATA
from benchmarks.diagnosis.sets.fourth.data import DATA as FOURTH_DATA
from benchmarks.diagnosis.sets.ninth.data import NINTH_DATA
from benchmarks.diagnosis.sets.seventh.data import SEVENTH_DATA
from benchmarks.diagnosis.sets.sixth.data import SIXTH_DATA
from benchmarks.diagnosis.sklearn_data import sklearn_datasets

__all__ = ["EVERY", "SIZES", "SYMBOLIC", "TASKS", "Batch", "Loss", "Task", "make_task"]

DATA = FOURTH_DATA | FIFTH_DATA | SIXTH_DATA | SEVENTH_DATA | NINTH_DATA
Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
#: Modules whose text is training data; "origin" has a class for each.
MODULES = ("argparse", "textwrap", "json.decoder", "random", "heapq", "string", "csv", "shlex")
SYMBOLS = 64
LENGTH = 24
#: Tasks whose inputs are symbols, and those of them that predict one at every position.
SYMBOLIC = (
    *("text", "origin", "opcodes", "families", "english", "writing", "entities", "sessions"),
    *("manual", "kinds", "numerals"),
)
EVERY = ("text", "opcodes", "english", "manual")


class Task:
    """Batches of a data set drawn at random, and the loss on them."""

    def __init__(self, x: Tensor, y: Tensor, loss: Loss, recipe: Recipe, seed: int) -> None:
        self._x, self._y, self._loss, self._recipe = x, y, loss, recipe
        self._random = torch.Generator().manual_seed(seed * 7919 + 13)
        if recipe.extra("label_noise") is not None:
            share = float(recipe.extra("label_noise") or 0.2)
            wrong = torch.rand(len(y), generator=self._random) < share
            mixed = y[torch.randperm(len(y), generator=self._random)]
            self._y = torch.where(wrong.view(-1, *[1] * (y.dim() - 1)), mixed, y)

    def batch(self) -> Batch:
        recipe = self._recipe
        size = min(recipe.batch, len(self._x))
        if recipe.extra("same_batch") is not None:
            chosen = torch.arange(size)
        else:
            chosen = torch.randint(0, len(self._x), (size,), generator=self._random)
        x, y = self._x[chosen], self._y[chosen]
        if recipe.extra("random_labels") is not None:
            y = y[torch.randperm(len(y), generator=self._random)]
        if x.is_floating_point():
            x = x * recipe.input_scale
        return x, y * recipe.target_scale if y.is_floating_point() else y

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        out = model(x)
        return self._loss(out if out.dtype == torch.float32 else out.float(), y)


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, -2), y.flatten())


def mse(out: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(out, y)


def binary(out: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(out.squeeze(-1), y)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-3 * float(x.std()))


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    found = sklearn_datasets().load_digits()
    x = torch.tensor(found.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(found.target)


def _digits_task() -> tuple[Tensor, Tensor, Loss]:
    return (*_digits(), cross_entropy)


def _images() -> tuple[Tensor, Tensor, Loss]:
    x, y = _digits()
    return x.view(-1, 1, 8, 8), y, cross_entropy


def _reconstruct() -> tuple[Tensor, Tensor, Loss]:
    x = _digits()[0]
    return x, x, mse


def _table(load: Callable[[], object], loss: Loss) -> tuple[Tensor, Tensor, Loss]:
    found = load()
    x = _standard(torch.tensor(found.data, dtype=torch.float32))  # type: ignore[attr-defined]
    y = torch.tensor(found.target)  # type: ignore[attr-defined]
    if loss is mse:
        y = _standard(y.float().unsqueeze(1))
    return x, y.float() if loss is binary else y, loss


def _clusters() -> tuple[Tensor, Tensor, Loss]:
    random = torch.Generator().manual_seed(5)
    y = torch.randint(0, 10, (2000,), generator=random)
    centers = torch.randn(10, 20, generator=random)
    return _standard(centers[y] + torch.randn(2000, 20, generator=random)), y, cross_entropy


def _teacher() -> tuple[Tensor, Tensor, Loss]:
    random = torch.Generator().manual_seed(6)
    x = torch.randn(2000, 16, generator=random)
    hidden = torch.tanh(x @ torch.randn(16, 24, generator=random) / 3)
    return x, _standard(hidden @ torch.randn(24, 4, generator=random)), mse


def _spirals() -> tuple[Tensor, Tensor, Loss]:
    random = torch.Generator().manual_seed(7)
    t = torch.rand(1500, generator=random) * 3 + 0.3
    y = torch.randint(0, 3, (1500,), generator=random)
    angle = 1.5 * t + y * (2 * math.pi / 3)
    x = torch.stack([t * angle.cos(), t * angle.sin()], 1)
    return _standard(x + 0.05 * torch.randn(1500, 2, generator=random)), y, cross_entropy


def _wave() -> tuple[Tensor, Tensor, Loss]:
    x = torch.linspace(-1, 1, 512).unsqueeze(1)
    return x, torch.sin(14 * x) * torch.cos(5 * x), mse


@functools.cache
def _tokens() -> tuple[Tensor, ...]:
    found = []
    for name in MODULES:
        text = inspect.getsource(importlib.import_module(name))[:20000]
        found.append(torch.tensor([min(max(ord(c) - 32, 0), 94) * (SYMBOLS - 1) // 94 for c in text]))
    return tuple(found)


def _windows(length: int) -> tuple[Tensor, Tensor]:
    pieces = [tokens.unfold(0, length, 16) for tokens in _tokens()]
    return torch.cat(pieces), torch.cat([torch.full((len(p),), i) for i, p in enumerate(pieces)])


def _text() -> tuple[Tensor, Tensor, Loss]:
    windows = _windows(LENGTH + 1)[0]
    return windows[:, :-1], windows[:, 1:], cross_entropy


def _origin() -> tuple[Tensor, Tensor, Loss]:
    return (*_windows(LENGTH), cross_entropy)


def _neighbors() -> tuple[Tensor, Tensor, Loss]:
    windows = _windows(5)[0]
    return windows[:, [0, 1, 3, 4]], windows[:, 2], cross_entropy


def _adding(length: int = 24) -> tuple[Tensor, Tensor, Loss]:
    random = torch.Generator().manual_seed(8)
    values = torch.rand(2000, length, generator=random)
    marks = torch.zeros(2000, length)
    marks.scatter_(1, torch.rand(2000, length, generator=random).argsort(1)[:, :2], 1.0)
    return torch.stack([values, marks], 2), (values * marks).sum(1, keepdim=True), mse


def _rows() -> tuple[Tensor, Tensor, Loss]:
    x, y = _digits()
    return x.view(-1, 8, 8), y, cross_entropy


def _ratings() -> tuple[Tensor, Tensor, Loss]:
    random = torch.Generator().manual_seed(9)
    users, items = torch.randn(60, 4, generator=random), torch.randn(40, 4, generator=random)
    pairs = torch.stack(
        [torch.randint(0, 60, (4000,), generator=random), torch.randint(0, 40, (4000,), generator=random)], 1
    )
    return pairs, (users[pairs[:, 0]] * items[pairs[:, 1]]).sum(1, keepdim=True) / 2, mse


def _friedman() -> tuple[Tensor, Tensor, Loss]:
    x, y = sklearn_datasets().make_friedman1(1500, random_state=10)
    return _standard(torch.tensor(x).float()), _standard(torch.tensor(y).float().unsqueeze(1)), mse


def _moons() -> tuple[Tensor, Tensor, Loss]:
    x, y = sklearn_datasets().make_moons(1500, noise=0.1, random_state=11)
    return _standard(torch.tensor(x).float()), torch.tensor(y), cross_entropy


def _curve() -> tuple[Tensor, Tensor, Loss]:
    random = torch.Generator().manual_seed(12)
    y = torch.rand(1500, 1, generator=random) * 2 - 1
    x = y + 0.3 * torch.sin(6 * y) + 0.05 * torch.randn(1500, 1, generator=random)
    return _standard(x), y.expand(-1, 9), mse


def _patches() -> tuple[Tensor, Tensor, Loss]:
    x, y = _digits()
    return x.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4), y, cross_entropy


def _made(name: str) -> Callable[[], tuple[Tensor, Tensor, Loss]]:
    make, loss, _, _ = DATA[name]
    return lambda: (*make(), {"mse": mse, "binary": binary, "cross_entropy": cross_entropy}[loss])


TASKS: dict[str, Callable[[], tuple[Tensor, Tensor, Loss]]] = {
    "digits": _digits_task,
    "images": _images,
    "rows": _rows,
    "reconstruct": _reconstruct,
    "wine": lambda: _table(sklearn_datasets().load_wine, cross_entropy),
    "cancer": lambda: _table(sklearn_datasets().load_breast_cancer, binary),
    "diabetes": lambda: _table(sklearn_datasets().load_diabetes, mse),
    "iris": lambda: _table(sklearn_datasets().load_iris, cross_entropy),
    "friedman": _friedman,
    "moons": _moons,
    "curve": _curve,
    "patches": _patches,
    "clusters": _clusters,
    "teacher": _teacher,
    "spirals": _spirals,
    "wave": _wave,
    "text": _text,
    "origin": _origin,
    "neighbors": _neighbors,
    "adding": _adding,
    "ratings": _ratings,
    **{name: _made(name) for name in DATA},
}
#: Features of an input, and outputs.
SIZES = {
    "digits": (64, 10),
    "images": (1, 10),
    "rows": (8, 10),
    "reconstruct": (64, 64),
    "wine": (13, 3),
    "cancer": (30, 1),
    "diabetes": (10, 1),
    "iris": (4, 3),
    "friedman": (10, 1),
    "moons": (2, 2),
    "curve": (1, 9),
    "patches": (4, 10),
    "clusters": (20, 10),
    "teacher": (16, 4),
    "spirals": (2, 3),
    "wave": (1, 1),
    "text": (SYMBOLS, SYMBOLS),
    "origin": (SYMBOLS, len(MODULES)),
    "neighbors": (SYMBOLS, SYMBOLS),
    "adding": (2, 1),
    "ratings": (60, 1),
    **{name: (inputs, outputs) for name, (_, _, inputs, outputs) in DATA.items()},
}


@functools.cache
def _data(name: str) -> tuple[Tensor, Tensor, Loss]:
    return TASKS[name]()


def make_task(recipe: Recipe, seed: int) -> Task:
    """The task of a recipe; the seed decides the order of the batches."""
    return Task(*_data(recipe.task), recipe, seed)
