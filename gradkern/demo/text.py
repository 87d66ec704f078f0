"""The training text of the demo: the source of the Python standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

#: The alphabet: newline, the printable characters of ASCII, and one symbol for everything else.
ALPHABET = "\n" + "".join(map(chr, range(32, 127))) + "\N{REPLACEMENT CHARACTER}"


def standard_library_text(size: int) -> str:
    """The first `size` characters of the standard library's top-level modules, by file name.

    Tests and packages are left out, because they differ most between distributions of Python.

    Raises:
        RuntimeError: the standard library has no readable source here, or less than `size`.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    parts: list[str] = []
    length = 0
    for path in sorted(folder.glob("*.py")):
        if length >= size:
            break
        if path.name.startswith("_sysconfigdata"):  # generated, one huge dict
            continue
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        length += len(parts[-1])
    if length < size:
        raise RuntimeError(
            f"[demo] text: expected {size} characters of Python source in {folder}, got {length}; "
            "run the demo with a Python that ships the source of its standard library"
        )
    return "".join(parts)[:size]


def encode(text: str) -> Tensor:
    """Indices into `ALPHABET`: int64 [len(text)]."""
    lookup = {symbol: index for index, symbol in enumerate(ALPHABET)}
    other = len(ALPHABET) - 1
    return torch.tensor([lookup.get(symbol, other) for symbol in text])


class Batches:
    """Random windows of the text, the same ones for the same seed.

    Args:
        data: int64 [characters].
        batch: windows a batch.
        length: characters a window.
        seed: of the generator that draws the windows' positions.
    """

    def __init__(self, data: Tensor, batch: int, length: int, seed: int) -> None:
        self._data = data
        self._batch = batch
        self._offsets = torch.arange(length + 1)
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Inputs and, shifted by one character, targets: int64 [batch, length] each."""
        last = len(self._data) - len(self._offsets)
        starts = torch.randint(last + 1, (self._batch, 1), generator=self._generator)
        windows = self._data[starts + self._offsets]
        return windows[:, :-1], windows[:, 1:]
