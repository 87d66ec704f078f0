"""Lists of gradients to time: the shapes of real models, and extremes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Shape = tuple[int, ...]


def gpt2_small() -> list[Shape]:
    """GPT-2 small: 148 tensors, 124 million elements (vocabulary 50257, width 768, 12 blocks)."""
    width = 768
    shapes: list[Shape] = [(50257, width), (1024, width)]
    for _ in range(12):
        shapes += [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
        shapes += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [*shapes, (width,), (width,)]


def decoder_291() -> list[Shape]:
    """The 291 tensors of a 32-block gated decoder (nine a block, three besides), at width 512."""
    width, hidden = 512, 1376
    block: list[Shape] = [(width, width)] * 4
    block += [(hidden, width)] * 2 + [(width, hidden), (width,), (width,)]
    return [(32000, width), *block * 32, (width,), (32000, width)]


def lstm_language_model() -> list[Shape]:
    """The PyTorch word-language-model example's medium LSTM: 11 tensors, 20 million elements."""
    width = 650
    layer: list[Shape] = [(4 * width, width), (4 * width, width), (4 * width,), (4 * width,)]
    return [(10000, width), *layer, *layer, (10000, width), (10000,)]


def small_mlp() -> list[Shape]:
    """784-64-64-10: six tensors."""
    return [(64, 784), (64,), (64, 64), (64,), (10, 64), (10,)]


@dataclass(frozen=True)
class Case:
    name: str
    shapes: Callable[[], list[Shape]]


#: Smallest first, since memory that was used and freed makes small tensors slower to read.
CASES = (
    Case("MLP, 6 tensors, 55 k elements", small_mlp),
    Case("8,000 tensors of 100", lambda: [(100,)] * 8000),
    Case("10,000 tensors of 256", lambda: [(256,)] * 10000),
    Case("2,000 tensors of 4,096", lambda: [(4096,)] * 2000),
    Case("LSTM, 11 tensors, 20 M elements", lstm_language_model),
    Case("GPT-2 small, 148 tensors, 124 M elements", gpt2_small),
    Case("decoder, 291 tensors, 136 M elements", decoder_291),
    Case("one tensor of 2^28", lambda: [(1 << 28,)]),
)
#: The cases of `gradkern bench` without --model.
QUICK_CASES = (CASES[0], CASES[3], CASES[4], CASES[5])
