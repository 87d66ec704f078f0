"""Frameworks that train with DeepSpeed, in one process: ``zero_callbacks.py FOLDER FRAMEWORK…``."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from tests.distributed.ranks import free_port
from tests.integrations import zero  # first: it tells DeepSpeed to use the CPU

STEPS, MICRO = 3, 2


def settings():
    """The settings of `zero` that neither the Trainer nor Lightning sets."""
    given = zero.settings(2, "fp32")
    del given["gradient_accumulation_steps"], given["gradient_clipping"]
    return given


def watched(engine_class, model_of, found):
    """Collects float64 norms of the gradients that an engine steps with."""
    from deepspeed.utils import safe_get_full_grad

    step = engine_class.step

    def note_and_step(engine, *args, **kwargs):
        if engine.is_gradient_accumulation_boundary():
            params = model_of(engine).parameters()
            found.append([safe_get_full_grad(p).double().norm().item() for p in params])
        return step(engine, *args, **kwargs)

    engine_class.step = note_and_step
    return step


def with_trainer(folder, callbacks):
    import transformers

    from tests.integrations.test_transformers import arguments, data, model_of

    config = settings() | {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": "auto"}
    options = {"deepspeed": config, "optim": "sgd"}
    given = arguments(folder, max_steps=STEPS, gradient_accumulation_steps=MICRO, **options)
    trainer = transformers.Trainer(model_of(), given, train_dataset=data(), callbacks=callbacks)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.model


def with_lightning(folder, callbacks):
    import lightning.pytorch.strategies.deepspeed as strategies
    from lightning.pytorch.accelerators import CPUAccelerator

    from tests.integrations.test_lightning import fitted, module_class

    strategies.CUDAAccelerator = CPUAccelerator  # DeepSpeed itself trains on CPUs
    strategies._validate_device_index_selection = lambda devices: None

    class OnCpu(strategies.DeepSpeedStrategy):
        root_device = property(lambda self: torch.device("cpu", 0))

    module, strategy = module_class()(), OnCpu(config=settings(), process_group_backend="gloo")
    more = {"strategy": strategy, "devices": 1, "max_steps": STEPS, "accumulate_grad_batches": MICRO}
    fitted(folder, module, callbacks, **more)
    return np.reshape(module.losses, (STEPS, MICRO)).mean(axis=1).tolist(), module


def main(folder, frameworks):
    """Train with each framework, without and with its callback."""
    from deepspeed import DeepSpeedEngine

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(free_port()), GLOO_SOCKET_IFNAME="lo")
    zero.deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    for name in frameworks:
        module = importlib.import_module(f"gradkern.integrations.{name}")
        train = {"transformers": with_trainer, "lightning": with_lightning}[name]
        found = []
        step = watched(DeepSpeedEngine, lambda engine: engine.module, found)
        losses, plain = train(folder / "plain", [])
        DeepSpeedEngine.step = step
        _, trained = train(folder / "ours", [module.GradkernCallback(folder / name)])
        pairs = zip(plain.parameters(), trained.parameters(), strict=True)
        told = {
            "norms": found,
            "losses": losses,
            "names": [n for n, _ in trained.named_parameters()],
            "difference": max((a - b).abs().max().item() for a, b in pairs),
        }
        (folder / f"{name}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
