"""Make the pictures in docs/images from a real run: trains a small transformer, then looks at it.

    python scripts/make_pictures.py [--steps 600] [--run DIR]

Needs gradkern[monitor] and Chromium on PATH (for turning the page into a PNG). Takes some minutes.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

import gradkern
from gradkern.report import write_report
from gradkern.watch.snapshot import Watcher
from gradkern.watch.view import Frame

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH, CONTEXT = 64, 32


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    """A character model of six blocks."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(6))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.place.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def train(run_dir: Path, steps: int) -> None:
    """Character modelling of this repository's own Python files."""
    torch.manual_seed(0)
    sources = sorted(Path(gradkern.__file__).parent.rglob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    alphabet = {c: i for i, c in enumerate(sorted(set(text)))}
    data = torch.tensor([alphabet[c] for c in text])
    model = Model(len(alphabet))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    clipper = gradkern.GradClipper(model, max_norm=1.0)
    with gradkern.GradMonitor(model, optimizer, run_dir, update_every=5, histogram_every=50) as monitor:
        for _ in range(steps):
            at = torch.randint(len(data) - CONTEXT - 1, (16, 1)) + torch.arange(CONTEXT + 1)
            batch = data[at]
            loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            monitor.record(clipper.clip_(), loss=loss)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def shoot(page: Path, target: Path, width: int, height: int) -> None:
    """A PNG of a page, 256 colours."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("make_pictures.py needs Chromium on PATH")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                *quiet,
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                "--virtual-time-budget=3000",
                f"--screenshot={target}",
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=300,
        )
    from PIL import Image  # matplotlib brings it

    with Image.open(target) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(target, optimize=True)


def shoot_watch(run_dir: Path, target: Path, scratch: Path) -> None:
    """The live view as a terminal of 100 × 27 shows it."""
    console = Console(record=True, width=100, height=27, file=io.StringIO(), force_terminal=True)
    console.print(Frame(Watcher(run_dir).take(), interactive=True))
    style = "margin:0;padding:14px 18px;background:#14181f;color:#d7dde6;"
    font = "font:14px/17px 'DejaVu Sans Mono',monospace"
    page = scratch / "watch.html"
    body = console.export_html(inline_styles=True, code_format=f'<pre style="{style}{font}">{{code}}</pre>')
    page.write_text(
        f'<meta charset="utf-8"><body style="margin:0;background:#14181f">{body}', encoding="utf-8"
    )
    shoot(page, target, 890, 27 * 17 + 28)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument(
        "--run", type=Path, help="a recorded run to take the pictures of, instead of training"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = arguments.run or Path(scratch) / "small-transformer"
        if arguments.run is None:
            train(run_dir, arguments.steps)
        IMAGES.mkdir(parents=True, exist_ok=True)
        shoot(write_report(run_dir, Path(scratch) / "report.html"), IMAGES / "report.png", 1280, 1500)
        shoot_watch(run_dir, IMAGES / "watch.png", Path(scratch))
    for name in ("report.png", "watch.png"):
        print(IMAGES / name, (IMAGES / name).stat().st_size, "bytes")


if __name__ == "__main__":
    main()
