"""`GradientOverTime`: how much each time step of a sequence counts in the loss of a recurrent network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradkern.history.named import OVER_TIME

__all__ = ["GradientOverTime"]

#: Positions that a sequence is reduced to; `record` takes tensors of so many elements.
MOST_POSITIONS = 64


class GradientOverTime:
    """Norm of the gradient at a recurrent module's input, for each time step.

    A parameter of a recurrent network gets the sum of the gradients of all time steps. The last ones keep it
    large, so that no parameter shows that the first ones have vanished. The input does: the gradient at
    ``input[t]`` is what step t still adds to the loss.

    Args:
        module: an `nn.RNN`, `nn.LSTM`, `nn.GRU`, or another module whose first argument is a sequence.
        name: of the numbers; by default the module's class in lower case.
        batch_first: whether time is the second dimension of a batch. By default `module.batch_first`,
            else False.

    Raises:
        TypeError: `module` is no Module.

    Notes:
        Costs the gradient at the module's input, where it is not needed anyway, and one reduction of it a
        step. Does not wait for a device. Of a longer sequence each of the 64 positions is the root of the
        mean square of its neighbours. A `PackedSequence` is passed over, and so is a call that needs no
        gradient. Not for modules under `torch.compile`.

        The profile is flat where the loss is taken at every time step, whatever the network remembers.

    Example:
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
        """What was seen since the last call, for `record`'s `extra`: a name and the norms [at most 64]. Empty
        if there was no backward pass. Several passes (accumulation) are added up."""
        squares, self._squares = self._squares, None
        return {} if squares is None else {f"{OVER_TIME}{self.name}": squares.sqrt()}

    def close(self) -> None:
        """Take the hook off."""
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
