"""Text to train on that every machine has: the source of Python's standard library, as bytes."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY = 256


def standard_library(size: int = 1_000_000) -> Tensor:
    """The first `size` bytes of the modules at the top of the library, by name: uint8."""
    folder = Path(sysconfig.get_path("stdlib"))
    whole = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return torch.frombuffer(bytearray(whole[:size]), dtype=torch.uint8)


class Batches:
    """Random pieces of the first nine tenths; `held_out` is a fixed batch of the rest."""

    def __init__(self, text: Tensor, length: int, batch: int, seed: int) -> None:
        split = len(text) * 9 // 10
        self._text, self._rest = text[:split], text[split:]
        self._length, self._batch = length, batch
        self._generator = torch.Generator().manual_seed(seed)

    def next(self) -> tuple[Tensor, Tensor]:
        """Bytes and the bytes that follow them: int64 [batch, length] each."""
        return self._pieces(self._text, self._generator, self._batch)

    def held_out(self) -> tuple[Tensor, Tensor]:
        return self._pieces(self._rest, torch.Generator().manual_seed(0), 64)

    def _pieces(self, text: Tensor, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(text) - self._length - 1, (batch,), generator=generator)
        pieces = torch.stack([text[s : s + self._length + 1] for s in starts.tolist()]).long()
        return pieces[:, :-1], pieces[:, 1:]
