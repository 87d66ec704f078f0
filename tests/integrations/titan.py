"""torchtitan's own Trainer on CPUs: ``titan.py FOLDER RANKS MODE…``, all ranks forked from one process.

torchtitan is written for GPUs. This module answers its queries about the GPU. It leaves out the Triton
kernels, which one kind of expert parallelism uses, replaces FlexAttention, which has no backward on a CPU, by
causal attention, and keeps the timeouts of process groups, since torch 2.13 has no ``set_timeout``.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path


class _Anything(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class _Cpu(types.ModuleType):
    def __getattr__(self, name):
        return getattr(torch.cpu, name)

    get_device_name = staticmethod(lambda device=None: "cpu")
    get_device_properties = staticmethod(lambda device=None: types.SimpleNamespace(total_memory=2**34))
    memory_stats = staticmethod(lambda device=None: {})
    reset_peak_memory_stats = empty_cache = staticmethod(lambda: None)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 64)


import torch  # noqa: E402
import torch._utils  # noqa: E402

torch.compiler.set_stance("force_eager")  # torchtitan compiles how it makes masks
torch.set_num_threads(1)
torch._utils._get_available_device_type = lambda: "cpu"
_kernels = "torchtitan.distributed.minimal_async_ep.kernels"
sys.modules[_kernels] = _Anything(_kernels)
from torchtitan.tools import utils as tools  # noqa: E402

tools.device_module = _Cpu("cpu")
from torch.distributed.fsdp import FSDPModule  # noqa: E402
from torchtitan import trainer as titan  # noqa: E402
from torchtitan.components.checkpoint import CheckpointManager  # noqa: E402
from torchtitan.components.dataloader import BaseDataLoader  # noqa: E402
from torchtitan.components.loss import CrossEntropyLoss  # noqa: E402
from torchtitan.components.metrics import MetricsProcessor  # noqa: E402
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw  # noqa: E402
from torchtitan.components.tokenizer import BaseTokenizer  # noqa: E402
from torchtitan.config import ParallelismConfig, TrainingConfig  # noqa: E402
from torchtitan.distributed import utils as dist_utils  # noqa: E402
from torchtitan.models import llama3, qwen3  # noqa: E402
from torchtitan.models.common.attention import FlexAttention  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402

from tests.distributed.ranks import free_port, run_forked  # noqa: E402


def causal_attention(query, key, value, *, scale, enable_gqa, **_):
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, is_causal=True, scale=scale, enable_gqa=enable_gqa), None


FlexAttention._compiled_flex_attn = staticmethod(causal_attention)
titan.time = types.SimpleNamespace(
    perf_counter=time.perf_counter, sleep=lambda seconds: None
)  # 2 s a training
dist_utils.set_pg_timeouts = lambda timeout, parallel_dims: None
VOCABULARY, LENGTH, BATCH, STEPS = 64, 128, 2, 3


class Words(BaseDataLoader):
    """Random words; each data-parallel rank has its own."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        pass

    def __init__(self, config, *, dp_world_size, dp_rank, tokenizer, seq_len, local_batch_size, **more):
        self.shape = (local_batch_size, seq_len + 1)
        self.rank, self.served = dp_rank, 0

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(1000 * self.served + self.rank)
            words = torch.randint(0, VOCABULARY, self.shape, generator=generator)
            positions = torch.arange(self.shape[1] - 1).expand(self.shape[0], -1).contiguous()
            self.served += 1
            yield {"input": words[:, :-1].contiguous(), "positions": positions}, words[:, 1:].contiguous()

    def state_dict(self):
        return {"served": self.served}

    def load_state_dict(self, state_dict):
        self.served = state_dict["served"]


class NoTokenizer(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config=None, *, tokenizer_path):
        super().__init__()

    def encode(self, *args, **kwargs):
        return []

    def decode(self, *args, **kwargs):
        return ""

    def get_vocab_size(self):
        return VOCABULARY


def dense():
    builder = llama3._build_llama3_layers
    dim, heads = 32, 4
    rope = llama3.ComplexRoPE.Config(dim=dim // heads, max_seq_len=LENGTH, theta=10000)
    spec = llama3.model_registry("debugmodel")
    model = spec.model
    model.dim, model.vocab_size = dim, VOCABULARY
    model.tok_embeddings.num_embeddings, model.tok_embeddings.embedding_dim = VOCABULARY, dim
    model.norm.normalized_shape = dim
    model.lm_head.in_features, model.lm_head.out_features = dim, VOCABULARY
    model.layers = builder(n_layers=2, dim=dim, n_heads=heads, hidden_dim=64, rope=rope, attn_backend="flex")
    return spec


def experts():
    dim, head = 32, 8
    spec = qwen3.model_registry("debugmodel_moe")
    model = spec.model
    model.dim, model.vocab_size = dim, VOCABULARY
    model.tok_embeddings.num_embeddings, model.tok_embeddings.embedding_dim = VOCABULARY, dim
    model.norm.normalized_shape = dim
    model.lm_head.in_features, model.lm_head.out_features = dim, VOCABULARY
    model.layers = qwen3._build_qwen3_moe_layers(
        fuse_qkv=True, n_layers=2, dim=dim, n_heads=4, n_kv_heads=2, head_dim=head, moe_hidden_dim=16,
        num_experts=8, top_k=2, attn_backend="flex", moe_comm_backend="standard",
        rope=qwen3.CosSinRoPE.Config(dim=head, max_seq_len=LENGTH, theta=10000.0),
    )  # fmt: skip
    return spec


#: How four ranks share the work. The default way of marking shards, spmd_types, needs a torch after 2.13.
MODES = {
    "fsdp": {},
    "tp": {"tensor_parallel_degree": 2},
    "pp": {"pipeline_parallel_degree": 2},
    "ep": {"expert_parallel_degree": 2},
    "bf16": {},
    "resumed": {},
    "unchanged": {},  # under `gradkern run`
}


def config_of(mode, folder, load_step=-1):
    spec = experts() if mode == "ep" else dense()
    return Trainer.Config(
        model_spec=spec,
        dump_folder=str(folder),
        loss=CrossEntropyLoss.Config(global_vocab_size=VOCABULARY),
        tokenizer=NoTokenizer.Config(),
        dataloader=Words.Config(),
        optimizer=default_adamw(lr=1e-2, eps=1e-3),  # no steps in the direction of rounding errors
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(
            local_batch_size=BATCH, global_batch_size=2 * 4 * BATCH if mode == "fsdp" else -1, seq_len=LENGTH,
            steps=STEPS, max_norm=0.1, disable_cuda_graphs=True,
            mixed_precision_param="bfloat16" if mode == "bf16" else "float32",
        ),
        metrics=MetricsProcessor.Config(log_freq=2, disable_color_printing=True),
        parallelism=ParallelismConfig(spmd_backend="partial_dtensor", **MODES[mode]),
        checkpoint=CheckpointManager.Config(
            enable=mode == "resumed", interval=2, load_step=load_step
        ),
        activation_checkpoint=None,
    )  # fmt: skip


def measured_by(clip, found, trainer):
    """torchtitan's clip after float64 norms of whole gradients, over all stages. Notes the learning rate too,
    and this rank's part of the loss."""
    backward, parts = torch.Tensor.backward, []

    def noted(loss, *args, **kwargs):
        parts.append(loss.item())
        return backward(loss, *args, **kwargs)

    torch.Tensor.backward = noted

    def measure(parameters, *args, **kwargs):
        parameters = list(parameters)
        grads = [p.grad for p in parameters]
        whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
        norms = [g.double().square().sum() for g in whole]
        total = torch.stack(norms).sum()
        if kwargs.get("pp_mesh") is not None:
            torch.distributed.all_reduce(total, group=kwargs["pp_mesh"].get_group())
        returned = clip(parameters, *args, **kwargs)
        found.append({"norms": [n.sqrt().item() for n in norms], "total": total.sqrt().item(),
                      "returned": returned.item(), "part": sum(parts),
                      "lr": next(iter(trainer.optimizers)).param_groups[0]["lr"]})  # fmt: skip
        parts.clear()
        return returned

    return measure


def weights(trainer):
    named = [pair for part in trainer.model_parts for pair in part.named_parameters()]
    return {n: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for n, p in named}


def step_microbatches(schedule):
    """The step of torch's schedules that torchtitan 0.3 calls; torch 2.13's takes whole batches only."""

    def step(arg_mbs, kwarg_mbs, target_mbs, losses, loss_kwargs, return_outputs):
        schedule._stage.has_backward = True
        schedule._stage.clear_runtime_states()
        schedule._step_microbatches(
            arg_mbs, kwarg_mbs, target_mbs, losses, return_outputs, loss_kwargs=loss_kwargs
        )

    return step


def train(mode, folder, monitor, load_step=-1):
    import gradkern
    from gradkern.integrations import bridge, run
    from gradkern.integrations.torchtitan import monitored

    torch.manual_seed(0)
    trainer = config_of(mode, folder / str(monitor), load_step).build()
    for module in (module for part in trainer.model_parts for module in part.modules()):
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale as it sums
    if mode == "pp":
        trainer.pp_schedule.step = step_microbatches(trainer.pp_schedule)
    found, losses, original = [], {}, dist_utils.clip_grad_norm_
    log = trainer.metrics_processor.log

    def note_and_log(step, loss, *args, **kwargs):
        losses[step] = loss
        log(step, loss, *args, **kwargs)

    trainer.metrics_processor.log = note_and_log
    if monitor and mode == "unchanged":
        run.start(folder / "run")
        trainer.train()
        for attached in list(bridge._attached):
            attached.monitor.close()  # as at the end of the program
        gradkern.unpatch_torch()
    elif monitor:
        with monitored(trainer, folder / "run"):
            trainer.train()
    else:
        backward, dist_utils.clip_grad_norm_ = torch.Tensor.backward, measured_by(original, found, trainer)
        trainer.train()
        torch.Tensor.backward = backward
    assert (dist_utils.clip_grad_norm_ is original) == monitor
    dist_utils.clip_grad_norm_ = original
    trained = weights(trainer)
    trainer.close()
    torch.distributed.destroy_process_group()
    return found, losses, trained


def as_rank(rank, world, ports, folder, modes):
    ports = iter(ports)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    for mode in modes:
        os.environ["MASTER_PORT"] = str(next(ports))
        found, losses, plain = train(mode, folder / mode, monitor=False)
        os.environ["MASTER_PORT"] = str(next(ports))
        _, ours, trained = train(mode, folder / mode, monitor=True)
        if mode == "resumed":  # from the checkpoint of step 2: the last step once more
            os.environ["MASTER_PORT"] = str(next(ports))
            *_, trained = train(mode, folder / mode, monitor=True, load_step=2)
        differences = [(trained[name] - plain[name]).abs().max().item() for name in plain]
        told = {"names": list(plain), "steps": found, "losses": losses, "ours": ours}
        told["difference"] = max(differences)
        (folder / f"{mode}.{rank}.json").write_text(json.dumps(told))


def main(folder, world, modes):
    """Run the ranks; the exit status tells whether one has failed."""
    ports = [free_port() for _ in range(3 * len(modes))]
    return run_forked(as_rank, world, ports, folder, modes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
