"""The subcommand `bench`: options and output."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gradkern._util.options import positive, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradkern.bench.clip import Result
    from gradkern.bench.shapes import Shapes

DTYPES = ("float32", "bfloat16", "float16", "float64")
COLUMNS = {"gradkern": "gradkern", "measure": "measure", "torch": "torch", "torch_single": "foreach=False"}
NAME_WIDTH, WIDTH = 42, 15


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "bench",
        help="compare clipping with torch on this machine, on gradients of your model's shapes",
        description="Times gradkern's clip_grad_norm_ and measure and torch's clip_grad_norm_ in turns, and "
        "compares both norms with float64. Takes about 15 seconds.",
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns your nn.Module; only its parameters' shapes and "
        "dtypes are used, so it may be on the meta device (default: four lists of parameters)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the gradients (default: the model's, or float32)"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="device of the gradients (default: cuda if torch finds a GPU)",
    )
    parser.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument(
        "--seconds",
        type=positive,
        default=1.0,
        metavar="S",
        help="seconds of measurement for each line (default: 1)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.set_defaults(run=run_command)


def run_command(arguments: argparse.Namespace) -> int:
    """Run the bench. Exit status 2 if it cannot start or cannot write its results."""
    from gradkern.bench.shapes import ShapesError

    try:
        _run(arguments)
    except RuntimeError as error:
        if "alloc" not in str(error) and "out of memory" not in str(error):
            raise
        print(f"gradkern bench: gradients do not fit the memory: {error}", file=sys.stderr)
        return 2
    except (ShapesError, OSError) as error:
        print(f"gradkern bench: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    import torch

    from gradkern.bench.clip import time_clipping

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise OSError("--device cuda: torch finds no CUDA device here")
    cases = list(_cases(arguments.model, arguments.dtype))
    if arguments.json is not None:
        arguments.json.touch()  # fails before anything is timed
    about = _about(device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    heads = "".join(f"{head:>{WIDTH}}" for head in (*COLUMNS.values(), "torch/gradkern"))
    print(f"{'median of a call':{NAME_WIDTH}}{'clips':>6}{heads}")
    results = []
    for name, shapes in cases:
        for clipping in (False, True):
            results.append(time_clipping(name, shapes, clipping, device, arguments.seconds))
            print(_line(results[-1]), flush=True)
    print("\nDistance of the norm from float64's, relative:")
    for result in results[::2]:
        print(f"{result.name:{NAME_WIDTH}}" + ", ".join(f"{k} {v:.0e}" for k, v in result.errors.items()))
    if arguments.json is not None:
        record = {"about": about, "results": [result.as_dict() for result in results]}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _about(device: str) -> dict[str, object]:
    import torch

    from gradkern.kernels.extension import DISABLED
    from gradkern.version import __version__

    version = f"{__version__} (GRADKERN_DISABLE is set: this is torch)" if DISABLED else __version__
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return {
        "gradkern": version,
        "torch": torch.__version__,
        "device": name,
        "CPU threads": torch.get_num_threads(),
    }


def _cases(model: str | None, dtype: str | None) -> Iterator[tuple[str, Shapes]]:
    import torch

    from gradkern.bench.cases import QUICK_CASES
    from gradkern.bench.shapes import case_shapes, model_shapes

    chosen = getattr(torch, dtype) if dtype else None
    if model is not None:
        yield model, model_shapes(model, chosen)
        return
    for case in QUICK_CASES:
        yield case.name, case_shapes(case, chosen or torch.float32)


def _line(result: Result) -> str:
    medians = {who: times.median for who, times in result.times.items()}
    cells = "".join(f"{_time(medians[who]):>{WIDTH}}" for who in COLUMNS)
    clips = "yes" if result.clipping else "no"
    ratio = medians["torch"] / medians["gradkern"]
    return f"{result.name:{NAME_WIDTH}}{clips:>6}{cells}{ratio:>{WIDTH}.1f}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
