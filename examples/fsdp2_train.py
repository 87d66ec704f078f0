"""Train a small transformer with FSDP2: sharded parameters, gradkern's clip and monitor, checkpoint, resume.

On two CPU processes (gloo), and again to resume where it stopped; RUN is a folder of yours:

    torchrun --nproc-per-node 2 examples/fsdp2_train.py --steps 20 --folder RUN
    torchrun --nproc-per-node 2 examples/fsdp2_train.py --steps 40 --folder RUN
    gradkern report RUN/gradients

With GPUs in the machine the same command uses NCCL (written for it, not run on it yet).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import gradkern

VOCABULARY, CONTEXT = 64, 32


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, width: int = 64, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def batch(step: int, rank: int, device: torch.device) -> Tensor:
    """Counting sequences modulo the vocabulary; depends on step and rank alone, so a run can resume."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    start = torch.randint(VOCABULARY, (8, 1), generator=generator)
    stride = torch.randint(1, 4, (8, 1), generator=generator)
    return ((start + stride * torch.arange(CONTEXT + 1)) % VOCABULARY).to(device)


def sharded_model(device: torch.device, bf16: bool) -> nn.Module:
    torch.manual_seed(0)
    model = Transformer().to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("dp",))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if bf16 else MixedPrecisionPolicy()
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, monitor: gradkern.GradMonitor
) -> None:
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments, "monitor": monitor.state_dict()}
    dcp.save(state, checkpoint_id=str(path / f"step-{monitor.step:06d}"))


def resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, monitor: gradkern.GradMonitor
) -> None:
    """Load the last complete checkpoint, if there is one; the monitor then knows the step."""
    complete = sorted(p.parent for p in path.glob("step-*/.metadata"))
    if not complete:
        monitor.load_state_dict({"step": 0})  # what an interrupted run recorded is recorded again
        return
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments, "monitor": monitor.state_dict()}
    dcp.load(state, checkpoint_id=str(complete[-1]))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    monitor.load_state_dict(state["monitor"])


def train(arguments: argparse.Namespace, device: torch.device) -> None:
    rank = dist.get_rank()
    model = sharded_model(device, arguments.bf16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    clipper = gradkern.GradClipper(model, max_norm=1.0, on_nonfinite="skip")
    monitor = gradkern.GradMonitor(model, optimizer, arguments.folder / "gradients")  # rank 0 writes
    resume(arguments.folder / "checkpoints", model, optimizer, monitor)
    if rank == 0 and monitor.step:
        print(f"resumed after step {monitor.step}")
    for step in range(monitor.step, arguments.steps):
        tokens = batch(step, rank, device)
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        stats = clipper.clip_()  # the same norm on every rank
        monitor.record(stats, loss=loss)
        if not bool(stats.skip_step):
            optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and (step + 1) % 5 == 0:
            worst = stats.names[int(stats.rms.argmax())]
            print(
                f"step {step + 1:4d}  loss {loss.item():.4f}  norm {stats.total_norm.item():.5f}  "
                f"coef {stats.clip_coef.item():.4f}  largest rms {worst}",
                flush=True,
            )
        if (step + 1) % arguments.save_every == 0 or step + 1 == arguments.steps:
            save(arguments.folder / "checkpoints", model, optimizer, monitor)
    monitor.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and history; gone on with")
    parser.add_argument("--save-every", type=int, default=100, help="optimizer steps between checkpoints")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 parameters and gradients on the way")
    arguments = parser.parse_args()
    use_cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if use_cuda else "gloo")
    device = torch.device("cpu")
    if use_cuda:
        device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count())
        torch.cuda.set_device(device)
    try:
        train(arguments, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
