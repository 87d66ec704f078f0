"""Make the pictures in docs/images from a real run of a deep sigmoid network.

    python scripts/make_pictures.py [--steps 300] [--run DIR]

Needs gradkern[monitor] and Chromium on PATH (for turning the page into a PNG). Takes a minute.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.terminal_theme import MONOKAI
from torch import nn

import gradkern
from gradkern.report import write_report
from gradkern.watch.snapshot import Watcher
from gradkern.watch.view import Frame

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH = 64


def model() -> nn.Sequential:
    """Twelve sigmoid layers: the textbook's vanishing gradient."""
    hidden = [part for _ in range(12) for part in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())]
    return nn.Sequential(nn.Linear(16, WIDTH), nn.Sigmoid(), *hidden, nn.Linear(WIDTH, 4))


def train(run_dir: Path, steps: int) -> None:
    """Learns which of four directions a random vector is closest to."""
    torch.manual_seed(0)
    network, directions = model(), torch.randn(16, 4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    clipper = gradkern.GradClipper(network, max_norm=0.5)
    with gradkern.GradMonitor(network, optimizer, run_dir, update_every=5, histogram_every=50) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            inputs = torch.randn(64, 16)
            loss = nn.functional.cross_entropy(network(inputs), (inputs @ directions).argmax(dim=1))
            loss.backward()
            monitor.record(clipper.clip_(), loss=loss)
            optimizer.step()


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


def shoot_finding(report: Path, target: Path) -> None:
    """The finding and the total norm of a report, with the remedies folded."""
    text = report.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    fold = """for (const part of document.querySelectorAll("details")) part.open = false;
const shown = [...document.querySelectorAll("main h2")].slice(0, 2);
for (const part of document.querySelectorAll("main *"))
  if (!shown.some(title => part.contains(title) || title.parentElement.parentElement.contains(part)))
    part.style.display = "none";"""
    page = report.with_name("finding.html")
    page.write_text(text.replace("</body>", f"<script>{fold}</script></body>"), encoding="utf-8")
    shoot(page, target, 1280, 730)


def shoot_watch(run_dir: Path, target: Path, scratch: Path) -> None:
    """The live view as a terminal of 100 × 27 shows it."""
    console = Console(record=True, width=100, height=27, file=io.StringIO(), force_terminal=True)
    console.print(Frame(Watcher(run_dir).take(), interactive=True))
    style = "margin:0;padding:14px 18px;background:#14181f;color:#d7dde6;"
    font = "font:14px/17px 'DejaVu Sans Mono',monospace"
    page = scratch / "watch.html"
    body = console.export_html(
        theme=MONOKAI, inline_styles=True, code_format=f'<pre style="{style}{font}">{{code}}</pre>'
    )
    page.write_text(
        f'<meta charset="utf-8"><body style="margin:0;background:#14181f">{body}', encoding="utf-8"
    )
    shoot(page, target, 890, 27 * 17 + 28)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--run", type=Path, help="a recorded run to take the pictures of, instead of training"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = arguments.run or Path(scratch) / "sigmoid-12"
        if arguments.run is None:
            train(run_dir, arguments.steps)
        IMAGES.mkdir(parents=True, exist_ok=True)
        report = write_report(run_dir, Path(scratch) / "report.html")
        shoot(report, IMAGES / "report.png", 1280, 2080)
        shoot_finding(report, IMAGES / "finding.png")
        shoot_watch(run_dir, IMAGES / "watch.png", Path(scratch))
    for name in ("report.png", "finding.png", "watch.png"):
        print(IMAGES / name, (IMAGES / name).stat().st_size, "bytes")


if __name__ == "__main__":
    main()
