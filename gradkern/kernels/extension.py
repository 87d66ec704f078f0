"""Choose the compiled binding for the installed torch and load it.

An installation has one binding for each minor version of torch that it was built for, named
``_C.torch-2.13.<suffix>``. If none fits, calls use torch's own operations, with one warning.
"""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import torch

from gradkern._util.warning import warn
from gradkern.kernels.installed import LIBRARY, bindings, is_cut_off, minor, remedy, why_none
from gradkern.version import __version__

#: `GRADKERN_DISABLE=1`: every call uses torch's own operations.
DISABLED = os.environ.get("GRADKERN_DISABLE", "0") not in ("", "0")

#: `GRADKERN_VERIFY=1`: the result of every call is compared with float64.
VERIFY = os.environ.get("GRADKERN_VERIFY", "0") not in ("", "0")


def load(version: str) -> tuple[ModuleType | None, str]:
    """The binding for a version of torch as the module `gradkern._C`, or None and the reason.

    A binding for another minor version is never loaded: it could crash the process.
    """
    path = bindings().get(minor(version))
    if path is None:
        return None, why_none(version)
    for file in (LIBRARY, path):
        if file.exists() and is_cut_off(file):
            return None, f"{file.name} is cut off after {file.stat().st_size} bytes"
    spec = spec_from_file_location("gradkern._C", path)
    assert spec is not None and spec.loader is not None
    try:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return None, f"{path.name} does not load: {error}"
    sys.modules["gradkern._C"] = module
    return module, ""


#: The compiled module, or None with the reason in `REASON`.
EXTENSION, REASON = load(torch.__version__)

if EXTENSION is None and not DISABLED:
    warn(
        f"gradkern's kernels are not used: {REASON}. Calls go to torch's own operations, at torch's "
        f"speed and precision. {remedy(torch.__version__)}"
    )


def build_info() -> dict[str, str]:
    """Information about the installed extension.

    Returns:
        A dict of texts: the version, the torch version it was built for, the compiler, the CPU instruction
        sets that were compiled and the one in use, and the CUDA version and architectures ("" without CUDA
        kernels). Only the version if no compiled extension fits the installed torch.
    """
    return {"version": __version__, **({} if EXTENSION is None else EXTENSION.build_info())}
