"""What the first step of a clipper copies to the device."""

from __future__ import annotations

import torch
from torch import Tensor


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, which is on the host, on `device`.

    Raises:
        RuntimeError: a CUDA graph is being captured, which cannot contain a copy from the host.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "[GradClipper.clip_] a CUDA graph is being captured before the first step on this device; run "
            "clip_() once outside the graph, which copies what the policy needs to the device"
        )
    return tensor.to(device)
