"""Compiles csrc/cuda/*.cu and checks what the compiler made of it; needs nvcc, no GPU.

Fails on
- spills, local memory or a stack frame in any kernel (ptxas -v);
- more registers than a kernel's launch bounds promise room for;
- a main loop (a loop that reads 16-byte vectors) in which a global load is narrower than 16 bytes (SASS,
  by nvdisasm);
- in a measure kernel, a main loop whose four loads do not stand together ahead of the arithmetic. For
  the orders other than 2 and inf on sm_120, where ptxas 13.0 splits those of the 16-bit types, and for
  the kernels that write, this is only said ("note"): whether it costs anything has to be measured on
  such a GPU;
- a measure or scale kernel without such loops for every element type;
- a main loop of measure_kernel for orders 2 and inf with more instructions than its budget;
- a generic store anywhere (ST, where STG is meant);
- a helper that is written in PTX, or stands for an instruction (csrc/tests/ptx_helpers.cu), and does not
  become the instructions it stands for.

Prints the instructions per 64 bytes and lane of those loops, longest first.

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
#: Blocks of 256 threads that have to fit a multiprocessor: __launch_bounds__ in the sources.
BLOCKS = {"measure_kernel": 4, "scale_kernel": 4, "clamp_kernel": 4}
#: Main loops a kernel has to have: one an element type with a way of its own.
MAIN_LOOPS = {"measure_kernel": 6, "measure_power_kernel": 6, "scale_kernel": 4, "clamp_kernel": 4}
#: Kernels and architectures for which a split batch of loads is only noted.
#: They sum in pairs of float32 (narrow_lanes.h); what a split costs there only a measurement can tell.
SPLIT_TOLERATED = {
    (kernel, arch) for kernel in ("measure_kernel[1", "measure_power_kernel") for arch in ("103", "120")
}

#: Instructions of a main loop (64 bytes a lane) of measure_kernel[0, …] where squares are added in float64,
#: and in pairs of float32.
MOST_INSTRUCTIONS = {"float64": 265, "pairs": 460}
FLOAT64_ARCHITECTURES = ("80", "90", "100")

#: Of csrc/tests/ptx_helpers.cu: what PTX and machine code have to contain, in this order.
HELPERS = {
    "load_once": (r"ld\.global\.nc\.L1::no_allocate\.v4", r"LDG\.E\S*\.128\S*\.CONSTANT"),
    "load_to_write": (r"ld\.global\.L1::no_allocate\.v4", r"LDG\.E\S*\.128(?!\S*CONSTANT)"),
    "load_across": (r"(ld\.\S*v4.*){2}", r"(LD\S*\.128.*){2}SHF"),
    "widen_half": (r"cvt\.f32\.f16", r"HADD2\.F32"),
    "narrow_half": (r"cvt\.rn\.f16\.f32", r"F2FP?\.(F16|PACK_AB)"),
    "narrow_bfloat16": (r"cvt\.rn\.bf16\.f32", r"F2FP?\.BF16"),
    "warp_max": (r"redux\.sync\.max\.u32", r"REDUX"),
    "last_block": (
        r"bar\.sync.*(membar\.gl|fence).*atom\S*\.(add|inc).*(membar\.gl|fence).*bar\.sync",
        r"BAR\.SYNC.*MEMBAR\.\w+\.GPU.*ATOMG?\.E\.(ADD|INC)\S*STRONG\.GPU.*MEMBAR\.\w+\.GPU.*BAR\.SYNC",
    ),
}


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
    """measure_kernel[1, 1024] of a mangled name: the function and its integer arguments."""
    match = re.search(r"((?:measure|measure_power|finish|combine|scale|clamp)_kernel)(I.*?E)?E", mangled)
    if not match:
        return mangled
    arguments = re.findall(r"L[bi](\d+)E", match.group(2) + "E" if match.group(2) else "")
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


def check_resources(kernel: Kernel) -> list[str]:
    problems = []
    blocks = BLOCKS.get(kernel.name.split("[")[0], 1)
    limit = REGISTERS_PER_MULTIPROCESSOR // (256 * blocks)
    if kernel.registers > limit:
        problems.append(f"{kernel.registers} registers, at most {limit} for {blocks} blocks of 256 threads")
    if kernel.stack:
        problems.append(f"a stack frame of {kernel.stack} bytes: local memory")
    if kernel.spills:
        problems.append(f"{kernel.spills} bytes of spills")
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


def innermost_loops(lines: list[str]) -> list[list[str]]:
    """Bodies of loops that contain no other loop: from a label to a branch back to it."""
    labels = {m.group(1): i for i, line in enumerate(lines) if (m := re.match(r"(\.L_\w+):", line))}
    spans = []
    for i, line in enumerate(lines):
        branch = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)
        if branch and labels.get(branch.group(1), i) < i:
            spans.append((labels[branch.group(1)], i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [lines[a : b + 1] for a, b in inner]


def instruction(line: str) -> str:
    match = re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line)
    return match.group(1) if match else ""


def check_main_loops(name: str, lines: list[str], arch: str) -> tuple[int, list[str], bool]:
    problems = []
    split = False
    found = 0
    lengths = []
    for loop in innermost_loops(lines):
        codes = [c for c in map(instruction, loop) if c]
        loads = [i for i, code in enumerate(codes) if re.match(r"LDG?(\.|$)", code)]
        wide = [i for i in loads if ".128" in codes[i]]
        if len(wide) < 4:
            continue  # the tail, a search, or a misaligned tensor's loop
        found += 1
        lengths.append(sum(code != "NOP" for code in codes))
        narrow = [codes[i] for i in loads if ".128" not in codes[i]]
        if narrow:
            problems.append(f"a main loop loads less than 16 bytes: {', '.join(narrow)}")
        arithmetic = [
            c for c in codes[wide[0] : wide[3]] if re.match(r"(D(ADD|MUL|FMA)|F(ADD|MUL|FMA)|F2F|STG)", c)
        ]
        tolerated = any(name.startswith(kernel) and arch == where for kernel, where in SPLIT_TOLERATED)
        if arithmetic and name.startswith("measure") and not tolerated:
            problems.append(f"{len(arithmetic)} arithmetic instructions between the loads of a batch")
        split |= bool(arithmetic)
    wanted = MAIN_LOOPS.get(name.split("[")[0], 0)
    if found < wanted:
        problems.append(f"{found} main loops of four 16-byte loads, expected {wanted}")
    most = MOST_INSTRUCTIONS["float64" if arch in FLOAT64_ARCHITECTURES else "pairs"]
    if name.startswith("measure_kernel[0"):
        print(f"  sm_{arch} {name}: {sorted(lengths, reverse=True)} instructions", flush=True)
        if lengths and max(lengths) > most:
            problems.append(f"a main loop of {max(lengths)} instructions, at most {most}")
    if any(re.match(r"ST(\.|$)", instruction(line)) for line in lines):
        problems.append("generic stores (ST)")
    if any(re.match(r"(LDL|STL)", instruction(line)) for line in lines):
        problems.append("local memory accesses (LDL, STL)")
    return found, problems, split


def check_helpers(nvcc: str, nvdisasm: str, arch: str, folder: Path) -> list[str]:
    source = ROOT / "csrc" / "tests" / "ptx_helpers.cu"
    texts = []
    for kind in ("ptx", "cubin"):
        output = folder / f"helpers.{arch}.{kind}"
        run(
            nvcc, "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", f"-arch=sm_{arch}", f"-{kind}",
            "-o", str(output), str(source),
        )  # fmt: skip
        texts.append(run(nvdisasm, "-c", str(output)) if kind == "cubin" else output.read_text())
    ptx = dict(re.findall(r"\.entry use_(\w+)\(.*?\{(.*?)\n\}", texts[0], re.S))
    sass = dict(re.findall(r"\.text\.use_(\w+):(.*?)(?=\n//-|\Z)", texts[1], re.S))
    problems = []
    for name, (in_ptx, in_sass) in HELPERS.items():
        for kind, text, wanted in (("PTX", ptx, in_ptx), ("SASS", sass, in_sass)):
            if not re.search(wanted, text.get(name, ""), re.S):
                problems.append(f"ptx_helpers.cu sm_{arch}: {name}: no {wanted} in its {kind}")
    return problems


def check(nvcc: str, nvdisasm: str | None, source: Path, arch: str, folder: Path) -> tuple[str, list[str]]:
    cubin = folder / f"{source.stem}.{arch}.cubin"
    report = run(
        nvcc, "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", f"-gencode=arch=compute_{arch},code=sm_{arch}",
        "-Xptxas=-v", "-cubin", "-o", str(cubin), str(source),
    )  # fmt: skip
    kernels = parse_resources(report)
    problems = [f"{k.name}: {p}" for k in kernels for p in check_resources(k)]
    if not kernels:
        problems.append("no kernel in the compiler's report")
    loops = 0
    notes: list[str] = []
    if nvdisasm:
        for name, lines in functions_of(run(nvdisasm, "-c", str(cubin))).items():
            found, bad, split = check_main_loops(name, lines, arch)
            loops += found
            notes += [name] if split and not bad else []
            problems += [f"{name}: {p}" for p in bad]
    registers = max((k.registers for k in kernels), default=0)
    summary = f"{source.name} sm_{arch}: {len(kernels)} kernels, at most {registers} registers"
    summary += f", {loops} main loops of 16-byte loads" if nvdisasm else ", not disassembled"
    summary += f" (note: batches of loads are split in {', '.join(notes)})" if notes else ""
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
            for arch in sorted({"80", "90"} & set(disassembled)):
                problems += check_helpers(nvcc, nvdisasm, arch, Path(name))
    print(*problems, sep="\n")
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
