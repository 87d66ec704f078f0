"""`GradkernCallback` for Lightning's Trainer, and `GradkernClipping` for modules that clip with a policy.

Works with the package `lightning`, or with `pytorch_lightning` if only that is installed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradkern.clipping.clipper import GradClipper
from gradkern.clipping.measure import measure
from gradkern.integrations.callback import TrainingMonitor
from gradkern.monitor import GradMonitor
from gradkern.params.stats import GradStats

if TYPE_CHECKING or importlib.util.find_spec("lightning") is not None:
    from lightning.pytorch import Callback, LightningModule
else:
    from pytorch_lightning import Callback, LightningModule


class GradkernCallback(Callback):  # type: ignore[misc]
    """Record the gradients of a Lightning Trainer. Norms are those before clipping.

    Args:
        run_dir: folder of the run. Default: "gradkern" in the Trainer's `default_root_dir`.
        options: further arguments of `GradMonitor`.

    Example:
        >>> trainer = Trainer(gradient_clip_val=1.0, callbacks=[GradkernCallback("runs/first")])
        >>> trainer.fit(module, loader)

    Notes:
        One row is recorded per optimizer step, also with `accumulate_grad_batches`. With several optimizers
        (manual optimization) it is one row per batch, or one per step of an optimizer that steps several
        times in a batch.

        The loss is the `loss` that `training_step` returns, averaged over the batches of the step. The number
        of the last step is saved in checkpoints. While training, `torch.nn.utils` is patched, so that
        Lightning clips with gradkern. With its `DeepSpeedStrategy` the engine is recorded, as by
        `gradkern.integrations.deepspeed.monitored`.
    """

    def __init__(self, run_dir: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self._training = TrainingMonitor(run_dir, options)
        self._losses: list[Tensor] = []
        self._last = self._seen = 0

    @property
    def monitor(self) -> GradMonitor:
        """The monitor of the current run.

        Raises:
            RuntimeError: training has not started, or has ended.
        """
        return self._training.monitor

    def state_dict(self) -> dict[str, Any]:
        """Called by Lightning when it saves a checkpoint."""
        return dict(self._training.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Called by Lightning when it loads a checkpoint."""
        self._training.load_state_dict(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start recording."""
        default = Path(trainer.default_root_dir) / "gradkern"
        optimizers = trainer.optimizers[0] if len(trainer.optimizers) == 1 else list(trainer.optimizers)
        engine = getattr(trainer.strategy, "deepspeed_engine", None)
        self._last = self._seen = self._training.start(pl_module, optimizers, default, engine).step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Measure the gradients here if nothing clips them."""
        if self._training.by_engine:
            return
        params = _params(optimizer)
        if pl_module.automatic_optimization:
            clipped = _clips(trainer, pl_module)
        else:  # a clip of the last of several optimizers has completed a step, at the beginning of this one
            clipped = self.monitor.has_collected(params) or self.monitor.step != self._seen
        if not clipped:
            self.monitor.collect(measure(params))
        self._seen = self.monitor.step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss to the step that this batch has completed."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
        if self.monitor.has_pending:  # several optimizers, or a GradScaler that has skipped the step
            self.monitor.record()
        if self.monitor.step != self._last:
            if self._losses:
                self.monitor.amend(self.monitor.step, loss=_loss_of_step(self._losses, pl_module))
            self._losses, self._last = [], self.monitor.step
        self._seen = self.monitor.step

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run."""
        self._training.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run."""
        self._training.stop()


class GradkernClipping:
    """Mixin for a LightningModule: ``Trainer(gradient_clip_val=...)`` clips with a `GradClipper`.

    Attributes:
        clipper_options: further arguments of `GradClipper`, for example ``{"on_nonfinite": "zero"}``.
        grad_stats: the `GradStats` of the last clip; None before the first.

    Example:
        >>> class Module(GradkernClipping, LightningModule):
        ...     clipper_options = {"on_nonfinite": "zero"}
    """

    clipper_options: Mapping[str, Any] = {}
    grad_stats: GradStats | None = None
    _clippers: dict[int, GradClipper] | None = None

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Called by Lightning before each optimizer step."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(_params(optimizer), gradient_clip_val)
            return
        if self._clippers is None:
            self._clippers = {}
        clipper = self._clippers.get(id(optimizer))
        if clipper is None:
            clipper = GradClipper(self._named(optimizer), gradient_clip_val, **self.clipper_options)
            self._clippers[id(optimizer)] = clipper
        clipper.max_norm = gradient_clip_val
        self.grad_stats = clipper.clip_()

    def _named(self, optimizer: Any) -> list[tuple[str, Tensor]]:
        module: Any = self
        names = {id(p): name for name, p in module.named_parameters()}
        return [(names.get(id(p), str(row)), p) for row, p in enumerate(_params(optimizer))]


def _params(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _clips(trainer: Any, pl_module: Any) -> bool:
    """Whether Lightning or the module clips after `on_before_optimizer_step`."""
    own = type(pl_module).configure_gradient_clipping is not LightningModule.configure_gradient_clipping
    mixin = isinstance(pl_module, GradkernClipping)
    return bool(trainer.gradient_clip_val) or (own and not mixin)


def _loss_of_step(losses: list[Tensor], pl_module: Any) -> Tensor:
    """The mean loss of a step. With automatic optimization Lightning has divided the losses already."""
    total = torch.stack(losses).sum()
    return total if pl_module.automatic_optimization else total / len(losses)
