"""The last-block protocol of the CUDA kernels in a memory-model checker, whole and with each part removed.

    python scripts/litmus.py

Compiles csrc/tests/litmus_last_block.cpp with Relacy (Debian: relacy-dev): for two blocks every interleaving,
for three those with few switches between threads. Then once without each of its fences, its
barrier and its reset, which the checker must report. Needs g++, no GPU and no nvcc.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "csrc" / "tests" / "litmus_last_block.cpp"
REMOVED = ("FENCE_BEFORE=", "FENCE_AFTER=", "BLOCK_BARRIER(block)=", "RESET=")
CAUGHT = ("data race", "ASSERT FAILED")


def run(program: Path, *defines: str) -> tuple[bool, str]:
    """Whether the checker finds nothing, and its output."""
    flags = [f"-D{define}" for define in defines]
    subprocess.run(["g++", "-std=c++17", "-O1", "-w", *flags, "-o", str(program), str(SOURCE)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=300)
    return done.returncode == 0, done.stdout + done.stderr


def main() -> int:
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "litmus"
        for blocks in (2, 3):
            silent, output = run(program, f"BLOCKS={blocks}")
            print(
                f"{blocks} blocks:",
                "nothing to report" if silent else f"FAILED\n{output[-2000:]}",
                flush=True,
            )
            failures += not silent
        for part in REMOVED:
            silent, output = run(program, part)
            caught = not silent and any(word in output for word in CAUGHT)
            name = part.split("(")[0].rstrip("=")
            print(f"without {name}:", "caught" if caught else f"SURVIVES\n{output[-2000:]}", flush=True)
            failures += not caught
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
