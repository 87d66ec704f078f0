"""Data of the fourth set only: photographs, signals, graphs, bags, sequences to recall, physical systems."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.diagnosis.sklearn_data import sklearn_datasets

__all__ = ["DATA", "adjacency"]

#: Nodes of the graph that "nodes" is about.
NODES = 400


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def _digits() -> tuple[Tensor, Tensor]:
    found = sklearn_datasets().load_digits()
    x = torch.tensor(found.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(found.target)


def _photo(size: int) -> Tensor:
    """[3, size, 1.5 size] of a photograph, of zero mean and unit deviation."""
    image = torch.tensor(sklearn_datasets().load_sample_image("flower.jpg")).permute(2, 0, 1).float()
    image = torch.nn.functional.interpolate(image[None], (size, size * 3 // 2), mode="area")[0]
    return (image - image.mean()) / image.std()


def photo() -> tuple[Tensor, Tensor]:
    """The color of a photograph at each position."""
    image = _photo(48)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 72), indexing="ij")
    return torch.stack([rows, columns], -1).view(-1, 2), image.permute(1, 2, 0).reshape(-1, 3)


def color_patches() -> tuple[Tensor, Tensor]:
    """Pieces of 8 × 8 pixels in color, to be reconstructed."""
    pieces = _photo(160).unfold(1, 8, 6).unfold(2, 8, 6).permute(1, 2, 0, 3, 4).reshape(-1, 3, 8, 8)
    return pieces, pieces


def swiss() -> tuple[Tensor, Tensor]:
    x, t = sklearn_datasets().make_swiss_roll(1500, noise=0.1, random_state=20)
    return _standard(torch.tensor(x).float()), _standard(torch.tensor(t).float())[:, None]


def signals() -> tuple[Tensor, Tensor]:
    """Sine, square or sawtooth waves of 48 samples, with noise."""
    random = _random(21)
    y = torch.randint(0, 3, (1500,), generator=random)
    phase = torch.rand(1500, 1, generator=random) + torch.linspace(0, 1, 48) * (
        1 + 3 * torch.rand(1500, 1, generator=random)
    )
    wave = torch.sin(2 * math.pi * phase)
    shapes = torch.stack([1.4 * wave, wave.sign(), 3.4 * (phase % 1 - 0.5)], 1)
    x = shapes[torch.arange(1500), y] + 0.2 * torch.randn(1500, 48, generator=random)
    return x[:, :, None], y


def series() -> tuple[Tensor, Tensor]:
    """The next value of a sum of two waves, at each of 24 positions."""
    random = _random(22)
    time = torch.arange(25) / 4
    rate, phase = 0.5 + 2 * torch.rand(2, 1500, 1, generator=random), torch.rand(2, 1500, 1, generator=random)
    x = torch.sin(rate * time + 6 * phase).sum(0)[:, :, None] + 0.05 * torch.randn(
        1500, 25, 1, generator=random
    )
    return x[:, :-1], x[:, 1:]


def heat() -> tuple[Tensor, Tensor]:
    """The temperature of a rod at 32 positions, and the temperature later."""
    random = _random(23)
    modes = torch.arange(1, 7)
    shapes = torch.sin(math.pi * modes[:, None] * torch.linspace(0, 1, 32))
    sizes = torch.randn(1500, 6, generator=random)
    return sizes @ shapes, (sizes * torch.exp(-0.08 * modes**2)) @ shapes


def pendulum() -> tuple[Tensor, Tensor]:
    """The motion of a pendulum from its angle and momentum."""
    x = (torch.rand(1500, 2, generator=_random(24)) - 0.5) * torch.tensor([6.0, 4.0])
    return x, torch.stack([x[:, 1], -2 * torch.sin(x[:, 0])], 1)


def nodes() -> tuple[Tensor, Tensor]:
    """Nodes of a graph by their number, and their classes."""
    return torch.arange(NODES), _digits()[1][:NODES]


def adjacency() -> tuple[Tensor, Tensor]:
    """Features of the nodes, [n, 64], and the normalized links of each with its six nearest, [n, n]."""
    x = _digits()[0][:NODES] + 0.7 * torch.randn(NODES, 64, generator=_random(25))
    near = torch.cdist(x, x).topk(7, largest=False).indices
    links = torch.zeros(NODES, NODES).scatter_(1, near, 1.0)
    links = ((links + links.T) > 0).float()
    root = links.sum(1).rsqrt()
    return x, root[:, None] * links * root


def bags() -> tuple[Tensor, Tensor]:
    """Six digits; is there a three among them?"""
    random = _random(26)
    x, y = _digits()
    threes, others = (y == 3).nonzero().squeeze(1), (y != 3).nonzero().squeeze(1)
    chosen = others[torch.randint(0, len(others), (1500, 6), generator=random)]
    has = torch.rand(1500, generator=random) < 0.5
    place = torch.randint(0, 6, (1500,), generator=random)
    some = threes[torch.randint(0, len(threes), (1500,), generator=random)]
    chosen[torch.arange(1500)[has], place[has]] = some[has]
    return x[chosen], has.float()


def counts() -> tuple[Tensor, Tensor]:
    """Events whose expected number depends on six values."""
    random = _random(27)
    x = torch.randn(1500, 6, generator=random)
    expected = (0.8 + 0.6 * x[:, 0] - 0.5 * x[:, 1] + 0.4 * torch.sin(2 * x[:, 2])).exp()
    return x, torch.poisson(expected, generator=random)[:, None]


def largest() -> tuple[Tensor, Tensor]:
    """Where is the largest of ten numbers?"""
    x = torch.randn(2000, 10, 1, generator=_random(28))
    return x, x.squeeze(2).argmax(1)


def recall() -> tuple[Tensor, Tensor]:
    """Three keys with a value each, then one of the keys, whose value is the target."""
    random = _random(29)
    keys = torch.rand(3000, 8, generator=random).argsort(1)[:, :3]
    values = torch.randint(0, 8, (3000, 3), generator=random)
    asked = torch.randint(0, 3, (3000, 1), generator=random)
    pairs = torch.stack([keys, 8 + values], 2).flatten(1)
    return torch.cat([pairs, keys.gather(1, asked)], 1), values.gather(1, asked).squeeze(1)


def pairs() -> tuple[Tensor, Tensor]:
    """Two digits side by side, seen column by column, and both their classes."""
    x, y = _digits()
    chosen = torch.randint(0, len(x), (1500, 2), generator=_random(30))
    wide = torch.cat([x[chosen[:, 0]].view(-1, 8, 8), x[chosen[:, 1]].view(-1, 8, 8)], 2)
    return wide.transpose(1, 2).contiguous(), y[chosen]


def bits() -> tuple[Tensor, Tensor]:
    """Digits in black and white, to be reconstructed."""
    x = (_digits()[0] > 0.2).float()
    return x, x


#: Maker, kind of loss, features of an input, outputs.
DATA: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], str, int, int]] = {
    "photo": (photo, "mse", 2, 3),
    "color_patches": (color_patches, "mse", 3, 3),
    "swiss": (swiss, "mse", 3, 1),
    "signals": (signals, "cross_entropy", 1, 3),
    "series": (series, "mse", 1, 1),
    "heat": (heat, "mse", 32, 32),
    "pendulum": (pendulum, "mse", 2, 2),
    "nodes": (nodes, "cross_entropy", 64, 10),
    "bags": (bags, "binary", 64, 1),
    "counts": (counts, "mse", 6, 1),
    "largest": (largest, "cross_entropy", 1, 10),
    "recall": (recall, "cross_entropy", 16, 8),
    "pairs": (pairs, "cross_entropy", 8, 11),
    "bits": (bits, "mse", 64, 64),
}
