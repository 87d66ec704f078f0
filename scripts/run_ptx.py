"""Runs the tests of the CUDA kernels on the PTX that nvcc makes of them. Needs nvcc, but no GPU.

    python scripts/run_ptx.py build/ptx                    all tests, sm_90
    python scripts/run_ptx.py build/ptx --arch 86          another architecture
    python scripts/run_ptx.py build/ptx --mutants          changed PTX, which the tests have to notice
    python scripts/run_ptx.py build/ptx --seed 1 repeats   a random order of blocks and warps, one test

csrc/tests/ptx executes the PTX on the host; csrc/tests/test_cuda_ptx.cpp compares its results with float64
and, bit for bit, with those of the kernels' source. With --sanitize address, an access outside an allocation
is an error.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check_kernels import FLOAT64_ARCHITECTURES, NVCC_OPTIONS, SOURCES, find_nvcc
from cpp_tests import tool

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    """A change of a module's text, and tests of which at least one has to notice it."""

    module: str
    pattern: str
    replacement: str
    tests: tuple[str, ...]
    nth: int = 0
    everywhere: bool = False

    def apply(self, text: str) -> str:
        if self.everywhere:
            return re.sub(self.pattern, self.replacement, text)
        places = list(re.finditer(self.pattern, text))
        if len(places) <= self.nth:
            raise SystemExit(f"run_ptx: {self.module} has no {self.pattern} number {self.nth}")
        place = places[self.nth]
        return text[: place.start()] + place.expand(self.replacement) + text[place.end() :]


READS, WRITES, UNITS = (
    ("mixed_list", "alignment"),
    ("misaligned_writes", "tiny_factors"),
    ("units_of_all_kinds",),
)
VECTOR = r"\{(%r\d+), ?(%r\d+), ?(%r\d+), ?(%r\d+)\}"
MUTANTS = (
    # Another opcode, operand, constant or order.
    Mutant("measure", r"max\.NaN\.f32", "max.f32", ("one_nonfinite",), everywhere=True),
    Mutant("measure", r"redux\.sync\.max\.u32", "redux.sync.add.u32", READS),
    Mutant("measure", r"(lop3\.b32 .*), 0xEA;", r"\1, 0xE8;", UNITS),
    Mutant("measure", r"(shl\.b32 .*), 13;", r"\1, 12;", UNITS),
    Mutant("measure", r"(fma\.rn\.f64 \t%fd\d+, )(%fd\d+), \2, %fd\d+;", r"\1\2, \2, \2;", UNITS),
    Mutant("write", r"cvt\.rn\.bf16\.f32 (%rs\d+), (%f\d+)", r"cvt.rn.f16.f32 \1, \2", WRITES),
    Mutant("write", rf"(st\.global\.v4\.u32 \[%rd\d+\]), {VECTOR}", r"\1, {\3, \2, \4, \5}", WRITES),
    Mutant("agc", r"div\.rn\.f64", "mul.rn.f64", ("agc_types",)),
    Mutant("tensor_table", r"setp\.ge\.u32", "setp.gt.u32", ("agc_same_bits",)),
    # Accesses that are narrower, misaligned or to another space.
    Mutant("measure", r"st\.global\.u64", "st.global.u32", ("combine",)),
    Mutant("write", r"(ld\.global\.L1\S+)v4", r"\1v2", WRITES),
    Mutant("measure", r"(ld\.global\.nc\S+v4\.u32 \{[^}]*\}, \[%rd\d+)\]", r"\1+8]", READS),
    Mutant("measure", r"ld\.shared\.u64", "ld.global.u64", READS),
    # Without a condition or a barrier.
    Mutant("write", r"@%p\d+ (bra\s+\S+;)", r"\1", WRITES, nth=3),
    Mutant("measure", r"bar\.sync \t0;", "", READS),
)


def compile_ptx(arch: str, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    read = [Path(__file__).with_name("check_kernels.py"), *(ROOT / "csrc").rglob("*.h"), *SOURCES]
    newest = max(path.stat().st_mtime for path in read)
    modules = []
    for source in SOURCES:
        module = folder / f"{source.stem}.ptx"
        modules.append(module)
        if module.exists() and module.stat().st_mtime > newest:
            continue
        command = [
            find_nvcc(),
            *NVCC_OPTIONS,
            f"-arch=compute_{arch}",
            "-ptx",
            "-o",
            str(module),
            str(source),
        ]
        subprocess.run(command, check=True)
    return modules


def build(folder: Path, arch: str, sanitize: str) -> Path:
    target = f"test_cuda_ptx_{int(arch not in FLOAT64_ARCHITECTURES)}"
    options = ("-DGRADKERN_PYTHON=OFF", "-DGRADKERN_TESTS=ON", "-DGRADKERN_CUDA=0")
    configure = [tool("cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *options]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DGRADKERN_SANITIZE={sanitize}"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([tool("cmake"), "--build", str(folder), "--target", target], check=True)
    return folder / "csrc" / "tests" / target


def run(program: Path, modules: list[Path], tests: list[str], seed: int) -> int:
    command = [program, "--seed", seed, *modules, *tests]
    return subprocess.run([str(word) for word in command], check=False).returncode


def notices(program: Path, modules: list[Path], mutant: Mutant) -> bool:
    """Whether the tests notice, in the usual order or in a random one."""
    folder = modules[0].parent / "mutant"
    folder.mkdir(exist_ok=True)
    changed = []
    for module in modules:
        copy = folder / module.name
        text = module.read_text()
        copy.write_text(mutant.apply(text) if module.stem == mutant.module else text)
        changed.append(copy)
    for seed in range(3):
        command = [str(program), "--seed", str(seed), *map(str, changed), *mutant.tests]
        if subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        ).returncode:
            return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", type=Path)
    parser.add_argument("--arch", default="90")
    parser.add_argument("--sanitize", default="", help="for instance address,undefined")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("tests", nargs="*")
    arguments = parser.parse_intermixed_args()  # names of tests may follow an option
    folder = (ROOT / arguments.build).resolve()
    program = build(folder, arguments.arch, arguments.sanitize)
    modules = compile_ptx(arguments.arch, folder / f"sm_{arguments.arch}")
    if not arguments.mutants:
        return run(program, modules, arguments.tests, arguments.seed)
    missed = [mutant for mutant in MUTANTS if not notices(program, modules, mutant)]
    print(*(f"not noticed: {mutant}" for mutant in missed), sep="\n")
    print(f"{len(MUTANTS)} mutants, {len(missed)} not noticed")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
