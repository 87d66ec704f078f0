"""Data of the seventh set only: prose and names of the standard library, photographs, tables and signals."""

from __future__ import annotations

import functools
import html.entities
import importlib
import inspect
import math
import unicodedata
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.diagnosis.sklearn_data import sklearn_datasets

__all__ = ["SEVENTH_DATA"]

Data = tuple[Tensor, Tensor]
COUNT = 1500
PLACES = 24


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def _symbols(text: str) -> Tensor:
    return torch.tensor([min(max(ord(c) - 32, 0), 94) * 63 // 94 for c in text])


@functools.cache
def _prose() -> Tensor:
    topics = importlib.import_module("pydoc_data.topics").topics
    return _symbols(" ".join(" ".join(str(topics[key]).split()) for key in sorted(topics))[:60000])


def english() -> Data:
    """Prose of Python's help, and the next character of each."""
    windows = _prose().unfold(0, PLACES + 1, 20)[:2500]
    return windows[:, :-1], windows[:, 1:]


def writing() -> Data:
    """Twenty-four characters of prose, of code or of the names of characters, and which of them it is."""
    code = _symbols(inspect.getsource(importlib.import_module("decimal"))[:500])
    code = torch.cat([code, _symbols(inspect.getsource(importlib.import_module("ast"))[:14000])])
    names = " ".join(unicodedata.name(chr(i), "") for i in range(0x370, 0x600)).lower()
    texts = [t.unfold(0, PLACES, 18)[:700] for t in (_prose(), code, _symbols(names))]
    return torch.cat(texts), torch.cat([torch.full((len(t),), i) for i, t in enumerate(texts)])


def entities() -> Data:
    """Names of HTML's characters, and what kind of character each stands for."""
    kinds = ["Sm", "So", "L", "P"]
    rows, labels = [], []
    for name, value in sorted(html.entities.html5.items()):
        category = unicodedata.category(value[0])
        rows.append(_symbols(name.rstrip(";").ljust(PLACES)[:PLACES]))
        labels.append(next((i for i, kind in enumerate(kinds) if category.startswith(kind)), len(kinds)))
    return torch.stack(rows), torch.tensor(labels)


def sessions() -> Data:
    """Twenty-four items that somebody looked at, and the next one: one of three that often follow."""
    random = _random(700)
    follow = torch.randint(0, 64, (64, 3), generator=random)
    item, seen = torch.randint(0, 64, (COUNT,), generator=random), []
    for _ in range(PLACES + 1):
        seen.append(item)
        likely = follow[item, torch.randint(0, 3, (COUNT,), generator=random)]
        stray = torch.rand(COUNT, generator=random) < 0.1
        item = torch.where(stray, torch.randint(0, 64, (COUNT,), generator=random), likely)
    return torch.stack(seen[:-1], 1), seen[-1]


def triples() -> Data:
    """A subject of 40, a relation of 5 and an object of 40; whether the statement is true."""
    random = _random(701)
    x = torch.stack([torch.randint(0, n, (4000,), generator=random) for n in (40, 5, 40)], 1)
    things, relations = torch.randn(40, 4, generator=random), torch.randn(5, 4, generator=random)
    score = (things[x[:, 0]] * relations[x[:, 1]] * things[x[:, 2]]).sum(1)
    return x, (score > 0).float()


def together() -> Data:
    """Pairs of characters of prose, and the logarithm of how often they are within four places."""
    text = _prose().tolist()
    counts = Counter((a, b) for gap in range(1, 5) for a, b in zip(text, text[gap:]))
    pairs = [(a, b) for (a, b), n in sorted(counts.items()) if n > 1]
    y = torch.tensor([math.log(counts[pair]) for pair in pairs])
    return torch.tensor(pairs), y[:, None]


def tree_distances() -> Data:
    """Two nodes of a binary tree of 63, and how many edges are between them."""
    random = _random(702)
    x = torch.randint(1, 64, (3000, 2), generator=random)
    far = []
    for a, b in x.tolist():
        steps = 0
        while a != b:
            a, b, steps = (a // 2, b, steps + 1) if a > b else (a, b // 2, steps + 1)
        far.append(float(steps))
    return x, torch.tensor(far)[:, None] / 4


def at_least_five() -> Data:
    """Digits, and whether each is five or more."""
    found = sklearn_datasets().load_digits()
    x = torch.tensor(found.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), (torch.tensor(found.target) >= 5).float()


def shells() -> Data:
    """Three features, and which of three shells around the center a point is in."""
    x, y = sklearn_datasets().make_gaussian_quantiles(
        n_samples=COUNT, n_features=3, n_classes=3, random_state=703
    )
    return torch.tensor(x).float(), torch.tensor(y)


def tags() -> Data:
    """Counts of twenty words, and which of six tags a text has."""
    x, y = sklearn_datasets().make_multilabel_classification(COUNT, 20, n_classes=6, random_state=704)
    return _standard(torch.tensor(x).float()), torch.tensor(y).float()


def regression() -> Data:
    """A linear function of eight of twenty-five features, with noise."""
    x, y = sklearn_datasets().make_regression(COUNT, 25, n_informative=8, noise=20.0, random_state=705)
    return _standard(torch.tensor(x).float()), _standard(torch.tensor(y).float()[:, None])


def ribbon() -> Data:
    """Points of a ribbon in space, and where along it each is."""
    x, t = sklearn_datasets().make_s_curve(COUNT, noise=0.1, random_state=706)
    return _standard(torch.tensor(x).float()), _standard(torch.tensor(t).float()[:, None])


def wine_colors() -> Data:
    """How strong the color of a wine is, from its other twelve measurements."""
    x = _standard(torch.tensor(sklearn_datasets().load_wine().data, dtype=torch.float32))
    return torch.cat([x[:, :9], x[:, 10:]], 1), x[:, 9:10]


def tumors() -> Data:
    """The logarithm of the largest area of a tumor, from the means of ten measurements."""
    x = torch.tensor(sklearn_datasets().load_breast_cancer().data, dtype=torch.float32)
    return _standard(x[:, :10]), _standard(x[:, 23:24].log())


def flower() -> Data:
    """Places in a photograph of a flower, and their colors."""
    image = torch.tensor(sklearn_datasets().load_sample_image("flower.jpg")).float()[::10, ::10] / 255
    rows, columns = image.shape[:2]
    at = torch.cartesian_prod(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns))
    return at, image.reshape(-1, 3) - image.mean()


def colored() -> Data:
    """Colored pieces of 8 × 8 pixels of two photographs, and which half of which one they are from."""
    pieces = []
    for name in ("china.jpg", "flower.jpg"):
        image = torch.tensor(sklearn_datasets().load_sample_image(name)).float()[::2, ::2].permute(2, 0, 1)
        found = image.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(-1, 3, 8, 8)
        pieces += list(((found - image.mean()) / image.std()).chunk(2))
    return torch.cat(pieces), torch.cat([torch.full((len(p),), i) for i, p in enumerate(pieces)])


def mended() -> Data:
    """Digits without their middle, and whole ones."""
    x = torch.tensor(sklearn_datasets().load_digits().data, dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    holes = x.view(-1, 1, 8, 8).clone()
    holes[:, :, 2:6, 2:6] = 0
    return holes, x


def disks() -> Data:
    """Noisy images of 10 × 10 with one disk, and where it is and how large."""
    random = _random(708)
    place = torch.rand(COUNT, 3, generator=random)
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    down, right, size = (*(2 + 6 * place[:, :2, None, None]).unbind(1), 1 + 2 * place[:, 2, None, None])
    inside = ((rows - down) ** 2 + (columns - right) ** 2).sqrt() < size
    x = 2.0 * inside - 0.5 + 0.3 * torch.randn(COUNT, 10, 10, generator=random)
    return x[:, None], _standard(place)


def tides() -> Data:
    """Thirty values of two waves of random phases, with noise, and the next one."""
    random = _random(709)
    phase = 6.3 * torch.rand(2, COUNT, 1, generator=random)
    t = torch.arange(31.0)
    x = torch.sin(0.5 * t + phase[0]) + 0.6 * torch.sin(0.23 * t + phase[1])
    x = x + 0.1 * torch.randn(COUNT, 31, generator=random)
    return x[:, :-1, None], x[:, -1:]


def beats() -> Data:
    """Forty-eight values of a pulse that is steady, fast or skips, and which of them."""
    random = _random(710)
    y = torch.randint(0, 3, (COUNT,), generator=random)
    start = torch.randint(0, 5, (COUNT, 1), generator=random)
    period = torch.where(y == 1, 5, 8)[:, None]
    at = torch.arange(48)[None] + start
    skipped = (y == 2)[:, None] & (at // 8 % 3 == 1)
    x = (at % period == 0).float() * (~skipped) * 1.5 - 0.3 * (at % period == 1).float()
    return (x + 0.15 * torch.randn(COUNT, 48, generator=random))[..., None], y


def _drift(length: int, seed: int, count: int) -> Data:
    random = _random(seed)
    y = torch.randint(0, 4, (count,), generator=random)
    angle = y * math.pi / 2
    steps = 0.4 * torch.stack([angle.cos(), angle.sin()], 1)[:, None]
    return steps + 0.6 * torch.randn(count, length, 2, generator=random), y


def rays() -> Data:
    """Rays through a plane with three soft disks, and the color each sees."""
    random = _random(711)
    angle, shift = 6.28 * torch.rand(COUNT, generator=random), torch.rand(COUNT, generator=random) * 1.6 - 0.8
    along = torch.stack([angle.cos(), angle.sin()], 1)
    start = torch.stack([-angle.sin(), angle.cos()], 1) * shift[:, None] - 1.5 * along
    centers = torch.tensor([[0.5, 0.2], [-0.4, 0.5], [-0.1, -0.6]])
    points = start[:, None] + torch.linspace(0, 3, 40)[None, :, None] * along[:, None]
    density = torch.relu(0.4 - torch.cdist(points, centers[None].expand(COUNT, -1, -1))) * 20
    seen = 1 - torch.exp(-density.sum(2) * 3 / 40)
    left = torch.cumprod(torch.cat([torch.ones(COUNT, 1), 1 - seen[:, :-1]], 1), 1)
    share = density / density.sum(2, keepdim=True).clamp_min(1e-6)
    return torch.cat([start, along], 1), ((left * seen)[..., None] * share).sum(1)


def cart() -> Data:
    """Places, speeds and angles, for a policy of two actions and a value."""
    x = torch.linspace(-1, 1, 11)[:, None].expand(-1, 4)
    return x, x[:, :3]


#: Maker, kind of loss, features of an input, outputs.
SEVENTH_DATA: dict[str, tuple[Callable[[], Data], str, int, int]] = {
    "english": (english, "cross_entropy", 64, 64),
    "writing": (writing, "cross_entropy", 64, 3),
    "entities": (entities, "cross_entropy", 64, 5),
    "sessions": (sessions, "cross_entropy", 64, 64),
    "triples": (triples, "binary", 40, 1),
    "together": (together, "mse", 64, 1),
    "tree_distances": (tree_distances, "mse", 64, 1),
    "at_least_five": (at_least_five, "binary", 64, 1),
    "shells": (shells, "cross_entropy", 3, 3),
    "tags": (tags, "binary", 20, 6),
    "regression": (regression, "mse", 25, 1),
    "ribbon": (ribbon, "mse", 3, 1),
    "wine_colors": (wine_colors, "mse", 12, 1),
    "tumors": (tumors, "mse", 10, 1),
    "flower": (flower, "mse", 2, 3),
    "colored": (colored, "cross_entropy", 3, 4),
    "mended": (mended, "mse", 1, 64),
    "disks": (disks, "mse", 1, 3),
    "tides": (tides, "mse", 1, 1),
    "beats": (beats, "cross_entropy", 1, 3),
    "drift": (lambda: _drift(40, 712, COUNT), "cross_entropy", 2, 4),
    "long_drift": (lambda: _drift(250, 713, 500), "cross_entropy", 2, 4),
    "rays": (rays, "mse", 4, 3),
    "cart": (cart, "mse", 4, 3),
}
