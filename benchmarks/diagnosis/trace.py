"""`Trace`: what really happens in a run, measured in plain torch beside the recorder, to confirm labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
#: Steps between two looks at activations and gradient elements.
LOOK_EVERY = 5
#: The smallest normal float16.
SMALLEST_HALF = 2.0**-14


@dataclass
class Trace:
    """T steps, N parameters in the order of the model."""

    names: tuple[str, ...]
    frozen: frozenset[str]
    matrices: tuple[int, ...]
    """Columns of the parameters with two or more dimensions."""
    loss: Array
    """[T], per target unit."""
    rms: Array
    """[T, N], rms of the gradient; NaN if there was none, inf if it was not finite."""
    norm: Array
    """[T], total norm of all gradients."""
    update: Array
    """[T] ‖Δw‖ / ‖w‖ over the matrices."""
    moved: Array
    """[N] ‖w_end - w_start‖ / ‖w_start‖, or ‖w_end‖ if the parameter started at zero."""
    weight: Array
    """[T, N] norms after the step."""
    spread: Array
    """[N] standard deviation of the initial elements over their rms; 0 for constant ones."""
    dead: dict[str, float] = field(default_factory=dict)
    """By activation module: fraction of units that are zero for every input of the run's second half."""
    saturated: dict[str, float] = field(default_factory=dict)
    """By activation module: fraction of outputs at the ends of its range at the first step."""
    saturated_end: dict[str, float] = field(default_factory=dict)
    """The same over the second half."""
    small: Array = field(default_factory=lambda: np.zeros(0))
    """[looks], fraction of the gradient elements below the smallest normal float16 after backward."""


class Tracer:
    """Measures a `Trace` while a model is trained."""

    def __init__(self, model: nn.Module) -> None:
        self._named = list(model.named_parameters())
        self._params = [p for _, p in self._named]
        self._start = [p.detach().clone() for p in self._params]
        self._root = np.sqrt([p.numel() for p in self._params])
        self._matrices = [i for i, p in enumerate(self._params) if p.dim() >= 2]
        self._rows: dict[str, list[Any]] = {k: [] for k in ("loss", "rms", "update", "weight", "small")}
        self._active: dict[str, list[Tensor]] = {}
        self._flat: dict[str, list[float]] = {}
        self._looking, self._step = False, 0
        for name, module in model.named_modules():
            if isinstance(module, (nn.ReLU, nn.Sigmoid, nn.Tanh)):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def look(module: nn.Module, _: Any, out: Tensor) -> None:
            if not self._looking:
                return
            out = out.detach().float()
            if isinstance(module, nn.ReLU):
                units = out.flatten(0, -2) if out.dim() != 4 else out.transpose(1, 3).flatten(0, 2)
                self._active.setdefault(name, []).append((units > 0).any(0))
            else:
                ends = (out.abs() > 0.98) | ((out < 0.02) & isinstance(module, nn.Sigmoid))
                self._flat.setdefault(name, []).append(float(ends.float().mean()))

        return look

    def begin_step(self, step: int) -> None:
        """Before the forward pass; looks at what the last optimizer step did."""
        self._finish_step()
        self._step, self._looking = step, step % LOOK_EVERY == 0

    @torch.no_grad()
    def _finish_step(self) -> None:
        if not self._rows["loss"]:
            return
        norms = torch.stack(torch._foreach_norm([p.float() for p in self._params])).double().numpy()
        now = [self._params[i].float() for i in self._matrices]
        change = torch._foreach_norm(torch._foreach_sub(now, self._before))
        size = float(np.sqrt((norms[self._matrices] ** 2).sum()))
        self._rows["weight"].append(norms)
        self._rows["update"].append(
            float(torch.stack(change).double().square().sum().sqrt()) / max(size, 1e-30)
        )

    @torch.no_grad()
    def after_backward(self, loss: float, scale: float) -> None:
        self._before = [self._params[i].detach().float().clone() for i in self._matrices]
        present = [i for i, p in enumerate(self._params) if p.grad is not None]
        grads = [self._params[i].grad.float() for i in present]  # type: ignore[union-attr]
        norms = torch.stack(torch._foreach_norm(grads)).double().numpy() / scale
        rms = np.full(len(self._params), np.nan)
        rms[present] = np.where(np.isfinite(norms), norms / self._root[present], np.inf)
        if self._looking:
            flat = torch.cat([grad.flatten() for grad in grads]).abs()
            self._rows["small"].append(float((flat < SMALLEST_HALF).float().mean()))
        self._looking = False
        self._rows["rms"].append(rms)
        self._rows["loss"].append(loss)

    @torch.no_grad()
    def result(self) -> Trace:
        self._finish_step()
        rms = np.array(self._rows["rms"])
        moved = [
            float((p.float() - s.float()).norm() / s.float().norm().clamp_min(1e-12))
            if s.any()
            else float(p.float().norm())
            for p, s in zip(self._params, self._start)
        ]
        spread = [
            float(s.float().std(correction=0) / s.float().square().mean().sqrt().clamp_min(1e-30))
            for s in self._start
        ]
        return Trace(
            names=tuple(name for name, _ in self._named),
            frozen=frozenset(name for name, p in self._named if not p.requires_grad),
            matrices=tuple(self._matrices),
            loss=np.array(self._rows["loss"]),
            rms=rms,
            norm=np.sqrt((np.nan_to_num(rms, nan=0.0, posinf=np.inf) ** 2 * self._root**2).sum(1)),
            update=np.array(self._rows["update"]),
            moved=np.array(moved),
            weight=np.array(self._rows["weight"]),
            spread=np.array(spread),
            dead={
                n: 1 - float(torch.stack(v[len(v) // 2 :]).any(0).float().mean())
                for n, v in self._active.items()
            },
            saturated={n: v[0] for n, v in self._flat.items()},
            saturated_end={n: float(np.mean(v[len(v) // 2 :])) for n, v in self._flat.items()},
            small=np.array(self._rows["small"]),
        )
