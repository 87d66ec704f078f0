"""Removes each synchronisation of the CUDA kernels in turn; ThreadSanitizer must report each.

    python scripts/race_mutants.py [--jobs N]

Compiles the two race tests of csrc/tests once as they are (no report), and the test of a source once for each
`__syncthreads()`, `team.sync()`, `__threadfence()` and the reset of a counter (a report each, or a row that
nobody finishes).
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
    r"team\.sync\(\);": ";",
    r"__threadfence\(\);": ";",
    r"atomicExch\(counter, 0u\);": ";",
}
#: Messages for a mutant that was caught.
CAUGHT = ("data race", "waits for ever", "a row is missing")
#: The race tests, and the sources to change for each. Kernels that write have no synchronisation.
SOURCES = {
    "test_cuda_races": ("csrc/cuda/warp.h", "csrc/cuda/measure.cu"),
    "test_cuda_policy_races": ("csrc/cuda/policy.cu", "csrc/core/policies.h"),
}
Mutant = tuple[str, str, int]


def mutants(sources: tuple[str, ...]) -> list[Mutant]:
    found = []
    for source in sources:
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


def run_kernels(folder: Path, test: str, model: Path) -> tuple[bool, str]:
    """Compile and run a race test of the sources in `folder`. Returns whether it finds nothing, and its
    output."""
    includes = [f"-I{folder / 'csrc/tests/cuda_shim'}", f"-I{folder / 'csrc'}"]
    source, program = folder / f"csrc/tests/{test}.cpp", folder / "races"
    command = ["g++", *COMMON, *includes, "-O1", "-fsanitize=thread", str(source), str(model)]
    subprocess.run([*command, "-o", str(program)], check=True)
    # TSan of gcc 12 does not know the addresses of a kernel with more random bits.
    run = [*(["setarch", "-R"] if shutil.which("setarch") else []), str(program)]
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=300, env=environment)
    return done.returncode == 0, done.stdout + done.stderr


def try_mutant(test: str, mutant: Mutant | None, model: Path) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        if mutant:
            source, pattern, nth = mutant
            path = folder / source
            path.write_text(without(path.read_text(), pattern, nth))
        return run_kernels(folder, test, model)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    jobs: list[tuple[str, Mutant | None]] = [(test, None) for test in SOURCES]
    jobs += [(test, mutant) for test, sources in SOURCES.items() for mutant in mutants(sources)]
    failures = 0
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        model = Path(name) / "model.o"
        compile_model(model)
        tried = pool.map(lambda job: try_mutant(job[0], job[1], model), jobs)
        for (test, mutant), (silent, output) in zip(jobs, tried, strict=True):
            if mutant is None:
                passed = silent
                print(f"{test} as it is:", "no race" if passed else f"FAILED\n{output[:4000]}", flush=True)
            else:
                passed = not silent and any(word in output for word in CAUGHT)
                print(*mutant, "caught" if passed else f"SURVIVES\n{output[-1500:]}", flush=True)
            failures += not passed
    print(f"{len(jobs) - len(SOURCES)} mutants, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
