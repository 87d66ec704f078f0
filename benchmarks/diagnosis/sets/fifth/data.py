"""Data of the fifth set only: names, tokens and colors of the standard library, and synthetic worlds."""

from __future__ import annotations

import colorsys
import functools
import importlib
import inspect
import io
import math
import token
import tokenize
import unicodedata
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.diagnosis.sklearn_data import sklearn_datasets

__all__ = ["FIFTH_DATA"]

Data = tuple[Tensor, Tensor]
COUNT = 1500


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def names() -> Data:
    """Names of Unicode characters as hashed trigrams, and their category."""
    kinds = ("Lu", "Ll", "Lo", "So", "Sm", "Mn")
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for code in range(0x21, 0x3000):
        kind, name = unicodedata.category(chr(code)), unicodedata.name(chr(code), "")
        if kind in found and len(name) > 12 and len(found[kind]) < 250:
            found[kind].append(name)
    rows, labels = [], []
    for label, kind in enumerate(kinds):
        for name in found[kind]:
            grams = [zlib.crc32(name[i : i + 3].encode()) % 256 for i in range(len(name) - 2)]
            rows.append((grams * 16)[:16])
            labels.append(label)
    return torch.tensor(rows), torch.tensor(labels)


@functools.cache
def _source(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))[:16000]


def tokens() -> Data:
    """Characters of source text, and what each is part of: space, name, number, operator, string, comment."""
    classes = {token.NAME: 1, token.NUMBER: 2, token.OP: 3, token.STRING: 4, tokenize.COMMENT: 5}
    pieces = []
    for module in ("bisect", "calendar", "colorsys", "fractions"):
        lines = _source(module).splitlines(keepends=True)[:-1]
        kinds = [[0] * len(line) for line in lines]
        try:
            for found in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
                (row, start), (last, end) = found.start, found.end
                for r in range(row, min(last, len(lines)) + 1):
                    a, b = start if r == row else 0, end if r == last else len(lines[r - 1])
                    kinds[r - 1][a:b] = [classes.get(found.type, 0)] * (b - a)
        except tokenize.TokenError:  # the text ends within a bracket
            pass
        text = torch.tensor([min(max(ord(c) - 32, 0), 95) * 63 // 95 for line in lines for c in line])
        kind = torch.tensor([k for line in kinds for k in line])
        pieces.append(torch.stack([text.unfold(0, 24, 12), kind.unfold(0, 24, 12)], 1))
    both = torch.cat(pieces)
    return both[:, 0], both[:, 1]


def contexts() -> Data:
    """Pairs of words, at most two apart in source text; the second has to be told from random ones."""
    words = [w for m in ("statistics", "calendar", "ast") for w in _source(m).split() if w.isidentifier()]
    common = sorted(set(words), key=lambda w: (-words.count(w), w))[:200]
    number = {w: i for i, w in enumerate(common)}
    ids = [number[w] for w in words if w in number]
    x = torch.tensor([[ids[i], ids[i + d]] for i in range(len(ids) - 2) for d in (1, 2)])
    return x, x[:, 1]


def colors() -> Data:
    """Red, green and blue from hue, lightness and saturation."""
    x = torch.rand(COUNT, 3, generator=_random(40))
    return _standard(x), _standard(torch.tensor([colorsys.hls_to_rgb(*row) for row in x.tolist()]))


def expressions() -> Data:
    """Four numbers and three operations of a tree, and its value."""
    random = _random(41)
    leaves = torch.randint(0, 10, (COUNT, 4), generator=random)
    ops = torch.randint(0, 3, (COUNT, 3), generator=random)

    def apply(op: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(op == 0, a + b, torch.where(op == 1, a - b, torch.maximum(a, b)))

    left, right = apply(ops[:, 0], *leaves[:, :2].unbind(1)), apply(ops[:, 1], *leaves[:, 2:].unbind(1))
    value = apply(ops[:, 2], left, right).float()
    return torch.cat([leaves, 10 + ops], 1), _standard(value[:, None])


def clock() -> Data:
    """An hour of 24, a relation of 7, and the hour that it leads to."""
    random = _random(42)
    hour, relation = (torch.randint(0, n, (COUNT,), generator=random) for n in (24, 7))
    return torch.stack([hour, relation], 1), (hour + 3 * relation) % 24


def visits() -> Data:
    """Four categories and three numbers; whether someone buys."""
    random = _random(43)
    kinds = torch.randint(0, 12, (COUNT, 4), generator=random)
    numbers = torch.randn(COUNT, 3, generator=random)
    effect = torch.randn(4, 12, generator=random)
    score = effect[torch.arange(4), kinds].sum(1) + numbers[:, 0] * effect[0, kinds[:, 1]]
    bought = torch.rand(COUNT, generator=random) < torch.sigmoid(2 * score)
    return torch.cat([kinds.float(), numbers], 1), bought.float()


def graphs() -> Data:
    """Links of eight nodes, [8, 8], and how many triangles there are."""
    random = _random(44)
    share = 0.2 + 0.5 * torch.rand(COUNT, 1, 1, generator=random)
    links = (torch.rand(COUNT, 8, 8, generator=random) < share).float().triu(1)
    links = links + links.transpose(1, 2)
    triangles = torch.einsum("bij,bjk,bki->b", links, links, links) / 6
    return links, _standard(triangles[:, None].log1p())


def points() -> Data:
    """24 points of a sphere, a cube's faces, a ring or a plane, turned at random."""
    random = _random(45)
    y = torch.randint(0, 4, (COUNT,), generator=random)
    p = torch.randn(COUNT, 24, 3, generator=random)
    sphere = p / p.norm(dim=2, keepdim=True)
    cube = 0.8 * p / p.abs().amax(2, keepdim=True)
    flat = torch.cat([p[..., :2], torch.zeros(COUNT, 24, 1)], 2)
    ring = flat / flat.norm(dim=2, keepdim=True)
    shapes = torch.stack([sphere, cube, ring, 0.7 * flat], 1)[torch.arange(COUNT), y]
    turns = torch.linalg.qr(torch.randn(COUNT, 3, 3, generator=random)).Q
    return shapes @ turns + 0.03 * torch.randn(COUNT, 24, 3, generator=random), y


def hazards() -> Data:
    """Six values, when something happens, and whether it was seen."""
    random = _random(46)
    x = torch.randn(COUNT, 6, generator=random)
    rate = (0.8 * x[:, 0] - 0.6 * x[:, 1] * x[:, 2]).exp()
    time = -torch.rand(COUNT, generator=random).clamp_min(1e-4).log() / rate
    until = 2 * torch.rand(COUNT, generator=random) + 0.3
    return x, torch.stack([torch.minimum(time, until), (time < until).float()], 1)


def grades() -> Data:
    """scikit-learn's diabetes, its target in five levels."""
    found = sklearn_datasets().load_diabetes()
    y = torch.tensor(found.target)
    edges = torch.quantile(y, torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=y.dtype))
    return _standard(torch.tensor(found.data).float()), torch.bucketize(y, edges)


def lorenz() -> Data:
    """Sixteen states of the Lorenz system, and the next state of each."""
    state = torch.randn(200, 3, generator=_random(47)) * 8 + torch.tensor([0.0, 0.0, 25.0])
    path = []
    for _ in range(500):
        x, y, z = state.unbind(1)
        state = state + 0.01 * torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 * z / 3], 1)
        path.append(state)
    rows = torch.stack(path[100::4], 1)[:, :51].unfold(1, 17, 17).permute(0, 1, 3, 2).reshape(-1, 17, 3)
    rows = (rows - rows.mean((0, 1))) / rows.std((0, 1))
    return rows[:, :-1], rows[:, 1:]


def functions() -> Data:
    """Sixteen positions and values of a random smooth function each."""
    random = _random(48)
    place = 4 * torch.rand(COUNT, 16, 1, generator=random) - 2
    rate, phase, size = torch.rand(3, COUNT, 1, 1, generator=random)
    value = (0.5 + size) * torch.sin((1 + rate) * place + 6 * phase)
    return torch.cat([place, value], 2), value


def unsorted() -> Data:
    """Six numbers, and the same in order."""
    x = torch.randn(COUNT, 6, generator=_random(49))
    return x, x.sort(1).values


def shapes() -> Data:
    """A noisy image of 12 × 12 with a bright rectangle, and where it is."""
    random = _random(50)
    low = torch.randint(0, 7, (COUNT, 2), generator=random)
    high = low + torch.randint(3, 6, (COUNT, 2), generator=random)
    at = torch.arange(12)
    inside = (at >= low[..., None]) & (at < high[..., None])
    mask = (inside[:, 0, :, None] & inside[:, 1, None, :]).float()[:, None]
    return mask + 0.6 * torch.randn(COUNT, 1, 12, 12, generator=random), mask


def codes() -> Data:
    """Sums of three atoms of a dictionary of 32, and how much of each."""
    random = _random(51)
    atoms = torch.nn.functional.normalize(torch.randn(32, 16, generator=random), dim=1)
    chosen = torch.rand(COUNT, 32, generator=random).argsort(1) < 3
    y = torch.where(chosen, 1 + torch.rand(COUNT, 32, generator=random), torch.zeros(()))
    return y @ atoms, y


def chains() -> Data:
    """Twenty symbols of a hidden Markov chain of four states."""
    random = _random(52)
    emit = torch.softmax(3 * torch.randn(4, 8, generator=random), 1)
    state, seen = torch.randint(0, 4, (COUNT,), generator=random), []
    for _ in range(20):
        seen.append(torch.multinomial(emit[state], 1, generator=random).squeeze(1))
        state = torch.where(torch.rand(COUNT, generator=random) < 0.85, state, (state + 1) % 4)
    x = torch.stack(seen, 1)
    return x, x


def brackets() -> Data:
    """Twenty brackets of two kinds, and the next one after each; half of them are random."""
    random = _random(53)
    rows = []
    for _ in range(COUNT):
        row: list[int] = []
        stack: list[int] = []
        kinds = torch.randint(0, 2, (21,), generator=random).tolist()
        for draw, kind in zip(torch.rand(21, generator=random).tolist(), kinds):
            if stack and draw < 0.55:
                row.append(2 + stack.pop())
            else:
                stack.append(kind)
                row.append(kind)
        rows.append(row)
    x = torch.tensor(rows)
    return x[:, :-1], x[:, 1:]


def majority() -> Data:
    """Nine symbols; which of six is there most often?"""
    random = _random(54)
    y = torch.randint(0, 6, (COUNT,), generator=random)
    x = torch.randint(0, 6, (COUNT, 9), generator=random)
    return torch.where(torch.rand(COUNT, 9, generator=random) < 0.45, y[:, None], x), y


def arithmetic() -> Data:
    """Two positive numbers, and their product and quotient."""
    x = 0.5 + 2 * torch.rand(COUNT, 2, generator=_random(55))
    return x, torch.stack([x[:, 0] * x[:, 1], x[:, 0] / x[:, 1]], 1)


def sensors() -> Data:
    """Noisy positions along 16 steps of a smooth path, and the true ones."""
    random = _random(56)
    speed = torch.randn(COUNT, 1, 2, generator=random) + 0.3 * torch.randn(COUNT, 16, 2, generator=random)
    path = speed.cumsum(1) / 4
    return path + 0.6 * torch.randn(COUNT, 16, 2, generator=random), path


def directions() -> Data:
    """Four mixed signals of an angle, and the angle."""
    random = _random(57)
    angle = 2 * math.pi * torch.rand(COUNT, 1, generator=random) - math.pi
    waves = torch.cat([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], 1)
    return waves @ torch.randn(4, 4, generator=random) + 0.1 * torch.randn(COUNT, 4, generator=random), angle


def rings() -> Data:
    """Three classes of four features, one around the other."""
    x, y = sklearn_datasets().make_gaussian_quantiles(
        n_samples=COUNT, n_features=4, n_classes=3, random_state=58
    )
    return torch.tensor(x).float(), torch.tensor(y)


def bodies() -> Data:
    """scikit-learn's linnerud: twenty persons, three exercises and three measures."""
    found = sklearn_datasets().load_linnerud()
    return _standard(torch.tensor(found.data).float()), _standard(torch.tensor(found.target).float())


def china() -> Data:
    """Pieces of 6 × 6 gray pixels of another photograph, and the brightness of the pixel in the middle."""
    gray = torch.tensor(sklearn_datasets().load_sample_image("china.jpg")).float().mean(2)[::4, ::4]
    pieces = gray.unfold(0, 5, 3).unfold(1, 5, 3).reshape(-1, 25)
    pieces = (pieces - pieces.mean()) / pieces.std()
    around = torch.arange(25) != 12
    return pieces[:, around], pieces[:, 12:13]


#: Maker, kind of loss, features of an input, outputs.
FIFTH_DATA: dict[str, tuple[Callable[[], Data], str, int, int]] = {
    "names": (names, "cross_entropy", 256, 6),
    "tokens": (tokens, "cross_entropy", 64, 6),
    "contexts": (contexts, "cross_entropy", 200, 200),
    "colors": (colors, "mse", 3, 3),
    "expressions": (expressions, "mse", 13, 1),
    "clock": (clock, "cross_entropy", 24, 24),
    "visits": (visits, "binary", 7, 1),
    "graphs": (graphs, "mse", 8, 1),
    "points": (points, "cross_entropy", 3, 4),
    "hazards": (hazards, "mse", 6, 1),
    "grades": (grades, "cross_entropy", 10, 5),
    "lorenz": (lorenz, "mse", 3, 3),
    "functions": (functions, "mse", 2, 1),
    "unsorted": (unsorted, "mse", 6, 6),
    "shapes": (shapes, "mse", 1, 1),
    "codes": (codes, "mse", 16, 32),
    "chains": (chains, "cross_entropy", 8, 8),
    "brackets": (brackets, "cross_entropy", 4, 4),
    "majority": (majority, "cross_entropy", 6, 6),
    "arithmetic": (arithmetic, "mse", 2, 2),
    "sensors": (sensors, "mse", 2, 2),
    "directions": (directions, "mse", 4, 2),
    "rings": (rings, "cross_entropy", 4, 3),
    "bodies": (bodies, "mse", 3, 3),
    "china": (china, "mse", 24, 1),
}
