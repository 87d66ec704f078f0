"""The subcommand `info`: a report of versions and devices to paste into an issue."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator

from gradkern.version import __version__


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    info = commands.add_parser("info", help="print versions, kernels and devices, to paste into an issue")
    info.set_defaults(run=run_command)


def run_command(_: argparse.Namespace) -> int:
    """Print the report. Also works without torch, and with a torch that gradkern was not built for."""
    for key, value in report():
        print(f"{key:28} {value}")
    return 0


def report() -> Iterator[tuple[str, str]]:
    """Pairs of a label and a value."""
    yield "gradkern", __version__
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "platform", platform.platform()
    try:
        import torch
    except ImportError as error:
        yield "torch", f"cannot be imported: {error}"
        return
    yield "torch", torch.__version__
    yield from _kernels()
    yield from _devices()


def _kernels() -> Iterator[tuple[str, str]]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is printed below
        from gradkern.kernels import extension
    yield "bindings for torch", ", ".join(extension.bindings()) or "none"
    if extension.EXTENSION is None:
        yield "kernels", f"not used: {extension.REASON}"
        return
    yield "kernels", "not used: GRADKERN_DISABLE is set" if extension.DISABLED else "used"
    for key, value in extension.EXTENSION.build_info().items():
        yield f"  {key.replace('_', ' ')}", value or "-"


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    yield "CUDA of torch", torch.version.cuda or "none"
    if not torch.cuda.is_available():
        yield "GPU", "none that torch can use"
        return
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        yield f"GPU {index}", f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"
