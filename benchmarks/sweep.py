"""Lists of random lengths, sizes and dtypes: where clip_grad_norm_ is slower than torch's.

Every list is clipped and not clipped, on one thread and on two. A line's ratio is the median of five runs,
each of which gives torch's median time over gradkern's.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator
from typing import Any

import torch

from gradkern.bench.clip import GradientCopies, interleaved
from gradkern.bench.shapes import Shapes

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
RUNS = 5
GOAL = 0.95  #: the smallest acceptable ratio
# The most rounds of a run. Limits fall from call to call, and the gradients with them; after more rounds,
# float16 would lose them.
ROUNDS = 15


def random_shapes(random_: random.Random, dtype: torch.dtype) -> Shapes:
    """1 to 10,000 tensors of 1 KiB to 64 MiB together, of sizes that differ by a factor of up to 100."""
    elements = 2 ** random_.uniform(10, 26) / dtype.itemsize
    count = round(10 ** random_.uniform(0, min(4, math.log10(elements))))
    typical = elements / count
    return [((max(1, round(typical * 10 ** random_.uniform(-1, 1))),), dtype) for _ in range(count)]


def run(copies: GradientCopies) -> dict[str, float]:
    contenders = copies.contenders()
    pair = {name: contenders[name] for name in ("gradkern", "torch")}
    times = interleaved(pair, copies.count, 0.3, most_rounds=ROUNDS)
    return {name: t.median for name, t in times.items()}


def measure(shapes: Shapes) -> Iterator[dict[str, Any]]:
    """The lines of a list."""
    for clipping in (False, True):
        copies = GradientCopies(shapes, clipping)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs = [run(copies) for _ in range(RUNS)]
            yield {
                "tensors": len(shapes),
                "elements": sum(math.prod(shape) for shape, _ in shapes),
                "dtype": str(shapes[0][1]).removeprefix("torch."),
                "clipping": clipping,
                "threads": threads,
                "runs": runs,
                "ratio": statistics.median(one["torch"] / one["gradkern"] for one in runs),
            }


def sweep(shapes: int, seed: int) -> Iterator[dict[str, Any]]:
    """The lines, as they are measured."""
    random_ = random.Random(seed)
    for shape in range(shapes):
        yield from measure(random_shapes(random_, DTYPES[shape % len(DTYPES)]))


def line(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    times = [statistics.median(run[name] for run in row["runs"]) for name in ("gradkern", "torch")]
    return (
        f"{row['tensors']:6} tensors {row['elements']:10} elements {row['dtype']:11}"
        f"{'clips' if row['clipping'] else '':6}{row['threads']} threads"
        + "".join(f"{t * 1e6:11.1f}us" for t in times)
        + f"{row['ratio']:8.2f}x{' ' if row['ratio'] >= GOAL else '!'}"
    )
