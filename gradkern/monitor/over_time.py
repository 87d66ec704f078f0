"""`GradientOverTime`: gradient norms over the time steps of a recurrent network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradkern.history.named import OVER_TIME

__all__ = ["GradientOverTime"]

#: Positions that a longer sequence is reduced to, the most elements of a tensor that `record` accepts.
MOST_POSITIONS = 64


class GradientOverTime:
    """Measure the norm of the gradient at the input of a recurrent module, for each time step.

    It shows gradients that vanish over time, which the gradients of parameters do not. These are sums over
    all time steps, so that the last steps keep them large.

    Args:
        module: an `nn.RNN`, `nn.LSTM`, `nn.GRU`, or another module whose first argument is a sequence.
        name: name of the recorded numbers. Default: the module's class in lower case.
        batch_first: whether the second dimension of a batch is time. Default: `module.batch_first`, or False
            if the module does not have it.

    Raises:
        TypeError: `module` is not a Module.

    Notes:
        Costs one reduction per step, and the gradient at the module's input if it is not needed anyway. No
        host-device synchronisation.

        A sequence of more than 64 steps is reduced to 64 positions, each the root mean square of its
        neighbours. Inputs that are a `PackedSequence` and calls without gradient are ignored. Modules under
        `torch.compile` are not supported.

        If the loss is taken at every time step, the profile is flat and says nothing about the memory of the
        network.

    Examples:
        >>> over_time = gradkern.GradientOverTime(model.rnn)
        >>> for batch in loader:
        ...     loss = compute_loss(model, batch)
        ...     loss.backward()
        ...     monitor.record(loss=loss, extra=over_time.take())
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """

    def __init__(
        self, module: nn.Module, name: str | None = None, *, batch_first: bool | None = None
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"[GradientOverTime] module: expected a torch.nn.Module, got {type(module).__name__}"
            )
        self.name = type(module).__name__.lower() if name is None else name
        self._batch_first = (
            bool(getattr(module, "batch_first", False)) if batch_first is None else batch_first
        )
        self._squares: Tensor | None = None
        self._handle = module.register_forward_pre_hook(self._watch)

    def take(self) -> dict[str, Tensor]:
        """The norms since the last call, for the argument `extra` of `record`. No synchronisation.

        Returns:
            A dict of the name and the norms: float tensor with at most 64 elements, on the module's device.
            Empty if there was no backward pass. Several passes (accumulation) are added up.
        """
        squares, self._squares = self._squares, None
        return {} if squares is None else {f"{OVER_TIME}{self.name}": squares.sqrt()}

    def close(self) -> None:
        """Remove the hook from the module."""
        self._handle.remove()

    def __enter__(self) -> GradientOverTime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The module's input as a tensor of its own, whose gradient is this module's alone."""
        sequence = inputs[0] if inputs else None
        if not isinstance(sequence, Tensor) or not torch.is_grad_enabled():
            return None
        if not sequence.is_floating_point() or sequence.dim() not in (2, 3):
            return None
        watched = sequence.view_as(sequence) if sequence.requires_grad else sequence.detach().requires_grad_()
        time = 1 if self._batch_first and sequence.dim() == 3 else 0
        watched.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: self._add(gradient, time)
        )
        return (watched, *inputs[1:])

    @torch.no_grad()
    def _add(self, gradient: Tensor, time: int) -> None:
        others = [d for d in range(gradient.dim()) if d != time]
        squares = gradient.double() if gradient.device.type != "mps" else gradient.float()
        squares = squares.square().sum(dim=others)
        if len(squares) > MOST_POSITIONS:
            squares = nn.functional.adaptive_avg_pool1d(squares[None], MOST_POSITIONS)[0]
        fits = self._squares is not None and self._squares.shape == squares.shape
        self._squares = self._squares + squares if fits and self._squares is not None else squares
