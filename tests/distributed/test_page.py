"""The code of docs/distributed.md, on two ranks."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradkern

PAGE = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"


class Stage(nn.Module):
    """A model with its own experts and a head, which stands for an embedding that two stages share."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"router": nn.Linear(4, 4), "experts": nn.ModuleList([nn.Linear(4, 4)])})
        self.head = nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block["experts"][0](self.block["router"](x)))


def made(model: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"gradkern": gradkern, "torch": torch, "model": model, "optimizer": optimizer}


def stage_with_gradients() -> Stage:
    """Every gradient is 1, on both ranks."""
    model = Stage()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run_blocks() -> dict[str, float | bool]:
    sharded, experts, shared, gathered, scaled, folded = blocks()
    rank, group = dist.get_rank(), dist.group.WORLD
    seen: dict[str, float | bool] = {}

    model = fully_shard(nn.Linear(4, 4), mesh=init_device_mesh("cpu", (2,)))
    names = made(model) | {"loss": model(torch.ones(2, 4)).sum()}
    exec(sharded, names)
    seen["sharded"] = float(names["stats"].total_norm)

    names = made(stage_with_gradients()) | {"ep_group": group}
    exec(experts, names)
    seen["experts"] = float(names["clipper"].clip_().total_norm)

    names = made(stage_with_gradients()) | {"pp_group": group, "stage": rank, "last": 1}
    exec(shared, names)
    names["stats"] = names["clipper"].clip_()
    seen["shared"] = float(names["stats"].total_norm)

    exec(gathered, names)
    seen["gathered"] = names["whole"] is not None

    model = nn.Linear(4, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    names = made(model) | {"loss": model(torch.ones(2, 4)).sum(), "scaler": scaler}
    names["clipper"] = gradkern.GradClipper(model, 1.0)
    exec(scaled, names)
    seen["scaled"] = float(names["stats"].total_norm)

    names = made(stage_with_gradients())
    exec(folded, names)
    names["clipper"].clip_()
    seen["folded"] = names["optimizer"].grad_scale is not None
    names["optimizer"].step()
    return seen


def test_the_code_of_the_page_runs(ranks):
    first, second = ranks(2)(run_blocks)
    # A linear layer 4 to 4: its 16 weights and 4 biases have the gradient 2 (two rows of ones).
    linear = 2 * math.sqrt(20)
    own, head, router = 20, 16, 20
    for seen in (first, second):
        assert math.isclose(seen["sharded"], linear, rel_tol=1e-6)
        assert math.isclose(seen["scaled"], linear, rel_tol=1e-6)
        assert math.isclose(seen["experts"], math.sqrt(2 * own + head + router), rel_tol=1e-6)
        assert math.isclose(seen["shared"], math.sqrt(2 * (own + router) + head), rel_tol=1e-6)
        assert seen["folded"]
    assert first["gathered"] and not second["gathered"]
