"""The subcommand `info`: a report of versions and devices to paste into an issue."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

from gradkern.kernels import installed
from gradkern.version import __version__

#: Environment variables of other packages that affect what runs, or where.
_SETTINGS = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "LD_PRELOAD", "OMP_NUM_THREADS")


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
    yield "gradkern", f"{__version__} ({installed.PACKAGE})"
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "platform", platform.platform()
    yield "NumPy", _version("numpy")
    yield "settings", _settings() or "none"
    yield "bindings for torch", ", ".join(installed.bindings()) or f"none for {installed.PYTHON}"
    yield "library", _library()
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of torch's own libraries
        yield "torch", f"{_version('torch')}, cannot be imported: {error}"
        yield "kernels", "not used: they need torch. watch, report and diagnose work without it"
    else:
        yield "torch", f"{torch.__version__} ({os.path.dirname(torch.__file__)})"
        yield from _kernels(torch.__version__)
        yield from _devices()
    yield "driver", _driver()


def _version(package: str) -> str:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return "not installed"


def _settings() -> str:
    """The settings of gradkern, and those in `_SETTINGS`, that are set."""
    names = [name for name in sorted(os.environ) if name.startswith("GRADKERN_") or name in _SETTINGS]
    return " ".join(f"{name}={os.environ[name]}" for name in names)


def _library() -> str:
    path = installed.LIBRARY
    return f"{path} ({path.stat().st_size} bytes)" if path.exists() else f"missing: {path}"


def _kernels(torch: str) -> Iterator[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is printed below
        from gradkern.kernels import extension
    if extension.DISABLED:
        yield "kernels", "not used: GRADKERN_DISABLE is set"
    elif extension.EXTENSION is not None:
        yield (
            "kernels",
            "used" + " (GRADKERN_VERIFY: every result is compared with float64)" * extension.VERIFY,
        )
    if extension.EXTENSION is None:
        yield "extension" if extension.DISABLED else "kernels", f"not used: {extension.REASON}"
        yield "  remedy", installed.remedy(torch)
        return
    yield "extension", f"{extension.EXTENSION.__file__}, for torch {installed.minor(torch)}"
    for key, value in extension.EXTENSION.build_info().items():
        yield f"  {key.replace('_', ' ')}", value or "-"


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    from gradkern.kernels.extension import EXTENSION

    yield "CUDA of torch", torch.version.cuda or "none"
    if not torch.cuda.is_available():
        yield "GPU", "none that torch can use"
        return
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        reason = "no extension is loaded" if EXTENSION is None else EXTENSION.why_unusable(index)
        usable = f"kernels do not run: {reason}" if reason else "kernels run"
        yield f"GPU {index}", f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}; {usable}"


def _driver() -> str:
    """The version of NVIDIA's driver, from nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "nvidia-smi was not found"
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return (
        ", ".join(dict.fromkeys((done.stdout or done.stderr).split("\n")[:-1])) or "nvidia-smi said nothing"
    )
