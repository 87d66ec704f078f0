"""Random lists of gradients, with every size, type, layout and kind of value that has ever caused a bug."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.reference import DTYPES

CHUNK = 1 << 15
SMALL = (0, 1, 2, 3, 5, 7, 8, 13, 16, 31, 32, 33, 63, 64, 65, 97, 127, 251, 257)
LARGE = (1009, 4099, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 17, 99991)
NORM_TYPES = (2.0, 1.0, math.inf, -math.inf, 0.0, 3.0, 0.5, -1.0, -2.0)


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, dtype=torch.float64, generator=generator)


def _exponents(low: float, high: float) -> Callable[[int, torch.Generator], Tensor]:
    def make(n: int, generator: torch.Generator) -> Tensor:
        powers = torch.rand(n, dtype=torch.float64, generator=generator) * (high - low) + low
        return _normal(n, generator).sign() * torch.pow(10.0, powers)

    return make


def _with(value: float, often: float) -> Callable[[int, torch.Generator], Tensor]:
    def make(n: int, generator: torch.Generator) -> Tensor:
        x = _normal(n, generator)
        x[torch.rand(n, generator=generator) < often] = value
        return x

    return make


#: Values, before they are rounded to the gradient's type.
FINITE = {
    "normal": _normal,
    "zeros": lambda n, g: torch.zeros(n, dtype=torch.float64),
    "negative zeros": lambda n, g: -torch.zeros(n, dtype=torch.float64),
    "ones": lambda n, g: torch.ones(n, dtype=torch.float64),
    "half zeros": _with(0.0, 0.5),
    "1e-30": _exponents(-31, -29),
    "1e30": _exponents(29, 31),
    "subnormal float32": _exponents(-45, -38),
    "subnormal float16": _exponents(-8, -4),
    "1e-300": _exponents(-301, -299),
    "1e300": _exponents(299, 301),
    "wide": _exponents(-20, 20),
}
NONFINITE = {
    "a NaN": _with(math.nan, 0.02),
    "an inf": _with(math.inf, 0.02),
    "a -inf": _with(-math.inf, 0.3),
    "all NaN": _with(math.nan, 1.0),
}


def values(kind: str, n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """`n` values of a kind; complex types get another draw as their imaginary part."""
    generator = torch.Generator().manual_seed(seed)
    make = FINITE.get(kind) or NONFINITE[kind]
    real = make(n, generator)
    if not dtype.is_complex:
        return real.to(dtype)
    part = dtype.to_real()
    return torch.complex(real.to(part), make(n, generator).to(part))


# Layouts: from n values to a tensor with those values (or a few more) placed differently.


def offset(flat: Tensor) -> Tensor:
    """One element into its storage: no vector load is aligned."""
    return torch.cat([flat[:1], flat])[1:] if flat.numel() else flat


def transposed(flat: Tensor) -> Tensor:
    columns = next((c for c in (7, 3, 2) if flat.numel() % c == 0), 1)
    return flat.reshape(columns, -1).t() if flat.numel() else flat


def sliced(flat: Tensor) -> Tensor:
    """Every second element of a storage twice as large."""
    return flat.repeat_interleave(2)[::2] if flat.numel() else flat


def sliced_columns(flat: Tensor) -> Tensor:
    if flat.numel() % 3 or not flat.numel():
        return flat
    return torch.cat([flat.reshape(-1, 3), torch.full((flat.numel() // 3, 2), 7).to(flat.dtype)], dim=1)[
        :, :3
    ]


def expanded(flat: Tensor) -> Tensor:
    return flat[:, None].expand(-1, 3)


def channels_last(flat: Tensor) -> Tensor:
    if not flat.numel() or flat.numel() % 12:
        return flat
    return flat.reshape(2, -1, 3, 2).contiguous(memory_format=torch.channels_last)


def negated(flat: Tensor) -> Tensor:
    """A view with the negative bit (complex: the conjugate bit) set, over memory that says otherwise."""
    if flat.is_complex():
        return flat.conj()
    if flat.dtype not in (torch.float32, torch.float64):
        return flat
    return torch.complex(torch.zeros_like(flat), -flat).conj().imag


def sparse(flat: Tensor) -> Tensor:
    """COO, not coalesced: every second index is given twice and adds up."""
    if flat.dtype in (torch.float16, torch.bfloat16) or not flat.numel():
        return flat  # added up in another precision by torch; has tests of its own
    index = torch.arange(flat.numel())
    index = torch.cat([index, index[::2]])
    return torch.sparse_coo_tensor(
        index[None], torch.cat([flat, torch.zeros_like(flat[::2])]), (flat.numel(),)
    )


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda flat: flat,
    **{
        f.__name__: f
        for f in (offset, transposed, sliced, sliced_columns, expanded, channels_last, negated, sparse)
    },
}
WRITABLE = tuple(name for name in LAYOUTS if name != "sparse")


@st.composite
def gradients(
    draw: st.DrawFn, *, finite: bool = False, layouts: tuple[str, ...] = tuple(LAYOUTS)
) -> Tensor | None:
    """One gradient, or None where there is none."""
    if draw(st.integers(0, 14)) == 0:
        return None
    size = draw(st.sampled_from(SMALL * 4 + LARGE))
    kinds = list(FINITE) * 4 + ([] if finite else list(NONFINITE))
    flat = values(
        draw(st.sampled_from(kinds)), size, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**20))
    )
    tensor = LAYOUTS[draw(st.sampled_from(layouts))](flat)
    if finite and not bool(torch.isfinite(tensor.coalesce().values() if tensor.is_sparse else tensor).all()):
        return flat.new_ones(size)  # rounded to inf in its type
    return tensor


@st.composite
def lists(
    draw: st.DrawFn, *, finite: bool = False, layouts: tuple[str, ...] = tuple(LAYOUTS)
) -> list[Tensor | None]:
    """0 to 200 gradients, some of them twice. Beyond a dozen they are many small ones of one type."""
    one = gradients(finite=finite, layouts=layouts)
    tensors = draw(st.lists(one, max_size=12))
    if draw(st.integers(0, 3)) == 0:
        count = draw(st.integers(12, 200))
        dtype = draw(st.sampled_from(DTYPES))
        seed = draw(st.integers(0, 2**20))
        tensors += [
            values("normal", SMALL[(seed + i) % len(SMALL)], dtype, seed + i) for i in range(count - 12)
        ]
    if tensors and draw(st.booleans()):
        again = draw(st.sampled_from(tensors))
        tensors.insert(draw(st.integers(0, len(tensors))), again)
    return tensors


def parameters(tensors: list[Tensor | None]) -> list[nn.Parameter]:
    """Parameters with these gradients (their own data takes no memory)."""
    params = []
    for grad in tensors:
        dtype = torch.float32 if grad is None else grad.dtype
        shape = (3,) if grad is None else tuple(grad.shape)
        param = nn.Parameter(torch.zeros((), dtype=dtype).expand(shape))
        if grad is not None:
            param.grad = grad
        params.append(param)
    return params
