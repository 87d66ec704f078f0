"""The subcommand `demo`: options and flow."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gradkern._util.options import positive, whole
from gradkern.history.format import DATABASE

if TYPE_CHECKING:
    from gradkern.demo.training import DemoRun

PICTURE, RECORD, RUNS = "gradients.png", "record.json", "runs"
CHARACTERS = 1_000_000


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="train small language models with and without clipping, and compare them",
        description="Trains a small LSTM and a small transformer on the source of Python's standard library, "
        "at a learning rate where they blow up without clipping, each with and without GradClipper. Prints a "
        "table, draws a picture, and records and diagnoses all four runs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("gradkern-demo"), metavar="DIR", help="folder of the results"
    )
    parser.add_argument(
        "--model", choices=("both", "lstm", "transformer"), default="both", help="models to train"
    )
    parser.add_argument("--steps", type=whole(2), default=200, metavar="N", help="training steps of each run")
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="seed of the weights and batches"
    )
    parser.add_argument(
        "--max-norm", type=positive, default=0.5, metavar="NORM", help="limit of the clipped runs"
    )
    parser.add_argument(
        "--threads",
        type=whole(1),
        default=1,
        metavar="N",
        help="CPU threads; small models gain little from more",
    )
    parser.add_argument("--no-picture", action="store_true", help="draw no picture, which needs matplotlib")
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    parser.set_defaults(run=run_command)


def run_command(arguments: argparse.Namespace) -> int:
    """Run the demo. Exit status 2 if it cannot start."""
    try:
        _prepare(arguments)
        _run(arguments)
    except (OSError, RuntimeError) as error:
        print(f"gradkern demo: error: {error}", file=sys.stderr)
        return 2
    return 0


def _prepare(arguments: argparse.Namespace) -> None:
    """Check everything that can fail before training starts."""
    if not arguments.no_picture and importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError("the picture needs matplotlib: pip install matplotlib, or use --no-picture")
    output: Path = arguments.output
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / RECORD).open("a", encoding="utf-8").close()
    except OSError as error:
        raise OSError(
            f"--output: expected a folder to write to, got {str(output)!r} ({error.strerror})"
        ) from error


def _run(arguments: argparse.Namespace) -> None:
    import torch

    from gradkern.demo.report import diagnoses, final_table, write_record

    started = time.perf_counter()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        pairs = _train_pairs(arguments)
        for unclipped, clipped in pairs:
            print(f"\n{final_table(unclipped, clipped)}")
    finally:
        torch.set_num_threads(threads_before)
    print("\nNorms are from before clipping; largest: the largest finite one; non-finite: elements that")
    print("were inf or NaN, over all steps.")
    runs = [run for pair in pairs for run in pair]
    print(f"\n{diagnoses(runs)}")
    record = arguments.output / RECORD
    write_record(runs, record)
    print(f"\nnumbers: {record}")
    if not arguments.no_picture:
        from gradkern.demo.picture import draw

        picture = arguments.output / PICTURE
        draw(pairs, picture)
        print(f"picture: {picture}")
    print(f"a page about a run: gradkern report {runs[0].folder}")
    print(f"took {time.perf_counter() - started:.0f} s")


def _train_pairs(arguments: argparse.Namespace) -> list[tuple[DemoRun, DemoRun]]:
    """For each model, the run without clipping and the run with it."""
    from gradkern.demo.progress import Progress
    from gradkern.demo.text import encode, standard_library_text
    from gradkern.demo.training import SETTINGS, train

    data = encode(standard_library_text(CHARACTERS))
    pairs = []
    for name in list(SETTINGS) if arguments.model == "both" else [arguments.model]:
        pair = []
        for how, max_norm in (("unclipped", math.inf), ("clipped", arguments.max_norm)):
            folder = _emptied(arguments.output / RUNS / f"{name}-{how}")
            with Progress(None if arguments.quiet else sys.stdout) as progress:
                run = train(
                    SETTINGS[name],
                    data,
                    folder,
                    steps=arguments.steps,
                    max_norm=max_norm,
                    seed=arguments.seed,
                    time_clipping=math.isfinite(max_norm),
                    progress=progress,
                )
            pair.append(run)
        pairs.append((pair[0], pair[1]))
    return pairs


def _emptied(folder: Path) -> Path:
    """A folder without the run of an earlier demo, which would be continued."""
    for file in folder.glob(f"{DATABASE}*"):  # with the files that SQLite keeps beside it
        file.unlink()
    return folder
