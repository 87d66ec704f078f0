"""`GradkernCallback` for the Trainer of `transformers` and trainers that build on it, such as TRL's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import transformers

from gradkern._util.warning import warn
from gradkern.integrations.callback import TrainingMonitor, engine_of
from gradkern.monitor import GradMonitor


class GradkernCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Record the gradients of a `transformers.Trainer`. Norms are those before clipping.

    Works for trainers that build on it (TRL) and for PEFT models too.

    Args:
        run_dir: folder of the run. Default: "gradkern" in the Trainer's `output_dir`.
        options: further arguments of `GradMonitor`, for example ``sinks=["tensorboard"]``.

    Examples:
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[GradkernCallback("runs/first")])
        >>> trainer.train()

    Notes:
        One row is recorded per optimizer step, under ``state.global_step``. The loss is the one that the
        Trainer logs, at the steps that it logs (`logging_steps`). While training, `torch.nn.utils` is
        patched, so that the Trainer clips with gradkern.

        With DeepSpeed the engine is recorded, as by `gradkern.integrations.deepspeed.monitored`.

    Warns:
        GradkernWarning: the Trainer does not clip with `torch.nn.utils`, so that nothing is recorded.
    """

    def __init__(self, run_dir: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self._training = TrainingMonitor(run_dir, options)
        self._warned = False

    @property
    def monitor(self) -> GradMonitor:
        """The monitor of the current run.

        Raises:
            RuntimeError: training has not started, or has ended.
        """
        return self._training.monitor

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Start recording. A resumed run continues its step numbers."""
        folder = Path(args.output_dir) / "gradkern"
        monitor = self._training.start(model, optimizer, folder, engine_of(model))
        monitor.load_state_dict({"step": state.global_step})

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the clip that the Trainer has just made."""
        if not self._training.running or self._training.by_engine:
            return
        if self.monitor.has_pending:
            self.monitor.record(step=state.global_step + 1)
        elif not self._warned:
            self._warned = True
            warn(
                "[GradkernCallback] nothing is recorded, because this Trainer does not clip with "
                "torch.nn.utils. Sharded FSDP1 clips by itself; use FSDP2 (fsdp_version: 2)"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add the logged loss to its step."""
        loss = (logs or {}).get("loss")
        if self._training.running and loss is not None and self.monitor.step == state.global_step:
            self.monitor.amend(state.global_step, loss=loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the run."""
        self._training.stop()
