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

from gradkern._util.warning import warn
from gradkern.clipping.clipper import GradClipper
from gradkern.clipping.measure import measure
from gradkern.integrations.callback import TrainingMonitor
from gradkern.monitor import GradMonitor
from gradkern.params import steps
from gradkern.params.stats import GradStats

if TYPE_CHECKING or importlib.util.find_spec("lightning") is not None:
    from lightning.pytorch import Callback
else:
    from pytorch_lightning import Callback


class GradkernCallback(Callback):  # type: ignore[misc]
    """Record the gradients of a Lightning Trainer. Norms are those before clipping.

    Several callbacks need different folders.

    Args:
        run_dir: folder of the run. Default: "gradkern" in the Trainer's `default_root_dir`.
        options: further arguments of `GradMonitor`.

    Examples:
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

        Gradients that nothing clips are measured before the step. With manual optimization they are recorded
        as "measured", because the module may have changed them by hand.

    Raises:
        TypeError: an option that `GradMonitor` does not have.

    Warns:
        GradkernWarning: the module changed gradients by hand before they were measured.
    """

    def __init__(self, run_dir: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self._training = TrainingMonitor(run_dir, options)
        self._losses: list[Tensor] = []
        self._last = self._seen = 0
        self._after_backward: dict[int, steps.SeenGradient | None] = {}  # of each optimizer
        self._warned = False

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint, a different one for each `run_dir`."""
        if self._training.run_dir is None:
            return str(super().state_key)
        return str(self._generate_state_key(run_dir=os.fspath(self._training.run_dir)))

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

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
        """Continue a checkpoint that was saved with another `run_dir`. Called before `load_state_dict`."""
        name = type(self).__qualname__
        states = [
            state for key, state in checkpoint.get("callbacks", {}).items() if str(key).startswith(name)
        ]
        if states:
            self.load_state_dict(states[0])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start recording."""
        default = Path(trainer.default_root_dir) / "gradkern"
        optimizers = trainer.optimizers[0] if len(trainer.optimizers) == 1 else list(trainer.optimizers)
        engine = getattr(trainer.strategy, "deepspeed_engine", None)
        self._last = self._seen = self._training.start(pl_module, optimizers, default, engine).step

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Remember the gradients, before the module's code can change them."""
        self._after_backward = {
            id(one): steps.SeenGradient.first_of(_params(one)) for one in trainer.optimizers
        }

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Measure the gradients here if nothing clips them."""
        if self._training.by_engine:
            return
        params = _params(optimizer)
        automatic = pl_module.automatic_optimization
        if automatic:
            clipped = self.monitor.has_collected(params) or _will_clip(trainer, pl_module)
        else:  # a clip of the last of several optimizers has completed a step, at the beginning of this one
            clipped = self.monitor.has_collected(params) or self.monitor.step != self._seen
        if not clipped:
            changed = self._changed_by_hand(trainer, optimizer)
            self.monitor.collect(measure(params), before_clip=automatic and not changed)
        self._seen = self.monitor.step

    def _changed_by_hand(self, trainer: Any, optimizer: Any) -> bool:
        """Whether gradients have changed since the backward pass. A GradScaler changes them too."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return False
        gradient = self._after_backward.get(id(optimizer))
        changed = gradient is not None and bool(gradient.has_changed())
        if changed and not self._warned:
            self._warned = True
            warn(
                "[GradkernCallback] the module changes its gradients by hand after backward, so that the "
                'norms may be those after clipping; they are recorded as "measured". Clip with '
                "gradkern.clip_grad_norm_ or torch.nn.utils, or in configure_gradient_clipping"
            )
        return changed

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss to the step that this batch has completed."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            # With automatic optimization Lightning has divided the losses.
            parts = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._losses.append(loss.detach() * parts)
        self.monitor.end_step()  # for several optimizers, or a GradScaler that has skipped the step
        if self.monitor.step != self._last:
            if self._losses:
                self.monitor.amend(self.monitor.step, loss=torch.stack(self._losses).mean())
            self._losses, self._last = [], self.monitor.step
        self._seen = self.monitor.step

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run."""
        self._training.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run."""
        self._training.stop()


class GradkernClipping:
    """Mixin for a LightningModule that clips with a `GradClipper`.

    The limit is ``Trainer(gradient_clip_val=...)``, or a policy or groups in `clipper_options`.

    Attributes:
        clipper_options: further arguments of `GradClipper`, for example ``{"on_nonfinite": "zero"}`` or
            ``{"policy": gradkern.policies.ZClip()}``.
        grad_stats: the `GradStats` of the last clip; None before the first.

    Examples:
        >>> class Module(GradkernClipping, LightningModule):
        ...     clipper_options = {"on_nonfinite": "zero"}

    Warns:
        GradkernWarning: `gradient_clip_val` is given in addition to a policy or groups, and is ignored.
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
        own = self._has_own_limit()
        if not own and not gradient_clip_val:
            return
        if not own and gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(_params(optimizer), gradient_clip_val)
            return
        if self._clippers is None:
            self._clippers = {}
        clipper = self._clippers.get(id(optimizer))
        if clipper is None:
            clipper = self._clippers[id(optimizer)] = self._clipper(optimizer, gradient_clip_val)
        if not own and gradient_clip_val:
            clipper.max_norm = gradient_clip_val
        self.grad_stats = clipper.clip_()

    def _has_own_limit(self) -> bool:
        return not {"max_norm", "policy", "groups"}.isdisjoint(self.clipper_options)

    def _clipper(self, optimizer: Any, max_norm: float | None) -> GradClipper:
        options = {**self.clipper_options}
        if not self._has_own_limit():
            options["max_norm"] = max_norm
        elif max_norm:
            warn(
                "[GradkernClipping] gradient_clip_val is ignored, because clipper_options has a limit of its "
                "own; leave one of them out"
            )
        return GradClipper(self._named(optimizer), **options)

    def _named(self, optimizer: Any) -> list[tuple[str, Tensor]]:
        module: Any = self
        names = {id(p): name for name, p in module.named_parameters()}
        return [(names.get(id(p), str(row)), p) for row, p in enumerate(_params(optimizer))]


def _params(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _will_clip(trainer: Any, pl_module: Any) -> bool:
    """Whether Lightning or the mixin clips after `on_before_optimizer_step`. What a module's own
    `configure_gradient_clipping` will do is not known: gradients are measured before it."""
    if isinstance(pl_module, GradkernClipping):
        return bool(trainer.gradient_clip_val) or pl_module._has_own_limit()
    package = type(pl_module).configure_gradient_clipping.__module__.partition(".")[0]
    return bool(trainer.gradient_clip_val) and package in ("lightning", "pytorch_lightning")
