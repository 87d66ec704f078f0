"""Data of the ninth set only: tables, mechanics, logic, images, signals and names of the standard library."""

from __future__ import annotations

import builtins
import importlib
import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.diagnosis.sklearn_data import sklearn_datasets

__all__ = ["NINTH_DATA"]

Data = tuple[Tensor, Tensor]
COUNT = 1500
PLACES = 24


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def _digits() -> Data:
    found = sklearn_datasets().load_digits()
    x = torch.tensor(found.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(found.target)


def _symbols(text: str) -> Tensor:
    return torch.tensor([min(max(ord(c) - 32, 0), 94) * 63 // 94 for c in text])


def alcohol() -> Data:
    """How much alcohol is in a wine, from its other twelve measurements."""
    x = _standard(torch.tensor(sklearn_datasets().load_wine().data, dtype=torch.float32))
    return x[:, 1:], x[:, :1]


def petals() -> Data:
    """The length and the width of an iris's petals, from those of its sepals and its species."""
    found = sklearn_datasets().load_iris()
    x = _standard(torch.tensor(found.data, dtype=torch.float32))
    species = torch.nn.functional.one_hot(torch.tensor(found.target), 3).float()
    return torch.cat([x[:, :2], species], 1), x[:, 2:]


def odd() -> Data:
    """Digits, and whether each is odd."""
    x, y = _digits()
    return x, (y % 2).float()


def turned() -> Data:
    """Digits, and the same a quarter turned."""
    x = _digits()[0]
    return x, x.view(-1, 8, 8).rot90(1, (1, 2)).flatten(1)


def blurred() -> Data:
    """Digits whose pixels are means over nine, and sharp ones."""
    x = _digits()[0]
    soft = torch.nn.functional.avg_pool2d(x.view(-1, 1, 8, 8), 3, 1, 1)
    return _standard(soft.flatten(1)), x


def checkers() -> Data:
    """Points of a board of three by three fields, and the color of their field."""
    x = 3 * torch.rand(COUNT, 2, generator=_random(900))
    return x - 1.5, x.floor().sum(1).long() % 2


def blobs() -> Data:
    x, y = sklearn_datasets().make_blobs(COUNT, 12, centers=6, cluster_std=4.0, random_state=901)
    return _standard(torch.tensor(x).float()), torch.tensor(y)


def collinear() -> Data:
    """Forty features that depend on six, and three linear functions of these with noise."""
    random = _random(902)
    hidden = torch.randn(COUNT, 6, generator=random)
    x = hidden @ torch.randn(6, 40, generator=random) + 0.3 * torch.randn(COUNT, 40, generator=random)
    y = hidden @ torch.randn(6, 3, generator=random) + 0.5 * torch.randn(COUNT, 3, generator=random)
    return _standard(x), _standard(y)


def kepler() -> Data:
    """The mean anomaly and the eccentricity of an orbit, and where on it the body is."""
    random = _random(903)
    mean, flat = 6.28 * torch.rand(COUNT, generator=random), 0.7 * torch.rand(COUNT, generator=random)
    at = mean.clone()
    for _ in range(20):
        at = at - (at - flat * at.sin() - mean) / (1 - flat * at.cos())
    x = torch.stack([mean.cos(), mean.sin(), 2 * flat], 1)
    return x, torch.stack([at.cos() - flat, (1 - flat.square()).sqrt() * at.sin()], 1)


def throws() -> Data:
    """Speed, angle and drag of a throw, and how far and how high it goes."""
    random = _random(904)
    x = torch.rand(COUNT, 3, generator=random)
    speed, angle, drag = 5 + 15 * x[:, 0], 0.3 + x[:, 1], 0.1 * x[:, 2]
    place = torch.zeros(COUNT, 2)
    motion = torch.stack([speed * angle.cos(), speed * angle.sin()], 1)
    high = torch.zeros(COUNT)
    for _ in range(100):
        flying = (place[:, 1:] >= 0).float()
        place = place + 0.04 * motion * flying
        size = motion.norm(dim=1, keepdim=True)
        motion = motion - 0.04 * (drag[:, None] * size * motion + torch.tensor([0.0, 9.8]))
        high = torch.maximum(high, place[:, 1])
    return _standard(x), _standard(torch.stack([place[:, 0], high], 1))


def arm() -> Data:
    """Three angles of an arm, and where its hand is."""
    angles = 2 * torch.rand(COUNT, 3, generator=_random(905)) - 1
    total = (1.5 * angles).cumsum(1)
    return angles * 1.7, torch.stack([total.cos().sum(1), total.sin().sum(1)], 1)


def logic() -> Data:
    """Twelve bits, and whether a formula of seven of them is true."""
    bit = torch.rand(COUNT, 12, generator=_random(906)) < 0.5
    true = (bit[:, 0] & bit[:, 1]) | (bit[:, 2] ^ bit[:, 3]) & (bit[:, 4] | ~bit[:, 5] | bit[:, 6])
    return 2.0 * bit - 1, true.float()


def overlapping() -> Data:
    """Four classes of ten features, of which six repeat others."""
    x, y = sklearn_datasets().make_classification(
        COUNT, 10, n_informative=4, n_redundant=6, n_classes=4, class_sep=1.4, random_state=907
    )
    return _standard(torch.tensor(x).float()), torch.tensor(y)


def crosses() -> Data:
    """Noisy images of 8 × 8 with a plus, a cross, a frame or a bar somewhere."""
    random = _random(908)
    shapes = torch.tensor(
        [
            [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0]],
            [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]],
            [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]],
            [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        ]
    )
    y = torch.randint(0, 4, (COUNT,), generator=random)
    at = torch.randint(0, 4, (COUNT, 2), generator=random).tolist()
    x = 0.5 * torch.randn(COUNT, 1, 8, 8, generator=random) - 0.5
    for image, label, (down, right) in zip(x, y.tolist(), at):
        image[0, down : down + 5, right : right + 5] += 2.0 * shapes[label]
    return x, y


def upside() -> Data:
    """Digits without those that look alike both ways, and whether each is upside down."""
    x, y = _digits()
    x = x[(y != 0) & (y != 8) & (y != 1)].view(-1, 1, 8, 8)
    wrong = torch.rand(len(x), generator=_random(909)) < 0.5
    return torch.where(wrong[:, None, None, None], x.flip(2, 3), x), wrong.long()


def greater() -> Data:
    """Two digits as two channels, and the greater one."""
    x, y = _digits()
    other = torch.randperm(len(y), generator=_random(910))
    return torch.stack([x.view(-1, 8, 8), x[other].view(-1, 8, 8)], 1), torch.maximum(y, y[other])


def columns() -> Data:
    """Digits column by column, from the right."""
    x, y = _digits()
    return x.view(-1, 8, 8).transpose(1, 2).flip(1), y


def manual() -> Data:
    """What Python says about its built-in functions and types, and the next character of each."""
    things = [getattr(builtins, name) for name in sorted(vars(builtins))]
    things += [getattr(kind, name) for kind in (str, list, dict, int) for name in sorted(vars(kind))]
    text = " ".join(" ".join((inspect.getdoc(thing) or "").split()) for thing in things)
    windows = _symbols(text[:60000]).unfold(0, PLACES + 1, 19)[:2500]
    return windows[:, :-1], windows[:, 1:]


def kinds() -> Data:
    """Names in modules of the standard library, and whether each is a class, a function or something else."""
    found: dict[str, int] = {}
    for module in ("os", "ast", "socket", "inspect", "unittest.mock", "email.message", "xml.dom.minidom"):
        for name, value in sorted(vars(importlib.import_module(module)).items()):
            found[name] = 0 if inspect.isclass(value) else 1 if inspect.isroutine(value) else 2
    rows = [_symbols(name.ljust(PLACES)[:PLACES]) for name in sorted(found)]
    return torch.stack(rows), torch.tensor([found[name] for name in sorted(found)])


def numerals() -> Data:
    """Roman numerals to 2000, and the logarithms of their values."""
    parts = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL")]
    parts += [(10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]
    rows, values = [], []
    for number in range(1, 2001):
        text, rest = "", number
        for value, sign in parts:
            text, rest = text + sign * (rest // value), rest % value
        rows.append(_symbols(text.rjust(16)))
        values.append(math.log(number))
    return torch.stack(rows), _standard(torch.tensor(values)[:, None])


def chirps() -> Data:
    """Forty samples of a wave that rises, falls or stays, with noise, and which of them."""
    random = _random(911)
    y = torch.randint(0, 3, (COUNT,), generator=random)
    t = torch.arange(40.0)
    slope = torch.tensor([0.012, -0.012, 0.0])[y][:, None]
    phase = 0.6 * t + slope * t * (t - 20) + 6.28 * torch.rand(COUNT, 1, generator=random)
    return (phase.sin() + 0.15 * torch.randn(COUNT, 40, generator=random))[..., None], y


def leaders() -> Data:
    """Three channels of noise, of which two repeat the third two steps later, and which is the first."""
    random = _random(912)
    y = torch.randint(0, 3, (COUNT,), generator=random)
    noise = torch.randn(COUNT, 22, generator=random)
    x = torch.stack([noise[:, :20]] * 3, 2)
    x[torch.arange(COUNT), :, y] = noise[:, 2:]
    return x + 0.1 * torch.randn(COUNT, 20, 3, generator=random), y


def maps() -> Data:
    """Twenty states of a map (Hénon's), of which the second coordinate is hidden, and the next one."""
    random = _random(913)
    x, y = 0.2 * torch.rand(2, COUNT, generator=random)
    seen = []
    for _ in range(41):
        x, y = 1 - 1.4 * x.square() + y, 0.3 * x
        seen.append(x)
    rows = torch.stack(seen[20:], 1)
    return rows[:, :-1, None], rows[:, -1:]


#: Maker, kind of loss, features of an input, outputs.
NINTH_DATA: dict[str, tuple[Callable[[], Data], str, int, int]] = {
    "alcohol": (alcohol, "mse", 12, 1),
    "petals": (petals, "mse", 5, 2),
    "odd": (odd, "binary", 64, 1),
    "turned": (turned, "mse", 64, 64),
    "blurred": (blurred, "mse", 64, 64),
    "checkers": (checkers, "cross_entropy", 2, 2),
    "blobs": (blobs, "cross_entropy", 12, 6),
    "collinear": (collinear, "mse", 40, 3),
    "kepler": (kepler, "mse", 3, 2),
    "throws": (throws, "mse", 3, 2),
    "arm": (arm, "mse", 3, 2),
    "logic": (logic, "binary", 12, 1),
    "overlapping": (overlapping, "cross_entropy", 10, 4),
    "crosses": (crosses, "cross_entropy", 1, 4),
    "upside": (upside, "cross_entropy", 1, 2),
    "greater": (greater, "cross_entropy", 2, 10),
    "columns": (columns, "cross_entropy", 8, 10),
    "manual": (manual, "cross_entropy", 64, 64),
    "kinds": (kinds, "cross_entropy", 64, 3),
    "numerals": (numerals, "mse", 64, 1),
    "chirps": (chirps, "cross_entropy", 1, 3),
    "leaders": (leaders, "cross_entropy", 3, 3),
    "maps": (maps, "mse", 1, 1),
}
