"""`GradkernCallback` for the `transformers` Trainer, and what builds on it: TRL's trainers, PEFT models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import transformers

from gradkern._util.warning import warn
from gradkern.integrations.callback import TrainingMonitor
from gradkern.monitor import GradMonitor


class GradkernCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Records the gradients of a `transformers.Trainer`: per parameter, from before clipping.

    Args:
        run_dir: folder of the run; default: "gradkern" in the Trainer's `output_dir`.
        options: further arguments of `GradMonitor`, such as ``sinks=["tensorboard"]``.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[GradkernCallback("runs/first")])
        >>> trainer.train()

    Notes:
        One row an optimizer step, under its ``state.global_step``. The loss is the one that the Trainer
        logs, at the steps where it does (`logging_steps`). While training, `torch.nn.utils` is patched, so
        the Trainer clips with gradkern.
    """

    def __init__(self, run_dir: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self._training = TrainingMonitor(run_dir, options)
        self._warned = False

    @property
    def monitor(self) -> GradMonitor:
        """The monitor, while training."""
        return self._training.monitor

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Start recording; a resumed run continues its numbers."""
        monitor = self._training.start(model, optimizer, Path(args.output_dir) / "gradkern")
        monitor.load_state_dict({"step": state.global_step})

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the clip that the Trainer has just made."""
        if not self._training.running:
            return
        if self.monitor.has_pending:
            self.monitor.record(step=state.global_step + 1)
        elif not self._warned:
            self._warned = True
            warn(
                "[GradkernCallback] nothing is recorded: this Trainer does not clip with torch.nn.utils, as "
                "DeepSpeed and FSDP1 clip by themselves. For DeepSpeed use monitored(engine) of "
                "gradkern.integrations.deepspeed"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add the logged loss to its step."""
        loss = (logs or {}).get("loss")
        if self._training.running and loss is not None and self.monitor.step == state.global_step:
            self.monitor.amend(state.global_step, loss=loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the run."""
        self._training.stop()
