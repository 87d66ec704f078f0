"""Recurrent models of the ninth set only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.sequences import Readout

__all__ = ["NINTH_RECURRENT"]


class FastWeights(Readout):
    """A recurrent network that attends to its recent states (Ba et al. 2016)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.core, self.norm = nn.Linear(2 * recipe.width, recipe.width), nn.LayerNorm(recipe.width)

    def states(self, x: Tensor) -> Tensor:
        h, rows = torch.zeros_like(x[:, 0]), []
        fast = torch.zeros(len(x), x.shape[2], x.shape[2])
        for row in x.unbind(1):
            fast = 0.9 * fast + 0.3 * h[:, :, None] * h[:, None]
            slow = self.core(torch.cat([row, h], 1))
            h = torch.tanh(self.norm(slow + (fast @ torch.tanh(slow)[..., None])[..., 0]))
            rows.append(h)
        return torch.stack(rows, 1)


class ExponentialGates(Readout):
    """An LSTM with an exponential input gate and a normalizer (sLSTM; Beck et al. 2024)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.core = nn.Linear(2 * recipe.width, 4 * recipe.width)

    def states(self, x: Tensor) -> Tensor:
        h = c = n = torch.zeros_like(x[:, 0])
        largest, rows = torch.full_like(h, -10.0), []
        for row in x.unbind(1):
            i, f, z, o = self.core(torch.cat([row, h], 1)).chunk(4, 1)
            kept = nn.functional.logsigmoid(f + 2) + largest
            largest = torch.maximum(kept, i).detach()
            new, keep = (i - largest).exp(), (kept - largest).exp()
            c, n = keep * c + new * z.tanh(), keep * n + new
            h = torch.sigmoid(o) * c / n.clamp_min(1e-3)
            rows.append(h)
        return torch.stack(rows, 1)


class Legendre(Readout):
    """A memory that holds the past as coefficients of polynomials (Voelker et al. 2019)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width, order = recipe.width, 8
        self.write, self.core = nn.Linear(2 * width, 1), nn.Linear(2 * width + order, width)
        q = torch.arange(float(order))
        sign = torch.where(q[:, None] < q, -1.0, (-1.0) ** (q[:, None] - q + 1))
        flow = (2 * q[:, None] + 1) * sign
        turn = torch.linalg.matrix_exp(flow / 16)
        self.register_buffer("turn", turn)
        self.register_buffer(
            "add", torch.linalg.solve(flow, (turn - torch.eye(order)) @ ((2 * q + 1) * (-1.0) ** q))
        )

    def states(self, x: Tensor) -> Tensor:
        h, rows = torch.zeros_like(x[:, 0]), []
        memory = torch.zeros(len(x), len(self.add))
        for row in x.unbind(1):
            told = self.write(torch.cat([row, h], 1))
            memory = memory @ self.turn.T + told * self.add
            h = torch.tanh(self.core(torch.cat([row, h, memory], 1)))
            rows.append(h)
        return torch.stack(rows, 1)


class Oscillators(Readout):
    """Coupled oscillators that the input drives (coRNN; Rusch and Mishra 2021)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.core = nn.Linear(3 * recipe.width, recipe.width)
        self.stiff = nn.Parameter(torch.linspace(0.5, 2.0, recipe.width))

    def states(self, x: Tensor) -> Tensor:
        place, speed, rows = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for row in x.unbind(1):
            push = torch.tanh(self.core(torch.cat([row, place, speed], 1)))
            speed = speed + 0.4 * (push - self.stiff * place - 0.6 * speed)
            place = place + 0.4 * speed
            rows.append(place)
        return torch.stack(rows, 1)


class Dilated(Readout):
    """Layers of cells, each of which sees its state of one, two and four steps ago (Chang et al. 2017)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.core = nn.ModuleList(nn.Linear(2 * recipe.width, recipe.width) for _ in range(recipe.depth))

    def states(self, x: Tensor) -> Tensor:
        for layer, core in enumerate(self.core):
            back, rows = 2**layer, []
            for i, row in enumerate(x.unbind(1)):
                h = rows[i - back] if i >= back else torch.zeros_like(row)
                rows.append(torch.tanh(core(torch.cat([row, h], 1))))
            x = x + torch.stack(rows, 1)
        return x


class Expressive(Readout):
    """Two states, each of which moves at a learned pace of its own (Rusch et al. 2022)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.core, self.slow = nn.Linear(2 * width, 3 * width), nn.Linear(2 * width, width)

    def states(self, x: Tensor) -> Tensor:
        y, z, rows = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for row in x.unbind(1):
            first, second, push = self.core(torch.cat([row, y], 1)).chunk(3, 1)
            z = torch.lerp(z, push.tanh(), torch.sigmoid(first))
            y = torch.lerp(y, self.slow(torch.cat([row, z], 1)).tanh(), torch.sigmoid(second))
            rows.append(y)
        return torch.stack(rows, 1)


class Lightened(Readout):
    """One matrix for the state and its gate, and a residual state (FastGRNN; Kusupati et al. 2018)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.core = nn.Linear(2 * width, width, bias=False)
        self.gate_bias, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.mix = nn.Parameter(torch.tensor([1.0, -3.0]))

    def states(self, x: Tensor) -> Tensor:
        h, rows = torch.zeros_like(x[:, 0]), []
        zeta, nu = torch.sigmoid(self.mix)
        for row in x.unbind(1):
            both = self.core(torch.cat([row, h], 1))
            z = torch.sigmoid(both + self.gate_bias)
            h = (zeta * (1 - z) + nu) * torch.tanh(both + self.bias) + z * h
            rows.append(h)
        return torch.stack(rows, 1)


NINTH_RECURRENT: dict[str, type[nn.Module]] = {
    "fast_weights": FastWeights,
    "exponential_gates": ExponentialGates,
    "legendre": Legendre,
    "oscillators": Oscillators,
    "dilated_recurrence": Dilated,
    "expressive": Expressive,
    "lightened": Lightened,
}
