"""Two small language models over single characters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class LSTMModel(nn.Module):
    """Embedding, stacked LSTM layers, LayerNorm, linear head.

    The layers are modules of their own (not one `nn.LSTM(num_layers=…)`), so that each has its row in
    `GradStats.by_layer`.
    """

    def __init__(self, symbols: int, width: int = 96, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.lstm = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [batch, length, symbols] of the next character, for int64 [batch, length]."""
        hidden = self.embed(inputs)
        for layer in self.lstm:
            hidden, _ = layer(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each behind a LayerNorm and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in: [batch, length, width]."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden: Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + hidden


class TransformerModel(nn.Module):
    """Token and position embeddings, blocks, a final LayerNorm, linear head."""

    def __init__(self, symbols: int, length: int, width: int = 64, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [batch, length, symbols] of the next character, for int64 [batch, length]."""
        x = self.embed(inputs) + self.position(torch.arange(inputs.shape[1], device=inputs.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits
