"""Compile csrc/cuda/*.cu and check the machine code against budgets. Needs nvcc, but no GPU.

Fails on
- more registers than a kernel's launch bounds promise room for, a larger stack, more bytes spilled or more
  code than its budget;
- local memory in a main loop (an innermost loop that reads four 16-byte vectors a lane: 64 bytes);
- a main loop of a measure kernel that accesses less than 16 bytes at a time, whose loads do not stand
  together ahead of the arithmetic, or that has more instructions than its budget;
- a main loop of a kernel that writes without four 16-byte stores;
- a kernel without a main loop for every kind of element type;
- a generic store anywhere (ST, where STG is meant), or more generic loads than the budget (out-of-line
  functions read the kernel's arguments by them, and writing kernels incomplete vectors);
- a kernel that starts before the one it follows has ended, and does not wait for it ahead of its first load;
- a helper that is written in PTX (csrc/tests/ptx_helpers.cu) and does not become the expected instructions.

Prints the instructions of main loops per 64 bytes and lane, by element type, without those that are skipped
if every element is finite.

    python scripts/check_kernels.py                          all documented architectures
    python scripts/check_kernels.py --arch 90 --sass 90      one

nvdisasm is taken from PATH, from the CUDA installation of nvcc, from triton, or from build/cuda-tools;
where none has it:

    pip install --no-deps --target build/cuda-tools nvidia-cuda-nvdisasm
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "86", "89", "90", "100", "103", "120")

REGISTERS_PER_MULTIPROCESSOR = 65536

#: An instruction has 16 bytes. Measure kernels keep to 64 KiB, except on the architectures of CODE_SHARE.
CODE_64_KIB = 65536 // 16

#: The same as in cmake/cuda.cmake.
NVCC_OPTIONS = ("-std=c++20", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}")


@dataclass(frozen=True)
class Budget:
    """The limits of one kernel: threads, blocks that fit a multiprocessor, bytes of stack, instructions of
    code, generic loads."""

    threads: int = 512
    blocks: int = 1
    stack: int = 0
    code: int = 2500
    generic: int = 0
    loops: int = 0  #: main loops: one for each kind of element type
    stores: int = 0  #: 16-byte stores of a main loop
    dependent: str = ""  #: an instruction that has to precede its first load, from sm_90 on: launches overlap


#: The stack holds what calls of out-of-line functions leave no registers for; no main loop touches it.
BUDGETS = {
    "measure_kernel[0]": Budget(blocks=2, stack=64, code=3950, generic=80, loops=4),
    "measure_kernel[1]": Budget(blocks=2, stack=64, code=CODE_64_KIB, generic=80, loops=6),
    "measure_kernel[2]": Budget(code=CODE_64_KIB, generic=80, loops=6),
    "measure_kernel[3]": Budget(code=CODE_64_KIB, generic=88),
    "scale_kernel": Budget(blocks=2, stack=16, code=1800, generic=64, loops=4, stores=4, dependent="ACQBULK"),
    "clamp_kernel": Budget(blocks=2, stack=16, code=2600, generic=64, loops=4, stores=4),
    "policy_kernel": Budget(threads=256, code=5000),
    "write_rows_kernel": Budget(threads=256, code=750),
    "row_factor_kernel": Budget(threads=256, code=400),
    "combine_kernel": Budget(threads=256, code=3200),
}
#: Bytes of spill stores and loads by architecture, as nvcc 13.0 compiles them; none in other kernels. Main
#: loops have none in any (check_main_loop).
SPILLS = {
    "measure_kernel[0]": {"80": 68, "86": 88, "89": 88, "90": 128, "100": 120, "103": 64, "120": 304},
    "measure_kernel[1]": {"80": 68, "86": 68, "89": 68, "90": 88, "100": 96, "103": 120, "120": 300},
    "scale_kernel": {"80": 8, "86": 8, "89": 8, "90": 28},
}
#: Instructions of the main loops of measure_kernel[0] where squares are added in float64, and in float32
#: pairs (csrc/cuda/accumulate.h); without those that count non-finite elements.
LOOP_BUDGETS = {
    "float32": (62, 116),
    "bfloat16": (146, 217),
    "float16": (160, 217),
    "float64": (52, 80),
    "complex64": (78, 94),
    "complex128": (42, 52),
}
DOUBLE = ("float64", "complex128")  #: which measure_kernel[0] does not take
#: How much more code than Budget.code an architecture may have that needs more instructions for the same.
CODE_SHARE = {"103": 1.3, "120": 1.28}
FLOAT64_ARCHITECTURES = ("80", "90", "100")


@dataclass(frozen=True)
class Helper:
    """A kernel of csrc/tests/ptx_helpers.cu: what its PTX and its machine code have to contain, and on which
    architectures."""

    name: str
    ptx: str
    sass: str
    first: int = 80
    last: int = 999


HELPERS = (
    Helper("load_once", r"ld\.global\.nc\.L1::no_allocate\.v4\.u32", r"LDG\.E\S*\.128\S*\.CONSTANT"),
    Helper("load_to_write", r"ld\.global\.L1::no_allocate\.v4\.u32", r"LDG\.E\S*\.128(?!\S*CONSTANT)"),
    Helper("store_vector", r"st\.global\.v4\.u32", r"STG\.E\.128"),
    Helper("load_part", r"ld\.global\.u16", r"(LDG\.E\.U16.*){7}"),
    Helper("store_part", r"st\.global\.u16", r"(STG\.E\.U16.*){7}"),
    Helper("load_across", r"(ld\.global\.nc.*){2}", r"(LDG\.E\S*\.128\S*\.CONSTANT.*){2}SHF"),
    Helper("widen_half", r"cvt\.f32\.f16", r"HADD2\.F32"),
    Helper("narrow_half", r"cvt\.rn\.f16\.f32", r"F2FP?\.(F16|PACK_AB)"),
    Helper("narrow_bfloat16", r"cvt\.rn\.bf16\.f32", r"F2FP?\.BF16"),
    Helper("nearest", r"cvt\.rni\.s32\.f32", r"F2I"),
    Helper("larger_float", r"max\.NaN\.f32", r"FMNMX\.NAN"),
    Helper("larger_bfloat16", r"max\.NaN\.bf16x2", r"HMNMX2\.BF16\S*\.NAN", last=80),
    Helper(
        "larger_bfloat16",
        r"max\.NaN\.xorsign\.abs\.bf16x2",
        r"HMNMX2\.BF16(?=\S*\.NAN)\S*\.XORSIGN",
        first=86,
    ),
    Helper("larger_half", r"max\.NaN\.f16x2", r"HMNMX2\.NAN", last=80),
    Helper(
        "larger_half", r"max\.NaN\.xorsign\.abs\.f16x2", r"HMNMX2(?!\.BF16)(?=\S*\.NAN)\S*\.XORSIGN", first=86
    ),
    # (w & mask) | set, of three operands in one instruction.
    Helper("mask_and_set", r"lop3\.b32\s.*, 0xEA;", r"LOP3\.LUT \w+, \w+, (0xfffe000|0x30000000), \w+"),
    Helper("magnitudes_of_halves", r"abs\.f16x2", r"(HADD2|LOP3|HMUL2|HFMA2)"),
    Helper("nonzero_halves", r"min\.f16x2", r"HMNMX2"),
    Helper("finite_halves", r"set\.lt\.u32\.f16x2", r"HSET2"),
    Helper("finite_bfloat16", r"set\.lt\.u32\.bf16x2", r"HSET2\.BF", first=90),
    Helper("warp_max", r"redux\.sync\.max\.u32", r"REDUX\.MAX|REDUX\S*MAX"),
    Helper("warp_total", r"redux\.sync\.add", r"REDUX\.SUM|REDUX\S*(SUM|ADD)"),
    Helper(
        "arrives_last",
        r"(membar\.gl|fence\.acq_rel\.gpu|fence\.sc\.gpu).*atom.*add.*atom.*exch.*(membar\.gl|fence\.\w+\.gpu)",
        r"MEMBAR\.\w+\.GPU.*ATOMG?\.E\.(ADD|INC)\S*STRONG\.GPU.*MEMBAR\.\w+\.GPU",
    ),
    Helper("let_next_kernel_start", r"griddepcontrol\.launch_dependents", r"PREEXIT", first=90),
    Helper("wait_for_kernel_before", r"griddepcontrol\.wait.*ld\.global", r"ACQBULK.*LDG", first=90),
)


@dataclass
class Kernel:
    name: str
    registers: int
    stack: int
    spills: int


def find_nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not found:
        raise SystemExit("check_kernels: nvcc was not found; put it on PATH")
    return str(Path(found).resolve())


def find_nvdisasm(nvcc: str) -> str:
    candidates = [Path(nvcc).with_name("nvdisasm"), *(ROOT / "build" / "cuda-tools").rglob("nvdisasm")]
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        candidates += Path(triton.origin).parent.rglob("nvdisasm")
    on_path = shutil.which("nvdisasm")
    for candidate in [Path(on_path)] if on_path else candidates:
        if candidate.is_file():
            candidate.chmod(candidate.stat().st_mode | 0o111)
            return str(candidate)
    raise SystemExit(
        "check_kernels: nvdisasm was not found; run\n"
        "  pip install --no-deps --target build/cuda-tools nvidia-cuda-nvdisasm"
    )


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def short_name(mangled: str) -> str:
    """The short form of a mangled name, such as measure_kernel[1]: the function and its integer arguments."""
    match = re.search(
        r"((?:measure|combine|scale|clamp|write_table|write_rows|row_factor|policy)_kernel)(I\w*?EE)?",
        mangled,
    )
    if not match:
        return mangled
    arguments = re.findall(r"L(?:[bi]|N\w+?E)(\d+)E", match.group(2) or "")
    return match.group(1) + (f"[{', '.join(arguments)}]" if arguments else "")


def parse_resources(report: str) -> list[Kernel]:
    kernels = []
    pattern = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.S,
    )
    for name, stack, stores, loads, registers in pattern.findall(report):
        kernels.append(Kernel(short_name(name), int(registers), int(stack), int(stores) + int(loads)))
    return kernels


def check_resources(kernel: Kernel, arch: str) -> list[str]:
    problems = []
    budget = BUDGETS.get(kernel.name, Budget(threads=256))
    limit = REGISTERS_PER_MULTIPROCESSOR // (budget.threads * budget.blocks)
    if kernel.registers > limit:
        problems.append(f"{kernel.registers} registers, at most {limit} for {budget.blocks} blocks")
    if kernel.stack > budget.stack:
        problems.append(f"a stack frame of {kernel.stack} bytes, at most {budget.stack}")
    spills = SPILLS.get(kernel.name, {}).get(arch, 0)
    if kernel.spills > spills:
        problems.append(f"{kernel.spills} bytes spilled, at most {spills}")
    return problems


def functions_of(sass: str) -> dict[str, list[str]]:
    functions: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in sass.splitlines():
        header = re.match(r"\.text\.(\S+):", line)
        if header:
            lines = functions.setdefault(short_name(header.group(1)), [])
        lines.append(line)
    return functions


INSTRUCTION = re.compile(r"\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def instruction(line: str) -> str:
    match = INSTRUCTION.search(line)
    return match.group(2) if match else ""


@dataclass
class Loop:
    codes: list[str]  #: all instructions
    usual: list[str]  #: those that no forward branch jumps over


def usual_path(lines: list[str], labels: dict[str, int], begin: int, end: int) -> list[str]:
    """Codes from `begin` to `end` if every conditional branch forwards is taken."""
    codes, i = [], begin
    while i <= end:
        match = INSTRUCTION.search(lines[i])
        if match and match.group(2) != "NOP":
            codes.append(match.group(2))
            branch = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", lines[i])
            if branch and match.group(1) and i < labels.get(branch.group(1), -1) <= end:
                i = labels[branch.group(1)]
        i += 1
    return codes


def main_loops(lines: list[str]) -> list[Loop]:
    """The loops that read four 16-byte vectors and contain no other such loop."""
    labels = {m.group(1): i for i, line in enumerate(lines) if (m := re.match(r"(\.L_\w+):", line))}
    spans = {}
    for i, line in enumerate(lines):
        branch = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)
        if branch and labels.get(branch.group(1), i) < i:
            begin = labels[branch.group(1)]
            codes = [c for c in map(instruction, lines[begin : i + 1]) if c]
            if sum(c.startswith("LDG") and ".128" in c for c in codes) >= 4:
                spans[begin, i] = Loop(codes, usual_path(lines, labels, begin, i))
    return [
        loop
        for (a, b), loop in spans.items()
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)
    ]


def element_type(codes: list[str]) -> str:
    """The element type of a main loop of measure_kernel, told by instructions that only this type needs."""

    def count(prefix: str) -> int:
        return sum(code.startswith(prefix) for code in codes)

    if count("FFMA") >= 32:
        return "float32" if count("FFMA") < 60 else "float16" if count("HADD2") >= 30 else "bfloat16"
    if count("F2F") >= 16:
        return "complex64" if count("DADD") >= 8 else "float32"
    if count("DFMA") >= 32:
        return "float16" if count("HADD2") >= 30 else "bfloat16"
    return "complex128" if count("DADD") >= 4 else "float64"


def check_main_loop(name: str, loop: Loop, arch: str) -> tuple[str, list[str]]:
    """A description of the loop with its length, and the problems found in it."""
    problems = []
    codes = loop.codes
    wide = [i for i, code in enumerate(codes) if code.startswith("LDG") and ".128" in code]
    stores = [c for c in codes if re.match(r"STG.*\.128", c)]
    narrow = [c for c in codes if re.match(r"LDG?(\.|$)", c) and ".128" not in c]
    if narrow and name.startswith("measure"):
        problems.append(f"a main loop accesses less than 16 bytes: {', '.join(narrow)}")
    if any(c.startswith(("LDL", "STL")) for c in codes):
        problems.append("local memory in a main loop")
    if len(stores) < BUDGETS[name].stores:
        problems.append(f"{len(stores)} stores in a main loop, expected {BUDGETS[name].stores}")
    if not name.startswith("measure"):
        return "", problems
    between = [c for c in codes[wide[0] : wide[3]] if re.match(r"(D|F)(ADD|MUL|FMA)|F2F", c)]
    if between and name == "measure_kernel[0]":
        problems.append(f"{len(between)} arithmetic instructions between the loads of a batch")
    kind, length = element_type(loop.usual), len(loop.usual)
    most = LOOP_BUDGETS[kind][arch not in FLOAT64_ARCHITECTURES]
    if (name == "measure_kernel[0]" or (name == "measure_kernel[1]" and kind in DOUBLE)) and length > most:
        problems.append(f"the main loop of {kind} has {length} instructions, at most {most}")
    return f"{kind} {length}", problems


def check_code(name: str, lines: list[str], arch: str) -> tuple[list[str], list[str]]:
    """The main loops of a kernel, and the problems found in its code."""
    problems = []
    budget = BUDGETS.get(name, Budget())
    all_codes = [c for c in map(instruction, lines) if c]
    most = int(budget.code * CODE_SHARE.get(arch, 1))
    if len(all_codes) > most:
        problems.append(f"{len(all_codes)} instructions of code, at most {most}")
    generic = [c for c in all_codes if re.match(r"ST(\.|$)", c)]
    if generic:
        problems.append(f"{len(generic)} generic stores ({generic[0]})")
    loads = sum(bool(re.match(r"LD(\.|$)", c)) for c in all_codes)
    if loads > budget.generic:
        problems.append(f"{loads} generic loads, at most {budget.generic}")
    if budget.dependent and int(arch) >= 90:
        first = next((c for c in all_codes if c == budget.dependent or c.startswith(("LDG", "LD."))), "")
        if first != budget.dependent:
            problems.append(f"no {budget.dependent} ahead of the first load")
    loops = []
    for loop in main_loops(lines) if budget.loops else []:
        loop_name, bad = check_main_loop(name, loop, arch)
        loops.append(loop_name)
        problems += bad
    if len(loops) < budget.loops:
        problems.append(f"{len(loops)} main loops of four 16-byte loads, expected {budget.loops}")
    return loops, problems


def check_helpers(nvcc: str, nvdisasm: str, arch: str, folder: Path) -> list[str]:
    source = ROOT / "csrc" / "tests" / "ptx_helpers.cu"
    in_ptx, in_sass = folder / f"helpers.{arch}.ptx", folder / f"helpers.{arch}.cubin"
    run(nvcc, *NVCC_OPTIONS, f"-arch=compute_{arch}", "-ptx", "-o", str(in_ptx), str(source))
    run(str(Path(nvcc).with_name("ptxas")), f"-arch=sm_{arch}", "-o", str(in_sass), str(in_ptx))
    ptx = dict(re.findall(r"\.entry use_(\w+)\(.*?\{(.*?)\n\}", in_ptx.read_text(), re.S))
    functions = dict(re.findall(r"\.func [^;{]*?(\w+)\([^;{]*\)\s*\{(.*?)\n\}", in_ptx.read_text(), re.S))
    ptx = {name: text + "".join(b for f, b in functions.items() if f in text) for name, text in ptx.items()}
    sass = dict(re.findall(r"\.text\.use_(\w+):(.*?)(?=\n//-|\Z)", run(nvdisasm, "-c", str(in_sass)), re.S))
    problems = []
    for helper in HELPERS:
        if not helper.first <= int(arch) <= helper.last:
            continue
        for kind, texts, wanted in (("PTX", ptx, helper.ptx), ("SASS", sass, helper.sass)):
            if not re.search(wanted, texts.get(helper.name, ""), re.S):
                problems.append(f"ptx_helpers.cu sm_{arch}: {helper.name}: no {wanted} in its {kind}")
    return problems


def check(nvcc: str, nvdisasm: str | None, source: Path, arch: str, folder: Path) -> tuple[str, list[str]]:
    cubin = folder / f"{source.stem}.{arch}.cubin"
    report = run(
        nvcc, *NVCC_OPTIONS, f"-gencode=arch=compute_{arch},code=sm_{arch}",
        "-Xptxas=-v", "-cubin", "-o", str(cubin), str(source),
    )  # fmt: skip
    kernels = parse_resources(report)
    problems = [f"{k.name}: {p}" for k in kernels for p in check_resources(k, arch)]
    if not kernels:
        problems.append("no kernel in the compiler's report")
    found: list[str] = []
    if nvdisasm:
        for name, lines in functions_of(run(nvdisasm, "-c", str(cubin))).items():
            loops, bad = check_code(name, lines, arch)
            if name in ("measure_kernel[0]", "measure_kernel[1]"):
                size = sum(bool(instruction(line)) for line in lines)
                found.append(f"{name}: {size:,} instructions; main loops: {', '.join(loops)}")
            problems += [f"{name}: {p}" for p in bad]
    registers = max((k.registers for k in kernels), default=0)
    spills = max((k.spills for k in kernels), default=0)
    summary = f"{source.name} sm_{arch}: {len(kernels)} kernels, at most {registers} registers"
    summary += f" and {spills} bytes spilled"
    summary += "" if nvdisasm else ", not disassembled"
    summary += "".join(f"\n  {line}" for line in found)
    return summary, [f"{source.name} sm_{arch}: {p}" for p in problems]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), help="architectures to compile for")
    parser.add_argument(
        "--sass", nargs="*", default=None, help="those to disassemble (default: all compiled)"
    )
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    known = run(nvcc, "--list-gpu-code")
    architectures = [a for a in arguments.arch if f"sm_{a}" in known.split()]
    for skipped in sorted(set(arguments.arch) - set(architectures)):
        print(f"sm_{skipped}: this nvcc does not know it, skipped")
    disassembled = architectures if arguments.sass is None else arguments.sass
    nvdisasm = find_nvdisasm(nvcc) if disassembled else None

    problems: list[str] = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [
            pool.submit(check, nvcc, nvdisasm if arch in disassembled else None, source, arch, Path(name))
            for arch in architectures
            for source in SOURCES
        ]
        for job in jobs:
            summary, bad = job.result()
            print(summary, "FAILED" if bad else "", flush=True)
            problems += bad
        if nvdisasm:
            jobs = [pool.submit(check_helpers, nvcc, nvdisasm, arch, Path(name)) for arch in disassembled]
            problems += [problem for job in jobs for problem in job.result()]
    print(*problems, sep="\n")
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
