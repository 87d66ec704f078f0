"""A rank that dies, and ranks that disagree: the others raise an error and do not hang."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from typing import Any

import pytest
import torch

from tests.distributed.ranks import fork_context, run_forked

TIMEOUT = 15.0


def _train(rank: int, store: str, fault: str, answers: Any) -> None:
    import torch.distributed as dist

    import gradkern
    from tests.distributed import models

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    model = models.as_fsdp(models.build())
    models.fill(model, models.full_gradients(models.build()))
    gradkern.clip_grad_norm_(model.parameters(), 1.0)
    dist.barrier()
    if rank == 1:
        if fault == "dies":
            os._exit(17)
        time.sleep(2 * TIMEOUT)  # "stalls"
        return
    begin = time.monotonic()
    try:
        gradkern.clip_grad_norm_(model.parameters(), 1.0)
        answers.put(("no error", time.monotonic() - begin))
    except RuntimeError as error:
        answers.put((str(error), time.monotonic() - begin))


@pytest.mark.parametrize("fault", ["dies", pytest.param("stalls", marks=pytest.mark.slow)])
def test_the_others_get_an_error(fault):
    context = fork_context()
    answers = context.Queue()
    store = os.path.join(tempfile.mkdtemp(prefix="gradkern-fault-"), "store")
    processes = [context.Process(target=_train, args=(rank, store, fault, answers)) for rank in range(2)]
    for p in processes:
        p.start()
    message, seconds = answers.get(timeout=200)
    for p in processes:
        p.join(timeout=60)
        assert not p.is_alive()
    assert seconds < TIMEOUT + 10
    expected = ["Timed out", "timed out"]
    if fault == "dies":
        expected += ["closed by peer", "reset by peer"]
    assert any(part in message for part in expected), message


def _leaves(rank: int, world: int, failing: int | None) -> None:
    if rank == failing:
        os._exit(3)
    time.sleep(0 if failing is None else 60)


def test_a_failing_rank_ends_the_others():
    begin = time.monotonic()
    assert run_forked(_leaves, 3, None) == 0
    assert run_forked(_leaves, 3, 1) != 0
    assert time.monotonic() - begin < 30
