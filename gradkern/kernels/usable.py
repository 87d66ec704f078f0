"""`tell_unusable`: the warning for a GPU on which the CUDA kernels do not run."""

from __future__ import annotations

from gradkern._util.warning import warn


def tell_unusable(device: str, reason: str) -> None:
    """Warn that `device` uses torch's own operations. The extension calls this once per device."""
    warn(
        f"gradkern's CUDA kernels do not run on {device}: {reason}. torch's own operations are used instead, "
        "which are slower. To use the kernels, update the GPU's driver or rebuild on this machine with "
        "TORCH_CUDA_ARCH_LIST=native."
    )
