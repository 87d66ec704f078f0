"""clip_grad_norm_ on a GPU: gradkern, torch's foreach and single-tensor paths, and memory floors.

Contenders are interleaved in one run. Before every call the L2 cache is filled with other memory, several
times its size. Small lists rotate over a few copies, so that the host's caches do not hold them. GPU time is
measured between two CUDA events around one call, which is enqueued behind a sleep longer than the host needs
for the call. It therefore excludes the host, except for torch's single-tensor path on long lists: the queue
holds about a thousand launches. Host time is how long the same calls take to return, in a loop of their own.
All figures are medians.

Lists are also measured right after a step of training (`gradkern_fresh`): `zero_grad(set_to_none=True)`,
forward, backward. Autograd has then just made every gradient, at another address, and the call copies its
table to the device. `gradkern_warm` is the host time of a call on the same gradients as before.

There are two floors for the same bytes in the same run: `read` reduces one flat tensor, and `copy` copies one
on the device, which reads and writes its bytes. A clip that changes nothing takes at least `read`; one that
scales, `read` plus a read and a write.

    python benchmarks/bench_cuda.py --output results.json      everything
    python benchmarks/bench_cuda.py --quick --output …         fewer sizes, and no lists of several dtypes

The most important cases come first: 1 GiB, the lists of 2,000 and 10,000 tensors, and whole training steps.
Results are saved after every case, because `scripts/gpu_check.sh` stops a run that takes too long. How long
either way takes depends on the GPU and has not been measured.

`cuda_bars.py` compares the results with the goals.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from cuda_bars import PEERS
from cuda_peers import TotalNorm, find
from machine import describe
from torch import nn

import gradkern
from gradkern.bench.cases import Case, gpt2_small
from gradkern.bench.clip import falling

ROTATED_BYTES = 256 << 20  # several times the L2 cache of any GPU so far
MOST_COPIES = 4  # a stream keeps the tables of eight lists (csrc/cuda/tensor_table.cu)
CYCLES_PER_SECOND = 2e9  # no GPU so far is faster
DEVICE = "cuda"
WIDTH, TOKENS = 768, 512  # of the training step
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def llama_7b() -> list[tuple[int, ...]]:
    """Llama-2-7B: 291 tensors, 6.7 billion elements."""
    width, hidden = 4096, 11008
    shapes: list[tuple[int, ...]] = [(32000, width), (32000, width), (width,)]
    for _ in range(32):
        shapes += [(width, width)] * 4 + [(hidden, width)] * 2 + [(width, hidden), (width,), (width,)]
    return shapes


def llama_70b_shard() -> list[tuple[int, ...]]:
    """One of 64 ranks' shard of Llama-2-70B (width 8192, 80 layers, hidden 28672, 8 key-value heads)."""
    width, hidden, shards = 8192, 28672, 64
    shapes: list[tuple[int, ...]] = [(32000 // shards, width), (32000 // shards, width), (width // shards,)]
    for _ in range(80):
        shapes += [(width // shards, width)] * 2 + [(1024 // shards, width)] * 2
        shapes += [(hidden // shards, width)] * 2 + [(width // shards, hidden)]
        shapes += [(width // shards,)] * 2
    return shapes


#: Lists whose host time has a goal.
MANY = (
    Case("2,000 tensors of 4,096", lambda: [(4096,)] * 2000),
    Case("10,000 tensors of 1,024", lambda: [(1024,)] * 10000),
)
MODELS = (
    Case("GPT-2 small", gpt2_small),
    Case("Llama 7B", llama_7b),
    Case("Llama 70B, one shard of 64", llama_70b_shard),
)
#: Bytes of one tensor, beside 1 GiB, and those that --quick leaves out; by importance.
SIZES = (256 * MIB, 16 * MIB, KIB, MIB, 4 * GIB)
MORE_SIZES = (64 * MIB, 4 * MIB, 256 * KIB, 16 * KIB, 30 * GIB)


def one_tensor(size: int, dtype: torch.dtype) -> Case:
    return Case(f"one tensor of {size} bytes", lambda: [(size // dtype.itemsize,)])


def bytes_of(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> int:
    return sum(torch.Size(s).numel() * d.itemsize for s, d in zip(shapes, itertools.cycle(dtypes)))


def make_parameters(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> list[nn.Parameter]:
    """Parameters that have gradients but no memory of their own; dtypes alternate."""
    result = []
    for shape, dtype in zip(shapes, itertools.cycle(dtypes)):
        grad = torch.empty(shape, dtype=dtype, device=DEVICE).normal_()
        p = nn.Parameter(torch.empty(1, dtype=dtype, device=DEVICE).expand(shape))
        p.grad = grad
        result.append(p)
    return result


def gpu_seconds(
    calls: list[Callable[[], object]],
    rounds: int,
    hosts: list[float],
    flush: Callable[[], object] = lambda: None,
) -> list[float]:
    """Median time between two events around each of `calls`, interleaved round by round.

    `hosts`: seconds each call takes to return. `flush` is called before every call.
    """
    times: list[list[float]] = [[] for _ in calls]
    for round_ in range(rounds + 2):  # two to warm up
        events = []
        for call, host in zip(calls, hosts):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush()
            torch.cuda._sleep(int((1e-3 + 2 * host) * CYCLES_PER_SECOND))
            begin.record()
            call()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        if round_ >= 2:
            for t, (begin, end) in zip(times, events):
                t.append(begin.elapsed_time(end) / 1e3)
    return [statistics.median(t) for t in times]


def host_seconds(call: Callable[[], object], rounds: int = 9) -> float:
    call()  # loads kernels
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    return statistics.median(times)


class TrainingSteps:
    """Steps of training up to the clip, in which autograd makes every gradient.

    The allocator may hand out the addresses of the step before again. Therefore every step keeps one more
    small tensor, which moves the gradients that are made after it.
    """

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params
        largest, self.smallest = max(params, key=nn.Parameter.numel), min(params, key=nn.Parameter.numel)
        noise = torch.empty(largest.numel(), device=DEVICE).normal_()
        of_dtype = {dtype: noise.to(dtype) for dtype in {p.dtype for p in params}}
        #: What each parameter is multiplied by, and therefore its gradient. All share memory.
        self.factors = [of_dtype[p.dtype][: p.numel()].view(p.shape) for p in params]
        self.kept: list[torch.Tensor] = []

    def run(self) -> None:
        for p in self.params:
            p.grad = None
        self.kept.append(torch.empty(self.smallest.shape, dtype=self.smallest.dtype, device=DEVICE))
        torch.autograd.backward([(p * factor).sum() for p, factor in zip(self.params, self.factors)])


def measure_fresh(
    params: list[nn.Parameter], rounds: int, flush: Callable[[], object]
) -> tuple[float, float, int]:
    """A clip right after a step of training: seconds on the host, seconds on the GPU, kernels and copies."""
    steps = TrainingSteps(params)
    clip = partial(gradkern.clip_grad_norm_, params, 1e30)
    times = []
    for _ in range(9):
        steps.run()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        clip()
        times.append(time.perf_counter() - begin)
    host = statistics.median(times)

    def step_and_flush() -> None:
        steps.run()
        flush()

    (gpu,) = gpu_seconds([clip], rounds, [host], step_and_flush)
    steps.run()
    return host, gpu, kernel_count(clip)


def replay(params: list[nn.Parameter]) -> Callable[[], object]:
    """A clip in a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradkern.clip_grad_norm_(params, 1e30)
    return graph.replay


def kernel_count(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in profile.events())


def rotating(function: Callable[[int], object], copies: int) -> Callable[[], object]:
    turn = itertools.cycle(range(copies))
    return lambda: function(next(turn))


def cache_flush() -> Callable[[], object]:
    """Reads memory, which leaves the cache full of lines that nobody has to write back."""
    other = torch.zeros(ROTATED_BYTES // 4, device=DEVICE)
    return other.sum


def floors_of(total_bytes: int, copies: int) -> dict[str, Callable[[], object]]:
    # Not zeros: a GPU reads those faster than other numbers.
    flats = [torch.empty(max(1, total_bytes // 4), device=DEVICE).normal_() for _ in range(copies)]

    # A buffer without another one is copied half to half and back, so that 30 GB need no second buffer.
    def copy(i: int) -> None:
        if copies > 1:
            flats[i].copy_(flats[i - 1])
            return
        half = flats[i].numel() // 2
        if half:
            flats[i][:half].copy_(flats[i][half : 2 * half])
            flats[i][half : 2 * half].copy_(flats[i][:half])

    return {"read": rotating(lambda i: flats[i].sum(), copies), "copy": rotating(copy, copies)}


def contenders_of(
    lists: list[list[nn.Parameter]], limits: Iterator[float], peers: dict[str, TotalNorm]
) -> dict[str, Callable[[], object]]:
    copies = len(lists)
    clippers = [gradkern.GradClipper(params, 1.0) for params in lists]
    clip = torch.nn.utils.clip_grad_norm_
    grads = [[p.grad for p in params] for params in lists]

    def with_statistics(i: int) -> None:
        clippers[i].max_norm = next(limits)
        clippers[i].clip_()

    return {
        "gradkern": rotating(lambda i: gradkern.clip_grad_norm_(lists[i], next(limits)), copies),
        "gradkern_norm": rotating(lambda i: gradkern.get_total_norm(grads[i]), copies),
        "gradkern_statistics": rotating(with_statistics, copies),
        "torch_foreach": rotating(lambda i: clip(lists[i], next(limits), foreach=True), copies),
        "torch_single": rotating(lambda i: clip(lists[i], next(limits), foreach=False), copies),
        # These compute the norm only: compare them with gradkern_norm.
        **{PEERS + name: rotating(lambda i, f=f: f(grads[i]), copies) for name, f in peers.items()},
    }


def measure_case(
    case: Case, dtypes: list[torch.dtype], clipping: bool, rounds: int, peers: dict[str, TotalNorm]
) -> dict[str, object]:
    shapes = case.shapes()
    total = bytes_of(shapes, dtypes)
    copies = max(1, min(MOST_COPIES, -(-ROTATED_BYTES // total)))
    lists = [make_parameters(shapes, dtypes) for _ in range(copies)]
    # Every call has something to clip, and the gradients stay about as large as they are.
    start = min(float(gradkern.get_total_norm([p.grad for p in params])) for params in lists)
    limits = falling(0.5 * start) if clipping else itertools.repeat(1e30)
    calls = contenders_of(lists, limits, peers)
    if len(shapes) > 3000 or total > 8 * GIB:
        del calls["torch_single"]
    if not clipping:
        calls["gradkern_graph"] = replay(lists[0])
    # The contenders take turns with the same copies, which the previous one has left in L2.
    flush = cache_flush()
    hosts = {name: host_seconds(call) for name, call in calls.items()}
    seconds = dict(zip(calls, gpu_seconds(list(calls.values()), rounds, list(hosts.values()), flush)))
    # Profile few calls, because a profile takes seconds.
    kernels = {"gradkern": kernel_count(calls["gradkern"])}
    with_fresh = len(shapes) > 1 and not clipping
    if with_fresh:
        kernels["gradkern_graph"] = kernel_count(calls["gradkern_graph"])
    params = lists[0]
    del calls, lists  # which hold the gradients
    if with_fresh:
        hosts["gradkern_warm"] = host_seconds(partial(gradkern.clip_grad_norm_, params, 1e30))
        hosts["gradkern_fresh"], seconds["gradkern_fresh"], kernels["gradkern_fresh"] = measure_fresh(
            params, rounds, flush
        )
    del params
    gc.collect()
    torch.cuda.empty_cache()
    floors = floors_of(total, copies)
    seconds.update(zip(floors, gpu_seconds(list(floors.values()), rounds, [0.0] * len(floors), flush)))
    return {
        "case": case.name,
        "tensors": len(shapes),
        "dtypes": [str(d).removeprefix("torch.") for d in dtypes],
        "clipping": clipping,
        "bytes": total,
        "copies": copies,
        "rounds": rounds,
        "gpu_seconds": seconds,
        "host_seconds": hosts,
        "kernels": kernels,
    }


def training_step(clip: Callable[..., object] | None) -> float:
    """Median GPU seconds of forward, backward, clip and a fused AdamW step of a small transformer."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 12, 4 * WIDTH, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).to(DEVICE, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(8, TOKENS, WIDTH, device=DEVICE, dtype=torch.bfloat16)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        if clip is not None:
            clip(model.parameters(), 1.0)
        optimizer.step()

    return gpu_seconds([step], 15, [host_seconds(step, 3)])[0]


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


Plan = list[tuple[Case, list[torch.dtype], bool]]


def plan(quick: bool) -> tuple[Plan, Plan]:
    """Cases, dtypes and whether to clip, by importance: those ahead of whole training steps, and the rest."""
    bf16, fp32, mixed = [torch.bfloat16], [torch.float32], [torch.bfloat16, torch.float32]

    def of_sizes(sizes: tuple[int, ...]) -> Plan:
        return [(one_tensor(s, d[0]), d, c) for s in sizes for d in (bf16, fp32) for c in (False, True)]

    def of_lists(cases: tuple[Case, ...], *dtypes: list[torch.dtype]) -> Plan:
        return [(case, d, c) for case in cases for d in dtypes for c in (False, True)]

    first = of_sizes((GIB,)) + of_lists(MANY, bf16, fp32)
    rest = of_sizes(SIZES) + of_lists(MODELS, bf16, fp32)
    if not quick:
        rest += of_sizes(MORE_SIZES) + of_lists(MANY + MODELS, mixed)
    return first, rest


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--peer",
        type=Path,
        action="append",
        default=[],
        help="Python file with PEERS = {name: function}, see cuda_peers.py; those installed are found",
    )
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("bench_cuda: needs a GPU")
    rows: list[dict[str, object]] = []
    record: dict[str, object] = {"machine": {**describe(), "driver": driver()}, "rows": rows}
    peers = find(arguments.peer)

    def save() -> None:
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def measure_all(cases: Plan) -> None:
        for case, dtypes, clipping in cases:
            if torch.cuda.mem_get_info()[0] < 1.2 * max(ROTATED_BYTES, bytes_of(case.shapes(), dtypes)):
                print(f"{case.name}: skipped, needs more device memory")
                continue
            row = measure_case(case, dtypes, clipping, arguments.rounds, peers)
            rows.append(row)
            micro = {k: f"{v * 1e6:.1f}" for k, v in row["gpu_seconds"].items()}  # type: ignore[attr-defined]
            print(
                f"{case.name:34}{'+'.join(row['dtypes']):18}{'clip' if clipping else '':5}{micro}", flush=True
            )
            save()

    first, rest = plan(arguments.quick)
    measure_all(first)
    record["training_step_gpu_seconds"] = {
        "no_clipping": training_step(None),
        "gradkern": training_step(gradkern.clip_grad_norm_),
        "torch": training_step(torch.nn.utils.clip_grad_norm_),
    }
    save()
    measure_all(rest)


if __name__ == "__main__":
    main()
