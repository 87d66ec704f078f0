"""Removes each synchronisation of the CUDA kernels in turn; ThreadSanitizer must report each.

    python scripts/race_mutants.py [--jobs N]

Compiles csrc/tests/test_cuda_races.cpp once as it is (no report) and once for each `__syncthreads()`,
`__threadfence()` and the reset of a counter (a report each, or a row that nobody finishes).
Needs gcc with ThreadSanitizer, no GPU and no nvcc.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What is removed, and what stays in its place.
REMOVED = {
    r"__syncthreads\(\);": ";",
    r"__threadfence\(\);": ";",
    r"atomicExch\(counter, 0u\);": ";",
}
#: Messages for a mutant that was caught.
CAUGHT = ("data race", "waits for ever", "a row is missing")
#: The sources to change. Kernels that write have no synchronisation.
SOURCES = ("csrc/cuda/warp.h", "csrc/cuda/measure.cu")


def mutants() -> list[tuple[str, str, int]]:
    found = []
    for source in SOURCES:
        text = (ROOT / source).read_text()
        for pattern in REMOVED:
            found += [(source, pattern, n) for n in range(len(re.findall(pattern, text)))]
    return found


def without(text: str, pattern: str, nth: int) -> str:
    match = list(re.finditer(pattern, text))[nth]
    return text[: match.start()] + REMOVED[pattern] + text[match.end() :]


COMMON = ("-std=c++20", "-w", "-g", "-DCUDA_SHIM_RACES", "-DGRADKERN_WARPS=4")


def compile_model(to: Path) -> None:
    """The model of the GPU, which is the same for all."""
    shim = ROOT / "csrc/tests/cuda_shim"
    source = shim / "cuda_shim.cpp"
    subprocess.run(["g++", *COMMON, f"-I{shim}", "-O2", "-c", str(source), "-o", str(to)], check=True)


def run_kernels(folder: Path, model: Path) -> tuple[bool, str]:
    """Compile and run the race test of the sources in `folder`. Returns whether it finds nothing, and its
    output."""
    includes = [f"-I{folder / 'csrc/tests/cuda_shim'}", f"-I{folder / 'csrc'}"]
    source, program = folder / "csrc/tests/test_cuda_races.cpp", folder / "races"
    command = ["g++", *COMMON, *includes, "-O1", "-fsanitize=thread", str(source), str(model)]
    subprocess.run([*command, "-o", str(program)], check=True)
    # TSan of gcc 12 does not know the addresses of a kernel with more random bits.
    run = [*(["setarch", "-R"] if shutil.which("setarch") else []), str(program)]
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=300, env=environment)
    return done.returncode == 0, done.stdout + done.stderr


def try_mutant(mutant: tuple[str, str, int] | None, model: Path) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        if mutant:
            source, pattern, nth = mutant
            path = folder / source
            path.write_text(without(path.read_text(), pattern, nth))
        return run_kernels(folder, model)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    found = mutants()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        model = Path(name) / "model.o"
        compile_model(model)
        silent, output = try_mutant(None, model)
        print("as it is:", "no race" if silent else f"FAILED\n{output[:4000]}", flush=True)
        failures = 0 if silent else 1
        tried = pool.map(try_mutant, found, [model] * len(found))
        for mutant, (lives, output) in zip(found, tried, strict=True):
            caught = "caught" if not lives and any(word in output for word in CAUGHT) else ""
            print(*mutant, caught or f"SURVIVES\n{output[-1500:]}", flush=True)
            failures += not caught
    print(f"{len(found)} mutants, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
