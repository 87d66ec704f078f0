"""Time clipping by gradkern and by torch on the same gradients."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradkern.bench.shapes import Shapes
from gradkern.clipping.functional import clip_grad_norm_, get_total_norm
from gradkern.clipping.measure import measure

ROTATED_BYTES = 128 << 20  # of all copies together; there are 2 to 16, or to 4 on a GPU
LEAST_ROUNDS = 5

Contenders = dict[str, Callable[[int], object]]


class GradientCopies:
    """Copies of a model's gradients, normally distributed, and a limit that is never or always exceeded.

    Args:
        shapes: shape and dtype of every gradient.
        device: of the gradients.
        clipping: whether every call clips. The limit then falls by 1e-4 from call to call, so that it is
            always below the norm. With 16-bit types it falls by 1e-2, because torch rounds the norm and the
            coefficient to the type, so that clipped gradients can be too small by 4e-3.
    """

    def __init__(self, shapes: Shapes, clipping: bool, device: str | torch.device = "cpu") -> None:
        self.bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
        # On a GPU, the tables of eight lists stay on the device (csrc/cuda/tensor_table.cu).
        most = 16 if torch.device(device).type == "cpu" else 4
        self.count = max(2, min(most, 1 + ROTATED_BYTES // max(1, self.bytes)))
        self.lists = [_parameters(shapes, device, seed) for seed in range(self.count)]
        start = min(float(get_total_norm(self.grads(i))) for i in range(self.count))
        #: What the next call is given as max_norm.
        step = 1e-2 if any(dtype.itemsize == 2 for _, dtype in shapes) else 1e-4
        self.limits = falling(0.5 * start, step) if clipping else itertools.repeat(1e9)

    def grads(self, copy: int) -> list[Tensor]:
        """The gradients of one copy."""
        return [p.grad for p in self.lists[copy] if p.grad is not None]

    def contenders(self) -> Contenders:
        """The contenders: functions of a copy's number."""
        clip, lists, limits = torch.nn.utils.clip_grad_norm_, self.lists, self.limits
        return {
            "gradkern": lambda i: clip_grad_norm_(lists[i], next(limits)),
            "measure": lambda i: measure(lists[i]),
            "torch": lambda i: clip(lists[i], next(limits)),
            "torch_single": lambda i: clip(lists[i], next(limits), foreach=False),
        }


def falling(limit: float, step: float = 1e-4) -> Iterator[float]:
    """Limits that the norm of every call slightly exceeds."""
    while True:
        yield limit
        limit *= 1 - step


def _parameters(shapes: Shapes, device: str | torch.device, seed: int) -> list[nn.Parameter]:
    """Parameters with gradients; the parameters themselves take no memory."""
    generator = torch.Generator(device).manual_seed(seed)
    params = []
    for shape, dtype in shapes:
        param = nn.Parameter(torch.empty((), dtype=dtype, device=device).expand(shape))
        param.grad = torch.randn(shape, generator=generator, device=device).to(dtype)
        params.append(param)
    return params


@dataclass(frozen=True)
class Times:
    """The seconds of each call of one contender."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> list[float]:
        return statistics.quantiles(self.seconds, n=4)


def interleaved(
    contenders: Contenders,
    copies: int,
    seconds: float,
    wait: Callable[[], object] = lambda: None,
    most_rounds: float = math.inf,
) -> dict[str, Times]:
    """Time every contender once in each round, in rotating order, on the next copy.

    Args:
        contenders: see GradientCopies.contenders.
        copies: how many copies there are.
        seconds: no round begins later than this after the first. There are at least 5 rounds.
        wait: called before a clock is read; waits for the device.
        most_rounds: how many rounds there are at most.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names, copy = list(contenders), itertools.cycle(range(copies))
    for name in names:  # warm-up
        contenders[name](next(copy))
    deadline = time.perf_counter() + seconds
    for round_ in itertools.count():
        if round_ >= most_rounds or (round_ >= LEAST_ROUNDS and time.perf_counter() > deadline):
            break
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            i = next(copy)
            wait()
            start = time.perf_counter()
            contenders[name](i)
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: Times(tuple(taken)) for name, taken in times.items()}


@dataclass(frozen=True)
class Result:
    """One line of the table: each contender's seconds a call, and the errors of the norms."""

    name: str
    clipping: bool
    bytes: int
    times: dict[str, Times]
    errors: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        """The entry of a result file."""
        return {
            "case": self.name,
            "clipping": self.clipping,
            "bytes": self.bytes,
            "rounds": len(self.times["torch"].seconds),
            "seconds": {who: times.median for who, times in self.times.items()},
            "quartiles": {who: times.quartiles for who, times in self.times.items()},
            "errors": self.errors,
        }


def time_clipping(
    name: str,
    shapes: Shapes,
    clipping: bool,
    device: str = "cpu",
    seconds: float = 1.0,
    more: Callable[[GradientCopies], Contenders] = lambda _: {},
) -> Result:
    """Time all contenders, and those that `more` adds, on gradients of these shapes."""
    copies = GradientCopies(shapes, clipping, device)
    errors = norm_errors(copies.grads(0))
    contenders = {**copies.contenders(), **more(copies)}
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = interleaved(contenders, copies.count, seconds, wait)
    return Result(name, clipping, copies.bytes, times, errors)


def norm_errors(grads: list[Tensor]) -> dict[str, float]:
    """Relative errors of both total norms against float64."""
    exact = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
    norms = {"gradkern": get_total_norm(grads), "torch": torch.nn.utils.get_total_norm(grads)}
    return {who: abs(float(norm) - exact) / (exact or 1.0) for who, norm in norms.items()}
