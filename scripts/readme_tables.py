"""Write the measured tables into README.md and docs/: readme_tables.py [--check]."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def cpu_table(record: dict) -> str:
    lines = [
        machine_line(record, record["threads"]),
        "",
        "| gradients | dtype | clips | gradkern | `measure` | torch | torch, foreach=False "
        "| torch / gradkern | gradkern / floor |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        s = row["seconds"]
        cells = [
            row["case"],
            row["dtype"],
            "yes" if row["clipping"] else "no",
            seconds(s["gradkern"]),
            seconds(s["measure"]),
            seconds(s["torch"]),
            seconds(s["torch_single"]),
            f"{s['torch'] / s['gradkern']:.1f}",
            f"{s['gradkern'] / s['floor']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine_line(record: dict, threads: int) -> str:
    machine = record["machine"]
    plural = "s" if threads > 1 else ""
    kernels = {"avx512": " with AVX-512", "avx2": " with AVX2"}
    return (
        f"{machine['cpu']}{kernels.get(machine.get('gradkern_cpu_instruction_set_in_use'), '')}, "
        f"{machine['cores']} cores, {threads} thread{plural} a process, "
        f"torch {machine['torch']}, commit {machine['commit']}."
    )


def value_table(record: dict) -> str:
    lines = [
        machine_line(record, record["threads"]),
        "",
        "| `clip_grad_value_` | dtype | limits | gradkern | torch | torch / gradkern | gradkern / floor |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        s = row["seconds"]
        lines.append(
            f"| {row['case']} | {row['dtype']} | {'yes' if row['limiting'] else 'no'} | "
            f"{seconds(s['gradkern'])} | {seconds(s['torch'])} | {s['torch'] / s['gradkern']:.1f} | "
            f"{s['gradkern'] / s['floor']:.2f} |"
        )
    return "\n".join(lines)


def instruction_set_table(record: dict) -> str:
    names = list(record["rows"][0]["seconds"])
    lines = [
        f"{machine_line(record, record['threads'])} Medians of {record['rounds']} rounds.",
        "",
        f"| gradients | dtype | call | {' | '.join(names)} | {names[-1]} / {names[0]} |",
        "|---|---|---|" + "---:|" * (len(names) + 1),
    ]
    for row in record["rows"]:
        times = [row["seconds"][name] for name in names]
        cells = [row["case"], row["dtype"], row["call"], *map(seconds, times), f"{times[-1] / times[0]:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def distributed_table(record: dict) -> str:
    lines = [
        machine_line(record, 1),
        "",
        "| ranks | parameters | clips | | torch | `clip_grad_norm_` | `GradClipper` |",
        "|---:|---:|---|---|---:|---:|---:|",
    ]
    for ranks, run in sorted(record["runs"].items()):
        for what in ("total", "host"):
            for row in run[what]:
                s = row["seconds"]
                clips = "yes" if row["clips"] else "no"
                times = " | ".join(seconds(s[k]) for k in ("torch", "clip_grad_norm_", "GradClipper"))
                lines.append(f"| {ranks} | {row['params']} | {clips} | {what} | {times} |")
    return "\n".join(lines)


def scaler_table(record: dict) -> str:
    lines = [
        machine_line(record, record["threads"]),
        "",
        "| | gradients | clips | torch | gradkern | gradkern, folded |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in record["rows"]:
        s = row["seconds"]
        folded = seconds(s["gradkern, folded"]) if "gradkern, folded" in s else ""
        clips = "yes" if row["clips"] else "no"
        times = f"{seconds(s['torch'])} | {seconds(s['gradkern'])} | {folded}"
        lines.append(f"| {row['what']} | {row['case']} | {clips} | {times} |")
    return "\n".join(lines)


CALLS = ("torch", "clip_grad_norm_", "GradClipper")


def scale_host_table(record: dict) -> str:
    lines = [
        machine_line(record, 1),
        "",
        "| ranks | parameters | torch, first call | torch | `clip_grad_norm_` | `GradClipper` | |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in record["host"]:
        cells = [seconds(row["first"]["torch"]) if "torch" in row["first"] else ""]
        for name in CALLS:
            value = row["seconds"].get(name)
            if value is None:
                cells.append("")
                continue
            base, slope = record["lines"][name]
            cells.append(f"{seconds(value)} ({(base + slope * row['params']) / value - 1:+.0%})")
        held = row["ranks"] != 8 or row["params"] in record["held_out"]
        lines.append(
            f"| {row['ranks']} | {row['params']} | {' | '.join(cells)} | {'held out' if held else ''} |"
        )
    return "\n".join(lines)


def scale_gloo_table(record: dict) -> str:
    lines = [
        "| ranks | call | parameters | model | measured |",
        "|---:|---|---:|---:|---:|",
    ]
    for row in record["gloo"]:
        model = seconds(row["model"]) if "model" in row else ""
        lines.append(
            f"| {row['ranks']} | {row['call']} | {row['params']} | {model} | {seconds(row['measured'])} |"
        )
    return "\n".join(lines)


def scale_table(record: dict) -> str:
    lines = [
        "| ranks | parameters | torch: host + collective | `clip_grad_norm_` | `GradClipper` |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in record["simulated"]:
        parts = (row["seconds"][name] for name in CALLS)
        cells = " | ".join(f"{seconds(p['host'])} + {seconds(p['travel'])}" for p in parts)
        lines.append(f"| {row['ranks']:,} | {row['params']:,} | {cells} |")
    return "\n".join(lines)


def monitor_table(record: dict) -> str:
    cases = record["cases"]
    first = "gradkern clip_()"
    heads = [
        f"{count} parameters, step {seconds(c['us'][first]['step'] / 1e6)}" for count, c in cases.items()
    ]
    lines = [
        f"{machine_line(record, record['threads'])} Medians of {record['rounds']} rounds.",
        "",
        f"| between `backward()` and `optimizer.step()` | {' | '.join(heads)} |",
        "|---|" + "---|" * len(cases),
    ]
    for name in cases["300"]["us"]:
        cells = []
        for case in cases.values():
            row, base = case["us"][name], case["us"][first]
            extra = row["between"] - base["between"]
            # wandb.watch works in hooks, which run in backward().
            whole = (
                f"; the whole step +{seconds((row['step'] - base['step']) / 1e6)}" if "watch" in name else ""
            )
            cells.append(f"{seconds(row['between'] / 1e6)} ({extra / base['step']:+.2%} of a step{whole})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cuda_table(record: dict) -> str:
    machine = record["machine"]
    lines = [
        f"{machine['gpu']}, driver {machine['driver']}, torch {machine['torch']}, commit {machine['commit']}."
        " GPU time; host time in brackets.",
        "",
        "| gradients | dtype | clips | gradkern | torch, foreach | norm pass / read floor | kernels |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        gpu, host = row["gpu_seconds"], row["host_seconds"]
        times = (f"{seconds(gpu[n])} ({seconds(host[n])})" for n in ("gradkern", "torch_foreach"))
        lines.append(
            f"| {row['case']} | {' + '.join(row['dtypes'])} | {'yes' if row['clipping'] else 'no'} | "
            f"{' | '.join(times)} | {gpu['gradkern_norm'] / gpu['read']:.2f} | {row['kernels']['gradkern']} |"
        )
    return "\n".join(lines)


def cuda_plot(record: dict, path: Path) -> None:
    """GPU time over the size of one tensor: gradkern, torch, and the read of the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [
        r for r in record["rows"] if r["tensors"] == 1 and r["dtypes"] == ["float32"] and not r["clipping"]
    ]
    rows.sort(key=lambda row: row["bytes"])
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, label in (
        ("torch_foreach", "torch"),
        ("gradkern", "gradkern"),
        ("read", "read of the same bytes"),
    ):
        axes.plot([r["bytes"] for r in rows], [r["gpu_seconds"][name] * 1e6 for r in rows], "o-", label=label)
    axes.set(xscale="log", yscale="log", xlabel="bytes of one float32 gradient", ylabel="GPU time, µs")
    axes.set_title(f"clip_grad_norm_, nothing to clip ({record['machine']['gpu']})")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


#: Name: file in benchmarks/results/ and how it is shown.
TABLES = {
    "cpu": ("cpu", cpu_table),
    "cpu avx2": ("cpu_avx2", cpu_table),
    "value": ("value_cpu", value_table),
    "value avx2": ("value_cpu_avx2", value_table),
    "instruction sets": ("instruction_sets_cpu", instruction_set_table),
    "cuda": ("cuda", cuda_table),
    "distributed": ("distributed_cpu", distributed_table),
    "scaler": ("scaler_cpu", scaler_table),
    "monitor": ("monitor_cpu", monitor_table),
    "scale host": ("scale_cpu", scale_host_table),
    "scale gloo": ("scale_cpu", scale_gloo_table),
    "scale": ("scale_cpu", scale_table),
}
PAGES = ("docs/benchmarks.md", "docs/distributed.md", "docs/monitoring.md", "docs/scale.md")


def rendered(text: str) -> str:
    """`text` with everything between `<!-- table: NAME -->` and `<!-- end -->` replaced.

    Only times on GPUs may be unknown."""
    for name, (file, render) in TABLES.items():
        head, found, rest = text.partition(f"<!-- table: {name} -->")
        if not found:
            continue
        path = ROOT / "benchmarks" / "results" / f"{file}.json"
        _, _, tail = rest.partition("<!-- end -->")
        known = path.exists()
        predicted = "[Predicted](cuda-predictions.md), not measured."
        table = render(json.loads(path.read_text(encoding="utf-8"))) if known else predicted
        text = f"{head}<!-- table: {name} -->\n{table}\n<!-- end -->{tail}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a page is not up to date")
    arguments = parser.parse_args()
    stale = []
    cuda = ROOT / "benchmarks" / "results" / "cuda.json"
    if cuda.exists() and not arguments.check:
        cuda_plot(json.loads(cuda.read_text(encoding="utf-8")), ROOT / "docs" / "images" / "cuda.png")
    for page in (ROOT / name for name in PAGES):
        old = page.read_text(encoding="utf-8")
        new = rendered(old)
        if new != old:
            stale.append(page.name)
            if not arguments.check:
                page.write_text(new, encoding="utf-8")
    if arguments.check and stale:
        print(f"not up to date: {', '.join(stale)}; run scripts/readme_tables.py")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
