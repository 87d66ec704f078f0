"""What a user is told where the CUDA kernels do not run on a GPU."""

from __future__ import annotations

from gradkern._util.warning import warn


def tell_unusable(device: str, reason: str) -> None:
    """Warn that torch's own operations serve `device`. The extension calls this once a device."""
    warn(
        f"gradkern's CUDA kernels do not run on {device}: {reason}. torch's own operations are used there, "
        "right but slower. For kernels, update the GPU's driver or rebuild with TORCH_CUDA_ARCH_LIST=native "
        "on this machine."
    )
