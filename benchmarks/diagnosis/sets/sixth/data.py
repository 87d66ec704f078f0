"""Data of the sixth set only: bytecode and text of the standard library, photographs, tables and signals."""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from types import CodeType

import torch
from torch import Tensor

from benchmarks.diagnosis.sklearn_data import sklearn_datasets

__all__ = ["SIXTH_DATA"]

Data = tuple[Tensor, Tensor]
COUNT = 1500


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def _code_of(code: CodeType) -> Iterator[int]:
    yield from (instruction.opcode for instruction in dis.get_instructions(code))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_of(constant)


@functools.cache
def _source(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


def opcodes() -> Data:
    """Instructions of compiled modules, by how common they are, and the next one of each."""
    found = [op for m in ("tarfile", "zipfile", "locale") for op in _code_of(compile(_source(m), m, "exec"))]
    common = sorted(set(found), key=lambda op: (-found.count(op), op))
    number = {op: min(i, 63) for i, op in enumerate(common)}
    windows = torch.tensor([number[op] for op in found]).unfold(0, 25, 8)[:2500]
    return windows[:, :-1], windows[:, 1:]


def families() -> Data:
    """Twenty-four characters of source text, and which of five modules they are from."""
    rows, labels = [], []
    for label, module in enumerate(("gettext", "ftplib", "mailbox", "turtle", "pickletools")):
        text = [min(max(ord(c) - 32, 0), 94) * 63 // 94 for c in _source(module)[:12000]]
        windows = torch.tensor(text).unfold(0, 24, 20)
        rows.append(windows)
        labels.append(torch.full((len(windows),), label))
    return torch.cat(rows), torch.cat(labels)


def circles() -> Data:
    x, y = sklearn_datasets().make_circles(COUNT, noise=0.08, factor=0.5, random_state=70)
    return _standard(torch.tensor(x).float()), torch.tensor(y)


def mixture() -> Data:
    """Five classes of sixteen features, of which eight tell something."""
    x, y = sklearn_datasets().make_classification(
        COUNT, 16, n_informative=8, n_classes=5, class_sep=1.5, random_state=71
    )
    return _standard(torch.tensor(x).float()), torch.tensor(y)


def impedance() -> Data:
    """Friedman's second function: the impedance of a circuit of four parts."""
    x, y = sklearn_datasets().make_friedman2(COUNT, random_state=72)
    return _standard(torch.tensor(x).float()), _standard(torch.tensor(y).float()[:, None])


def phase() -> Data:
    """Friedman's third function: the phase of the same circuit."""
    x, y = sklearn_datasets().make_friedman3(COUNT, random_state=73)
    return _standard(torch.tensor(x).float()), _standard(torch.tensor(y).float()[:, None])


def hastie() -> Data:
    """Whether ten squares add up to more than their median."""
    x, y = sklearn_datasets().make_hastie_10_2(COUNT, random_state=74)
    return torch.tensor(x).float(), (torch.tensor(y) > 0).float()


def halves() -> Data:
    """The upper half of a digit and its lower one."""
    x = torch.tensor(sklearn_datasets().load_digits().data, dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    return x[:, :32], x[:, 32:]


def photos() -> Data:
    """Gray pieces of 8 × 8 pixels of two photographs, and which of the two they are from."""
    pieces = []
    for name in ("china.jpg", "flower.jpg"):
        gray = torch.tensor(sklearn_datasets().load_sample_image(name)).float().mean(2)[::2, ::2]
        found = gray.unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 1, 8, 8)
        pieces.append((found - gray.mean()) / gray.std())
    return torch.cat(pieces), torch.arange(2).repeat_interleave(len(pieces[0]))


def gratings() -> Data:
    """Stripes of four directions in images of 12 × 12, with noise."""
    random = _random(75)
    y = torch.randint(0, 4, (COUNT,), generator=random)
    angle = (y * math.pi / 4)[:, None, None] + 0.1 * torch.randn(COUNT, 1, 1, generator=random)
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    shift, rate = torch.rand(2, COUNT, 1, 1, generator=random)
    waves = torch.sin((0.9 + 0.6 * rate) * (rows * angle.cos() + columns * angle.sin()) + 6 * shift)
    return (1.4 * waves + 0.7 * torch.randn(COUNT, 12, 12, generator=random))[:, None], y


def lights() -> Data:
    """Images of 8 × 8 with up to six bright places, and how many there are."""
    random = _random(76)
    count = torch.randint(0, 7, (COUNT,), generator=random)
    rank = torch.rand(COUNT, 64, generator=random).argsort(1).argsort(1)
    x = 2.0 * (rank < count[:, None]) + 0.2 * torch.randn(COUNT, 64, generator=random)
    return x.view(-1, 1, 8, 8), _standard(count.float()[:, None])


def pulses() -> Data:
    """A noisy signal of 32 samples, and how many pulses are in it."""
    random = _random(78)
    y = torch.randint(0, 5, (COUNT,), generator=random)
    rank = torch.rand(COUNT, 32, generator=random).argsort(1).argsort(1)
    x = 1.5 * (rank < y[:, None]) + 0.15 * torch.randn(COUNT, 32, generator=random)
    return x[:, :, None], y


def forecast() -> Data:
    """Twenty states of a damped oscillator that is pushed at random, and its next state."""
    random = _random(79)
    state, path = torch.randn(COUNT, 2, generator=random), []
    for _ in range(21):
        push = 0.2 * torch.randn(COUNT, generator=random)
        place, speed = state.unbind(1)
        state = torch.stack([place + 0.5 * speed, 0.95 * speed - 0.4 * place + push], 1)
        path.append(state)
    rows = torch.stack(path, 1)
    return rows[:, :-1], _standard(rows[:, -1, :1])


def remembered() -> Data:
    """Two hundred steps of noise, and which of four marks came six steps before the end."""
    random = _random(80)
    y = torch.randint(0, 4, (600,), generator=random)
    x = 0.3 * torch.randn(600, 200, 4, generator=random)
    x[torch.arange(600), -6, y] += 8
    return x, y


def profiles() -> Data:
    """A user of 50, an item of 30 and three numbers; whether it was liked."""
    random = _random(81)
    user, item = (torch.randint(0, n, (COUNT * 2,), generator=random) for n in (50, 30))
    tastes, kinds = torch.randn(50, 3, generator=random), torch.randn(30, 3, generator=random)
    numbers = torch.randn(COUNT * 2, 3, generator=random)
    score = (tastes[user] * kinds[item]).sum(1) + numbers[:, 0] - numbers[:, 1] * numbers[:, 2]
    liked = torch.rand(COUNT * 2, generator=random) < torch.sigmoid(2 * score)
    return torch.cat([torch.stack([user, 50 + item], 1).float(), numbers], 1), liked.float()


def prices() -> Data:
    """What something costs: logarithms of eight features, added up and multiplied."""
    random = _random(82)
    x = torch.randn(COUNT, 8, generator=random)
    y = x[:, 0] + 0.5 * x[:, 1] * x[:, 2] + 0.3 * x[:, 3].exp() + 0.2 * torch.randn(COUNT, generator=random)
    return x, _standard(y[:, None])


def walk() -> Data:
    """Positions of a walk, for a policy of two actions and a value."""
    x = torch.linspace(-1, 1, 11)[:, None]
    return x, x.expand(-1, 3)


def places() -> Data:
    """Fields of a 5 × 5 board, for the values of four moves."""
    x = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)) / 2 - 1
    return x, torch.zeros(25, 4)


#: Maker, kind of loss, features of an input, outputs.
SIXTH_DATA: dict[str, tuple[Callable[[], Data], str, int, int]] = {
    "opcodes": (opcodes, "cross_entropy", 64, 64),
    "families": (families, "cross_entropy", 64, 5),
    "circles": (circles, "cross_entropy", 2, 2),
    "mixture": (mixture, "cross_entropy", 16, 5),
    "impedance": (impedance, "mse", 4, 1),
    "phase": (phase, "mse", 4, 1),
    "hastie": (hastie, "binary", 10, 1),
    "halves": (halves, "mse", 32, 32),
    "photos": (photos, "cross_entropy", 1, 2),
    "gratings": (gratings, "cross_entropy", 1, 4),
    "lights": (lights, "mse", 1, 1),
    "pulses": (pulses, "cross_entropy", 1, 5),
    "forecast": (forecast, "mse", 2, 1),
    "remembered": (remembered, "cross_entropy", 4, 4),
    "profiles": (profiles, "binary", 5, 1),
    "prices": (prices, "mse", 8, 1),
    "walk": (walk, "mse", 1, 3),
    "places": (places, "mse", 2, 4),
}
