"""Models of physical fields and models with several outputs, of the fourth set only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.models import ACTIVATIONS, MLP
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.fourth.dense import dense_blocks
from benchmarks.diagnosis.tasks import SIZES


class Hamiltonian(nn.Module):
    """An energy whose gradient is the motion (Greydanus et al. 2019): backward goes through a gradient."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.blocks = dense_blocks(recipe, [2] + [recipe.width] * (recipe.depth - 1))
        self.head = nn.Linear(recipe.width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        h = x
        for block in self.blocks:
            h = block(h)
        (slope,) = torch.autograd.grad(self.head(h).sum(), x, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


class Operator(nn.Module):
    """A branch for the input function and a trunk for the positions where the output is evaluated
    (DeepONet)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.branch = dense_blocks(recipe, [inputs] + [recipe.width] * (recipe.depth - 1))
        self.trunk = dense_blocks(recipe, [1] + [recipe.width] * (recipe.depth - 1))
        self.branch_head, self.trunk_head = (nn.Linear(recipe.width, recipe.width) for _ in range(2))
        self.register_buffer("places", torch.linspace(-1, 1, outputs)[:, None])
        self.detach = recipe.extra("detach") is not None

    def forward(self, x: Tensor) -> Tensor:
        places = self.places.to(x.dtype)
        for block in self.branch:
            x = block(x)
        for block in self.trunk:
            places = block(places)
        trunk = self.trunk_head(places)
        basis = trunk.detach() if self.detach else trunk
        return self.branch_head(x) @ basis.T / math.sqrt(basis.shape[1])


class FourierOperator(nn.Module):
    """Layers that mix the lowest frequencies of a function by learned complex matrices (Li et al. 2021)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width, self.modes = recipe.width, 6
        self.lift, self.drop = nn.Linear(1, width), nn.Linear(width, 1)
        self.spectral = nn.ParameterList(
            torch.randn(2, self.modes, width, width) / width for _ in range(recipe.depth)
        )
        self.local = nn.ModuleList(nn.Linear(width, width) for _ in range(recipe.depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x[:, :, None])
        for spectral, local in zip(self.spectral, self.local):
            low = torch.fft.rfft(x, dim=1)[:, : self.modes]
            mixed = torch.einsum("bmi,mio->bmo", low, torch.complex(spectral[0], spectral[1]))
            x = x + F.gelu(torch.fft.irfft(mixed, n=x.shape[1], dim=1) + local(x))
        return self.drop(x).squeeze(2)


class FourierFeatures(nn.Module):
    """An MLP of fixed random waves of the position (Tancik et al. 2020)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.register_buffer("waves", 3.0 * torch.randn(inputs, 24))
        self.blocks = dense_blocks(recipe, [48] + [recipe.width] * (recipe.depth - 1))
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        angle = x @ self.waves.to(x.dtype)
        x = torch.cat([angle.sin(), angle.cos()], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Several(nn.Module):
    """One trunk, three heads at once: the class, whether it is odd, and the input itself."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.blocks = dense_blocks(recipe, [inputs] + [recipe.width] * (recipe.depth - 1))
        self.head = nn.Linear(recipe.width, outputs)
        self.odd = nn.Linear(recipe.width, 1)
        self.again = nn.Sequential(
            nn.Linear(recipe.width, recipe.width), nn.GELU(), nn.Linear(recipe.width, inputs)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for block in self.blocks:
            x = block(x)
        return self.head(x), self.odd(x).squeeze(1), self.again(x)


class Exits(nn.Module):
    """A head after each block."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.blocks = dense_blocks(recipe, [inputs] + [recipe.width] * (recipe.depth - 1))
        self.heads = nn.ModuleList(nn.Linear(recipe.width, outputs) for _ in self.blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for block, head in zip(self.blocks, self.heads):
            x = block(x)
            found.append(head(x))
        return found


class Autoregressive(nn.Module):
    """Each output sees the inputs before it, by masks on the matrices (MADE)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs = SIZES[recipe.task][0]
        self.hidden, self.head = nn.Linear(inputs, recipe.width), nn.Linear(recipe.width, inputs)
        order = torch.arange(inputs)
        degree = torch.arange(recipe.width) % (inputs - 1)
        self.register_buffer("into", (degree[:, None] >= order).float())
        self.register_buffer("out", (order[:, None] > degree).float())

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, self.hidden.weight * self.into, self.hidden.bias))
        return F.linear(h, self.head.weight * self.out, self.head.bias)


class Timed(nn.Module):
    """A denoiser that gets the level of noise as sines (diffusion)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        inputs, outputs = SIZES[recipe.task]
        self.time = nn.Linear(16, recipe.width)
        self.stem = nn.Linear(inputs, recipe.width)
        self.norms = nn.ModuleList(nn.LayerNorm(recipe.width) for _ in range(recipe.depth))
        self.layers = nn.ModuleList(nn.Linear(recipe.width, recipe.width) for _ in range(recipe.depth))
        self.activation = ACTIVATIONS[recipe.activation]()
        self.head = nn.Linear(recipe.width, outputs)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        angle = level * 2.0 ** torch.arange(8)
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers):
            x = x + self.activation(layer(norm(x) + time))
        return self.head(x)


class Pair(nn.Module):
    """An encoder, a projector and a predictor, and an encoder that follows slowly (BYOL)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.online = MLP(recipe)
        self.slow = MLP(recipe).requires_grad_(False)
        self.slow.load_state_dict(self.online.state_dict())
        outputs = SIZES[recipe.task][1]
        self.predictor = nn.Sequential(
            nn.Linear(outputs, recipe.width), nn.ReLU(), nn.Linear(recipe.width, outputs)
        )

    @torch.no_grad()
    def follow(self) -> None:
        for slow, online in zip(self.slow.parameters(), self.online.parameters()):
            slow.lerp_(online, 0.05)


FOURTH_FIELDS: dict[str, type[nn.Module]] = {
    "hamiltonian": Hamiltonian,
    "operator": Operator,
    "fourier_operator": FourierOperator,
    "fourier_features": FourierFeatures,
    "several": Several,
    "exits": Exits,
    "autoregressive": Autoregressive,
    "timed": Timed,
    "pair": Pair,
}
