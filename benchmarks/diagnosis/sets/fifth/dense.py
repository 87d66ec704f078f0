"""Networks of vectors of the fifth set only."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.dense import dense_blocks
from benchmarks.diagnosis.tasks import SIZES


class Chebyshev(nn.Module):
    """A polynomial of degree four on every edge, applied to the tanh of the input."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1) + [outputs]
        self.edges = nn.ParameterList(
            torch.randn(a, b, 5) / (2.5 * math.sqrt(a)) for a, b in pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        for edge in self.edges:
            angle = torch.acos(0.99 * torch.tanh(x))
            x = torch.einsum("bik,iok->bo", torch.cos(angle[..., None] * torch.arange(5)), edge)
        return x


class Complex(nn.Module):
    """Complex layers as pairs of real ones; the absolute value passes a ReLU (modReLU)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1)
        self.real = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.imaginary = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.shifts = nn.ParameterList(torch.zeros(b) for b in widths[1:])
        self.head = nn.Linear(2 * recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x, torch.zeros_like(x)
        for real, imaginary, shift in zip(self.real, self.imaginary, self.shifts):
            a, b = real(a) - imaginary(b), real(b) + imaginary(a)
            size = (a.square() + b.square() + 1e-6).sqrt()
            factor = F.relu(size + shift) / size
            a, b = a * factor, b * factor
        return self.head(torch.cat([a, b], 1))


class Reversible(nn.Module):
    """Two halves that update each other in turn (RevNet)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        half = recipe.width // 2
        self.stem = nn.Linear(inputs, recipe.width)
        self.blocks = dense_blocks(recipe, [half] * (recipe.depth + 1))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        for block in self.blocks:
            a, b = b, a + block(b)
        return self.head(torch.cat([a, b], 1))


class Hopfield(nn.Module):
    """Recalls learned patterns by a softmax over their similarity to the state, three times."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.stem = nn.Linear(inputs, recipe.width)
        self.patterns = nn.Parameter(torch.randn(24, recipe.width))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        state = self.stem(x)
        for _ in range(3):
            fit = state @ self.patterns.T / math.sqrt(state.shape[1])
            state = state + fit.softmax(1) @ self.patterns / 3
        return self.head(state)


class ArithmeticUnit(nn.Module):
    """Sums beside sums of logarithms, chosen by a gate (NALU)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs, recipe.width, outputs]
        self.signs = nn.ParameterList(torch.randn(b, a) for a, b in pairwise(widths))
        self.masks = nn.ParameterList(torch.randn(b, a) for a, b in pairwise(widths))
        self.gates = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for sign, mask, gate in zip(self.signs, self.masks, self.gates):
            weight = torch.tanh(sign) * torch.sigmoid(mask)
            share = torch.sigmoid(gate(x))
            logs = F.linear((x.abs() + 1e-3).log(), weight).clamp(-6, 3)
            x = share * F.linear(x, weight) + (1 - share) * logs.exp()
        return x


class Sorter(nn.Module):
    """Numbers sorted by a doubly stochastic matrix (Sinkhorn)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        size = SIZES[recipe.task][0]
        self.blocks = dense_blocks(recipe, [1] + [recipe.width] * recipe.depth)
        self.head = nn.Linear(recipe.width, size)

    def forward(self, x: Tensor) -> Tensor:
        h = x[..., None]
        for block in self.blocks:
            h = block(h)
        logits = self.head(h).transpose(1, 2)
        for _ in range(6):
            logits = logits - logits.logsumexp(2, keepdim=True)
            logits = logits - logits.logsumexp(1, keepdim=True)
        return (logits.exp() @ x[..., None]).squeeze(2)


class SoftExperts(nn.Module):
    """All experts answer, and a gate weighs them (Jacobs et al. 1991)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.gate = nn.Linear(inputs, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(*dense_blocks(recipe, [inputs, recipe.width]), nn.Linear(recipe.width, outputs))
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([expert(x) for expert in self.experts], 1)
        return (self.gate(x).softmax(1)[..., None] * out).sum(1)


class Inducing(nn.Module):
    """The mean of a Gaussian process with learned inducing points, values and length scales."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.places = nn.Parameter(torch.randn(recipe.width, inputs))
        self.values = nn.Parameter(0.1 * torch.randn(recipe.width, outputs))
        self.scale = nn.Parameter(torch.full((inputs,), 0.5 * math.log(inputs)))

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        apart = (a / self.scale.exp())[:, None] - b / self.scale.exp()
        return (-0.5 * apart.square().sum(2)).exp()

    def forward(self, x: Tensor) -> Tensor:
        within = self.kernel(self.places, self.places) + 0.1 * torch.eye(len(self.places))
        return self.kernel(x, self.places) @ torch.cholesky_solve(self.values, torch.linalg.cholesky(within))


class Unrolled(nn.Module):
    """Steps of sparse coding with learned matrices and thresholds (LISTA)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.encode = nn.Linear(inputs, outputs, bias=False)
        self.inhibit = nn.ModuleList(nn.Linear(outputs, outputs, bias=False) for _ in range(recipe.depth))
        self.thresholds = nn.ParameterList(torch.full((outputs,), 0.05) for _ in range(recipe.depth))

    def forward(self, x: Tensor) -> Tensor:
        drive = self.encode(x)
        z = drive
        for inhibit, threshold in zip(self.inhibit, self.thresholds):
            z = F.softshrink(drive + inhibit(z), 0.0)
            z = z.sign() * F.relu(z.abs() - threshold)
        return z


class Searched(nn.Module):
    """Each layer is a weighted sum of four operations, whose weights are learned too (DARTS)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        width = recipe.width
        self.stem = nn.Linear(inputs, width)
        self.operations = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(2)) for _ in range(recipe.depth)
        )
        self.choice = nn.ParameterList(torch.zeros(4) for _ in range(recipe.depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for (first, second), choice in zip(self.operations, self.choice):
            a, b, c, _ = choice.softmax(0)
            x = a * F.relu(first(x)) + b * torch.tanh(second(x)) + c * x
        return self.head(x)


class Monotone(nn.Module):
    """Positive weights and shifts: every output increases with every input."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        widths = [inputs] + [recipe.width] * (recipe.depth - 1) + [outputs]
        self.raw = nn.ParameterList(torch.randn(b, a) - math.log(a) for a, b in pairwise(widths))
        self.signs = nn.Parameter(torch.randn(1, inputs))
        self.shifts = nn.ParameterList(torch.randn(b) for b in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.tanh(self.signs)
        for i, (raw, shift) in enumerate(zip(self.raw, self.shifts)):
            x = F.linear(x, raw.exp(), shift)
            x = torch.tanh(x) if i < len(self.raw) - 1 else x
        return x


FIFTH_DENSE: dict[str, type[nn.Module]] = {
    "chebyshev": Chebyshev,
    "complex": Complex,
    "reversible": Reversible,
    "hopfield": Hopfield,
    "arithmetic_unit": ArithmeticUnit,
    "sorter": Sorter,
    "soft_experts": SoftExperts,
    "inducing": Inducing,
    "unrolled": Unrolled,
    "searched": Searched,
    "monotone": Monotone,
}
