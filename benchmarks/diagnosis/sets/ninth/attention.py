"""Models of sequences of the ninth set only: attention and what stands in its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets.eighth.sequences import Mixing
from benchmarks.diagnosis.sets.fourth.sequences import Readout

__all__ = ["NINTH_ATTENTION"]


def _split(x: Tensor, parts: int = 3) -> Tensor:
    """Queries, keys and values of two heads: [parts, batch, head, position, feature]."""
    return x.unflatten(2, (parts, 2, -1)).permute(2, 0, 3, 1, 4)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class ProjectedKeys(nn.Module):
    """Attention to six learned mixtures of all positions (Linformer; Wang et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mix = nn.Parameter(0.2 * torch.randn(6, 48))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _split(self.qkv(x))
        mix = self.mix[:, : x.shape[1]]
        return self.out(_joined(F.scaled_dot_product_attention(q, mix @ k, mix @ v)))


class PositiveFeatures(nn.Module):
    """Attention as sums over the past of random positive features (Performer; Choromanski et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("random", torch.randn(width // 2, 24))

    def _features(self, x: Tensor) -> Tensor:
        x = x / x.shape[-1] ** 0.25
        return torch.exp((x @ self.random - x.square().sum(-1, keepdim=True) / 2).clamp(-10, 10)) + 1e-4

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _split(self.qkv(x))
        q, k = self._features(q), self._features(k)
        told = (k[..., None] * v[..., None, :]).cumsum(2)
        mixed = (q[..., None] * told).sum(3) / (q * k.cumsum(2)).sum(-1, keepdim=True)
        return self.out(_joined(mixed))


class LatentKeys(nn.Module):
    """Causal attention whose keys and values come from a short code of each position (DeepSeek-V2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.code, self.norm = nn.Linear(width, width // 3), nn.LayerNorm(width // 3)
        self.pair = nn.Linear(width // 3, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        (q,) = _split(self.query(x), 1)
        k, v = _split(self.pair(self.norm(self.code(x))), 2)
        return self.out(_joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class GatedUnit(nn.Module):
    """One head of squared positive scores, whose result gates a wide branch (Hua et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(width, 12)
        self.scale, self.shift = nn.Parameter(1 + 0.1 * torch.randn(2, 12)), nn.Parameter(torch.zeros(2, 12))
        self.out = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, v = F.silu(self.wide(x)).chunk(2, 2)
        base = F.silu(self.narrow(x))
        q, k = (base[..., None, :] * self.scale + self.shift).unbind(2)
        scores = F.relu(q @ k.transpose(1, 2) / 12**0.5 + 0.2).square().tril()
        return self.out(gate * ((scores / torch.arange(1.0, x.shape[1] + 1)[:, None]) @ v))


class SigmoidWeights(nn.Module):
    """Causal attention with sigmoids in place of the softmax, shifted by the length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _split(self.qkv(x))
        past = torch.arange(1.0, x.shape[1] + 1).log()[:, None]
        weights = torch.sigmoid(q @ k.transpose(2, 3) / q.shape[3] ** 0.5 - past).tril()
        return self.out(_joined(weights @ v))


class FilteredKeys(nn.Module):
    """Causal attention whose queries, keys and values pass a filter over three positions (Primer)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.look = nn.Conv1d(3 * width, 3 * width, 3, groups=3 * width)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.look(F.pad(self.qkv(x).transpose(1, 2), (2, 0))).transpose(1, 2)
        q, k, v = _split(seen)
        return self.out(_joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class Deltas(nn.Module):
    """A matrix from keys to values that each position corrects (fast weights with the delta rule)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rate = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, 2)
        q, k = F.normalize(q, dim=2), F.normalize(F.silu(k), dim=2)
        rate = torch.sigmoid(self.rate(x))
        known, rows = torch.zeros(len(x), x.shape[2], x.shape[2]), []
        for i in range(x.shape[1]):
            off = v[:, i] - (known @ k[:, i, :, None])[..., 0]
            known = known + (rate[:, i] * off)[..., None] * k[:, i, None]
            rows.append((known @ q[:, i, :, None])[..., 0])
        return self.out(torch.stack(rows, 1))


class MatrixMemory(nn.Module):
    """A decaying sum of products of values and keys, with a normalizer (mLSTM; Beck et al. 2024)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gates, self.open = nn.Linear(width, 2), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, 2)
        new, keep = self.gates(x).unbind(2)
        faded = F.logsigmoid(keep + 3).cumsum(1)
        weight = (faded[:, :, None] - faded[:, None] + new[:, None].clamp(max=4)).exp().tril()
        scores = weight * (q @ k.transpose(1, 2)) / x.shape[2] ** 0.5
        size = scores.sum(2, keepdim=True).abs().clamp_min(1.0)
        return self.out(torch.sigmoid(self.open(x)) * (scores @ v / size))


class _Mixed(Mixing):
    one: type[nn.Module]

    def mixer(self, width: int) -> nn.Module:
        return self.one(width)


class Conformer(Mixing):
    """Half steps of two feed-forward parts around attention and a filter (Gulati et al. 2020)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width = recipe.width
        self.ahead = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
            )
            for _ in self.mixers
        )
        self.looks = nn.ModuleList(nn.Conv1d(width, 2 * width, 3) for _ in self.mixers)

    def mixer(self, width: int) -> nn.Module:
        return SigmoidWeights(width)

    def states(self, x: Tensor) -> Tensor:
        x = x + self.places[: x.shape[1]]
        for i, mixer in enumerate(self.mixers):
            x = x + 0.5 * self.ahead[i](x)
            x = x + mixer(self.norms[2 * i](x))
            x = x + F.glu(self.looks[i](F.pad(x.transpose(1, 2), (2, 0))), 1).transpose(1, 2)
            x = x + 0.5 * self.feed[i](self.norms[2 * i + 1](x))
        return self.norms[-1](x)


class Shrinking(Mixing):
    """Half of the positions after each block, by means of two (Dai et al. 2020); not for every position."""

    def mixer(self, width: int) -> nn.Module:
        return ProjectedKeys(width)

    def states(self, x: Tensor) -> Tensor:
        x = x + self.places[: x.shape[1]]
        for i, (mixer, feed) in enumerate(zip(self.mixers, self.feed)):
            x = x + mixer(self.norms[2 * i](x))
            x = x + feed(self.norms[2 * i + 1](x))
            x = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
        return self.norms[-1](x)


class AffineLayers(Readout):
    """Mixing by matrices alone, with scales and shifts in place of norms (ResMLP); eight positions."""

    mean = True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        width, depth = recipe.width, recipe.depth
        self.across = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))
        self.scales = nn.ParameterList(torch.ones(width) for _ in range(2 * depth))
        self.shifts = nn.ParameterList(torch.zeros(width) for _ in range(2 * depth))
        self.sizes = nn.ParameterList(torch.full((width,), 0.3) for _ in range(2 * depth))

    def states(self, x: Tensor) -> Tensor:
        for i, (across, up, down) in enumerate(zip(self.across, self.up, self.down)):
            h = self.scales[2 * i] * x + self.shifts[2 * i]
            x = x + self.sizes[2 * i] * across(h.transpose(1, 2)).transpose(1, 2)
            h = self.scales[2 * i + 1] * x + self.shifts[2 * i + 1]
            x = x + self.sizes[2 * i + 1] * down(F.gelu(up(h)))
        return x


def _of(layer: type[nn.Module]) -> type[nn.Module]:
    """Blocks of `Mixing` with that layer."""
    return type(f"{layer.__name__}Blocks", (_Mixed,), {"one": layer})


NINTH_ATTENTION: dict[str, type[nn.Module]] = {
    "projected_keys": _of(ProjectedKeys),
    "positive_features": _of(PositiveFeatures),
    "latent_keys": _of(LatentKeys),
    "gated_unit": _of(GatedUnit),
    "sigmoid_weights": _of(SigmoidWeights),
    "filtered_keys": _of(FilteredKeys),
    "delta_rule": _of(Deltas),
    "matrix_memory": _of(MatrixMemory),
    "conformer": Conformer,
    "shrinking": Shrinking,
    "affine_layers": AffineLayers,
}
