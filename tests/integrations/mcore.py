"""Megatron-core's training on CPUs: ``mcore.py FOLDER RANKS CASE…``, all ranks forked from one process.

Megatron-core names the device "cuda" and asks for the types of its tensors; `OnCpu` answers. The model,
gradient buffers, optimizers and process groups are Megatron's own.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from tests.distributed.ranks import free_port, run_forked

torch.set_num_threads(1)
warnings.simplefilter("ignore")
from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.tensor_parallel import random  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402
from megatron.core.transformer.module import Float16Module  # noqa: E402

VOCABULARY, LENGTH, MICRO, STEPS, CLIP, RATE = 32, 8, 2, 3, 0.5, 0.05

#: Tensor-parallel ranks of two, dtype, whether the optimizer is sharded over the others, loss scale of fp16.
CASES = {
    "dp": (1, "fp32", False, 1.0),
    "tp": (2, "fp32", False, 1.0),
    "shards": (1, "fp32", True, 1.0),
    "bf16": (1, "bf16", False, 1.0),
    "bf16-shards": (1, "bf16", True, 1.0),
    "fp16": (1, "fp16", False, 2.0**8),
    "overflow": (1, "fp16", False, 2.0**30),
}


class OnCpu(TorchFunctionMode):
    """Makes tensors on the CPU whatever device is named, and gives them the types that a GPU's would have."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if "device" in kwargs and kwargs["device"] is not None:
            kwargs["device"] = "cpu"
        if function is torch.Tensor.cuda:
            return args[0]
        result = function(*args, **kwargs)
        if function is torch.Tensor.type and len(args) == 1:
            return result.replace("torch.", "torch.cuda.")
        return result


def model_of(dtype, sharded):
    torch.manual_seed(0)
    tensor_parallel.model_parallel_cuda_manual_seed(0)
    config = TransformerConfig(
        num_layers=2, hidden_size=16, num_attention_heads=2, use_cpu_initialization=True,
        hidden_dropout=0.0, attention_dropout=0.0, gradient_accumulation_fusion=False,
        bf16=dtype == "bf16", fp16=dtype == "fp16", bias_dropout_fusion=False, masked_softmax_fusion=False,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        params_dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype],
    )  # fmt: skip
    bare = GPTModel(config, get_gpt_layer_local_spec(), VOCABULARY, LENGTH)
    inner = bare if dtype == "fp32" else Float16Module(config, bare)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=sharded
    )
    return bare, DistributedDataParallel(config, ddp, inner)


def batches():
    generator = torch.Generator().manual_seed(1 + parallel_state.get_data_parallel_rank())
    return torch.randint(0, VOCABULARY, (STEPS, MICRO, 2, LENGTH + 1), generator=generator)


def whole_norms(bare):
    """float64 norms of the gradients as Megatron's buffers have them after `finalize_model_grads`, over all
    tensor-parallel ranks. Not for the sharded optimizer, whose buffers hold parts."""
    found = []
    for param in bare.parameters():
        square = param.main_grad.double().square().sum()
        if getattr(param, "tensor_model_parallel", False):
            torch.distributed.all_reduce(square, group=parallel_state.get_tensor_model_parallel_group())
        found.append(square.sqrt().item())
    return found


def train(case, run=None):
    from gradkern.integrations.megatron import monitored

    tp, dtype, sharded, loss_scale = CASES[case]
    parallel_state.initialize_model_parallel(tp)
    bare, model = model_of(dtype, sharded)
    config = OptimizerConfig(
        optimizer="adam", adam_eps=1e-2, lr=RATE, weight_decay=0.0, clip_grad=CLIP,
        bf16=dtype == "bf16", fp16=dtype == "fp16", initial_loss_scale=loss_scale,
        use_distributed_optimizer=sharded,
    )  # fmt: skip
    optimizer = get_megatron_optimizer(config, [model])
    told = {"losses": [], "norms": [], "totals": []}
    positions = torch.arange(LENGTH).expand(2, -1)
    mask = torch.ones(1, 1, LENGTH, LENGTH).triu(1).bool()

    def steps(monitor=None):
        for number, batch in enumerate(batches(), 1):
            model.zero_grad_buffer()
            optimizer.zero_grad()
            losses = []
            for words in batch:
                loss = model(words[:, :-1], positions, mask, labels=words[:, 1:]).float().mean()
                (optimizer.scale_loss(loss) / MICRO).backward()
                losses.append(loss.detach())
            finalize_model_grads([model])
            if not sharded:
                scale = optimizer.get_loss_scale().item()
                told["norms"].append([n / scale for n in whole_norms(bare)])
            for group in optimizer.param_groups:
                group["lr"] = RATE / number
            _, total, _ = optimizer.step()
            told["totals"].append(total)
            told["losses"].append(torch.stack(losses).mean().item())
            if monitor is not None:
                monitor.amend(monitor.step, loss=told["losses"][-1])

    if run is None:
        steps()
    else:
        step = type(optimizer).step
        with monitored(optimizer, model, run) as monitor:
            steps(monitor)
        assert optimizer.step.__func__ is step
    parallel_state.destroy_model_parallel()
    told["names"] = [name for name, _ in bare.named_parameters()]
    return told, [param.detach().clone() for param in bare.parameters()]


def as_rank(rank, world, port, folder, cases):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    torch.distributed.init_process_group("gloo")
    with OnCpu():
        for case in cases:
            told, plain = train(case)
            _, trained = train(case, folder / case)
            told["difference"] = max((a - b).abs().max().item() for a, b in zip(plain, trained, strict=True))
            (folder / f"{case}.{rank}.json").write_text(json.dumps(told))


def main(folder, world, cases):
    """Run the ranks; the exit status tells whether one has failed."""
    return run_forked(as_rank, world, free_port(), folder, cases)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
