"""DeepSpeed engines on CPUs: ``zero.py FOLDER RANKS CASE…``, all ranks forked from one process."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

os.environ["DS_ACCELERATOR"] = "cpu"
torch.set_num_threads(1)
import deepspeed  # noqa: E402
import deepspeed.comm.torch  # noqa: E402
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402 - here, and not in every rank
from deepspeed.accelerator import get_accelerator  # noqa: E402

from tests.distributed.ranks import free_port, run_forked  # noqa: E402

# It would compile its shared-memory operation at the first use. (`deepspeed.comm.torch` is torch itself.)
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
get_accelerator().is_fp16_supported = lambda: True  # "not supported" on CPUs, but a small model gets through
STEPS, MICRO, CLIP, RATE = 4, 2, 0.5, 0.1


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def batches(rank):
    generator = torch.Generator().manual_seed(rank + 1)
    return torch.randn(STEPS, MICRO, 4, 6, generator=generator)


def loss_of(module, x):
    return (module(x) - x.sum(dim=1, keepdim=True)).float().square().mean()


def settings(stage, precision):
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": MICRO,
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        precision: {"enabled": True, **({"initial_scale_power": 8} if precision == "fp16" else {})},
        "steps_per_print": 10**9,
    }


def train(stage, precision, rank, run=None, steps=slice(None), checkpoint=None):
    from gradkern.integrations.deepspeed import monitored

    module = model()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        config=settings(stage, precision),
        dist_init_required=False,
    )
    if checkpoint is not None and checkpoint.exists():
        engine.load_checkpoint(str(checkpoint))
    losses = []
    with contextlib.nullcontext() if run is None else monitored(engine, run):
        for step in batches(rank)[steps]:
            for x in step:
                loss = loss_of(engine, x.to(next(engine.parameters()).dtype))
                engine.backward(loss)
                engine.step()
                losses.append(loss.item())
    if checkpoint is not None:
        engine.save_checkpoint(str(checkpoint))
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        trained = [p.detach().float().clone() for p in engine.module.parameters()]
    return losses, trained


def reference(world):
    """The same training in float64 and one process: norms of every parameter at each step."""
    module, rate, norms = model().double(), RATE, []
    for step in zip(*(batches(rank) for rank in range(world))):
        module.zero_grad()
        torch.stack([loss_of64(module, x) for rank in step for x in rank.double()]).mean().backward()
        grads = [p.grad for p in module.parameters()]
        norms.append([g.norm().item() for g in grads])
        total = torch.tensor(norms[-1]).norm().item()
        with torch.no_grad():
            for p in module.parameters():
                p -= rate * min(1.0, CLIP / (total + 1e-6)) * p.grad
        rate /= 2
    return norms


def loss_of64(module, x):
    return (module(x) - x.sum(dim=1, keepdim=True)).square().mean()


def as_rank(rank, world, port, folder, cases):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    for case in cases:
        stage, precision, *resumed = case.split(":")
        _, plain = train(int(stage), precision, rank)
        losses, pieces = [], [slice(0, 2), slice(2, None)] if resumed else [slice(None)]
        for piece in pieces:
            checkpoint = folder / "checkpoint" if resumed else None
            more, trained = train(int(stage), precision, rank, folder / case, piece, checkpoint)
            losses += more
        difference = max((a - b).abs().max().item() for a, b in zip(plain, trained))
        told = {"losses": losses, "difference": difference, "norms": reference(world)}
        (folder / f"{case}.{rank}.json").write_text(json.dumps(told))


def main(folder, world, cases):
    """Run the ranks; the exit status tells whether one has failed."""
    return run_forked(as_rank, world, free_port(), folder, cases)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
