"""Megatron-core's training on CPUs: ``mcore.py FOLDER RANKS CASE…``, all ranks forked from one process.

Megatron-core names the device "cuda" and asks for the types of its tensors; `OnCpu` answers. The model,
gradient buffers, optimizers and process groups are Megatron's own.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import warnings
from dataclasses import dataclass
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
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.tensor_parallel import random  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402
from megatron.core.transformer.module import Float16Module  # noqa: E402
from megatron.core.transformer.moe import moe_utils  # noqa: E402

moe_utils.te_general_gemm = None  # not defined without Transformer Engine

VOCABULARY, LENGTH, MICRO, STEPS, CLIP, RATE = 32, 8, 2, 3, 0.5, 0.05


@dataclass
class Case:
    """Ranks of two that share layers (tp), stages (pp) or experts (ep); stages on each rank (vp); dtype;
    whether the optimizer is sharded over the others; loss scale; whether the last step is another run's, from
    a checkpoint."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    vp: int = 1
    dtype: str = "fp32"
    sharded: bool = False
    loss_scale: float = 1.0
    resumed: bool = False


CASES = {
    "dp": Case(),
    "tp": Case(tp=2),
    "pp": Case(pp=2),
    "vp": Case(pp=2, vp=2),
    "ep": Case(ep=2),
    "shards": Case(sharded=True),
    "ep-shards": Case(ep=2, sharded=True),
    "bf16": Case(dtype="bf16"),
    "bf16-shards": Case(dtype="bf16", sharded=True),
    "bf16-resumed": Case(dtype="bf16", resumed=True),
    "fp16": Case(dtype="fp16", loss_scale=2.0**8),
    "overflow": Case(dtype="fp16", loss_scale=2.0**30),
}


class OnCpu(TorchFunctionMode):
    """Makes tensors on the CPU, whatever device is named, and reports the types that they would have on a
    GPU."""

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


def model_of(case):
    torch.manual_seed(0)
    tensor_parallel.model_parallel_cuda_manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[case.dtype]
    experts = {} if case.ep == 1 else {"num_moe_experts": 4, "moe_token_dispatcher_type": "allgather"}
    config = TransformerConfig(
        num_layers=2 * case.vp, hidden_size=16, num_attention_heads=2, use_cpu_initialization=True,
        hidden_dropout=0.0, attention_dropout=0.0, gradient_accumulation_fusion=False,
        bf16=case.dtype == "bf16", fp16=case.dtype == "fp16", bias_dropout_fusion=False,
        masked_softmax_fusion=False, tensor_model_parallel_size=case.tp, params_dtype=dtype,
        pipeline_model_parallel_size=case.pp, pipeline_dtype=dtype, batch_p2p_sync=False,
        expert_model_parallel_size=case.ep, **experts,
        virtual_pipeline_model_parallel_size=case.vp if case.vp > 1 else None,
    )  # fmt: skip
    layer = get_gpt_layer_local_spec(num_experts=config.num_moe_experts)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=case.sharded
    )
    chunks = []
    for stage in range(case.vp):
        where = {"ignore_virtual": False, "vp_stage": stage if case.vp > 1 else None}
        chunks.append(
            GPTModel(
                config,
                layer,
                VOCABULARY,
                LENGTH,
                vp_stage=where["vp_stage"],
                pre_process=parallel_state.is_pipeline_first_stage(**where),
                post_process=parallel_state.is_pipeline_last_stage(**where),
            )
        )
    inner = chunks if case.dtype == "fp32" else [Float16Module(config, chunk) for chunk in chunks]
    bare = chunks[0] if case.vp == 1 else torch.nn.ModuleList(chunks)
    return bare, [DistributedDataParallel(config, ddp, one) for one in inner]


def optimizer_of(case, model):
    config = OptimizerConfig(
        optimizer="adam", adam_eps=1e-2, lr=RATE, weight_decay=0.0, clip_grad=CLIP,
        bf16=case.dtype == "bf16", fp16=case.dtype == "fp16", initial_loss_scale=case.loss_scale,
        use_distributed_optimizer=case.sharded,
    )  # fmt: skip
    optimizer = get_megatron_optimizer(config, model)
    model[0].config.grad_scale_func = optimizer.scale_loss
    model[0].config.finalize_model_grads_func = finalize_model_grads
    return optimizer


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


def forward(words, model):
    """A step of Megatron's schedules: the output of a micro-batch, and the function of its loss."""
    words = next(words)
    positions = torch.arange(LENGTH).expand(2, -1)
    mask = torch.ones(1, 1, LENGTH, LENGTH).triu(1).bool()

    def loss_of(output):
        loss = output.float().mean()
        return loss, {"lm loss": loss.detach()}

    return model(words[:, :-1], positions, mask, labels=words[:, 1:]), loss_of


def train_steps(case, bare, model, optimizer, told, numbers, monitor=None):
    """Steps of these numbers, from 1, by Megatron's own schedule."""
    for number in numbers:
        for chunk in model:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        losses = get_forward_backward_func()(
            forward_step_func=forward, data_iterator=[iter(batches()[number - 1]) for _ in model],
            model=model, num_microbatches=MICRO, seq_length=LENGTH, micro_batch_size=2, forward_only=False,
        )  # fmt: skip
        if not case.sharded:
            scale = optimizer.get_loss_scale().item()
            told["norms"].append([n / scale for n in whole_norms(bare)])
        for group in optimizer.param_groups:
            group["lr"] = RATE / number
        _, total, _ = optimizer.step()
        told["totals"].append(total)
        if losses:  # those of the last stage
            told["losses"].append(torch.stack([loss["lm loss"] for loss in losses]).mean().item())
            if monitor is not None:
                monitor.amend(monitor.step, loss=told["losses"][-1])


def train(case, run=None):
    from gradkern.integrations.megatron import monitored

    parallel_state.initialize_model_parallel(
        case.tp, case.pp, case.vp if case.vp > 1 else None, expert_model_parallel_size=case.ep
    )
    told, state = {"losses": [], "norms": [], "totals": []}, None
    pieces = [range(1, 3), range(3, STEPS + 1)] if case.resumed and run else [range(1, STEPS + 1)]
    for numbers in pieces:
        bare, model = model_of(case)
        optimizer = optimizer_of(case, model)
        if state is not None:
            bare.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        if run is None:
            train_steps(case, bare, model, optimizer, told, numbers)
        else:
            step = type(optimizer).step
            with monitored(optimizer, model, run) as monitor:
                monitor.load_state_dict({"step": numbers[0] - 1})
                train_steps(case, bare, model, optimizer, told, numbers, monitor)
            assert optimizer.step.__func__ is step
        state = None if case.sharded else copy.deepcopy((bare.state_dict(), optimizer.state_dict()))
    parallel_state.destroy_model_parallel()
    told["names"] = [name for name, _ in bare.named_parameters()]
    told["of_experts"] = [not getattr(param, "allreduce", True) for param in bare.parameters()]
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
        for name in cases:
            told, plain = train(CASES[name])
            _, trained = train(CASES[name], folder / name)
            told["difference"] = max((a - b).abs().max().item() for a, b in zip(plain, trained, strict=True))
            (folder / f"{name}.{rank}.json").write_text(json.dumps(told))


def main(folder, world, cases):
    """Run the ranks; the exit status tells whether one has failed."""
    return run_forked(as_rank, world, free_port(), folder, cases)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
