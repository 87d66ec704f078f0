"""Parameter lists to measure: shapes of real models and the extremes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def gpt2_small() -> list[tuple[int, ...]]:
    """GPT-2 small: 148 tensors, 124 million elements (vocabulary 50257, width 768, 12 blocks)."""
    width, shapes = 768, [(50257, 768), (1024, 768)]
    for _ in range(12):
        shapes += [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
        shapes += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [*shapes, (width,), (width,)]


def decoder_291() -> list[tuple[int, ...]]:
    """The 291 tensors of a 32-block gated decoder (nine a block, three besides), at width 512."""
    width, hidden = 512, 1376
    block = [(width, width)] * 4 + [(hidden, width)] * 2 + [(width, hidden)] + [(width,)] * 2
    return [(32000, width), *block * 32, (width,), (32000, width)]


def lstm_language_model() -> list[tuple[int, ...]]:
    """The PyTorch word-language-model example's medium LSTM: 11 tensors, 20 million elements."""
    width = 650
    layer = [(4 * width, width), (4 * width, width), (4 * width,), (4 * width,)]
    return [(10000, width), *layer, *layer, (10000, width), (10000,)]


def small_mlp() -> list[tuple[int, ...]]:
    """784-64-64-10: six tensors."""
    return [(64, 784), (64,), (64, 64), (64,), (10, 64), (10,)]


@dataclass(frozen=True)
class Case:
    name: str
    shapes: Callable[[], list[tuple[int, ...]]]


CASES = (
    Case("MLP, 6 tensors, 55 k elements", small_mlp),
    Case("LSTM, 11 tensors, 20 M elements", lstm_language_model),
    Case("GPT-2 small, 148 tensors, 124 M elements", gpt2_small),
    Case("decoder, 291 tensors, 136 M elements", decoder_291),
    Case("2,000 tensors of 4,096", lambda: [(4096,)] * 2000),
    Case("10,000 tensors of 256", lambda: [(256,)] * 10000),
    Case("one tensor of 2^28", lambda: [(1 << 28,)]),
)


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int) -> list[nn.Parameter]:
    """Parameters with normal gradients; the parameters themselves take no memory of their own."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for shape in shapes:
        grad: Tensor = torch.randn(shape, generator=generator).to(dtype)
        p = nn.Parameter(torch.empty(1, dtype=dtype).expand(shape))
        p.grad = grad
        result.append(p)
    return result
