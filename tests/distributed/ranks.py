"""Real processes for the tests: a pool of gloo ranks that lives as long as the test session.

Starting processes and importing torch is most of what such a test costs, so ranks are started once per world
size and then handed jobs. A job is a module-level function called on every rank with the same arguments; what
it raises on any rank is raised in the test, with the rank's traceback.
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import random
import socket
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import torch.multiprocessing as mp

START_TIMEOUT, JOB_TIMEOUT = 120.0, 90.0


def _serve(rank: int, world: int, store: str, pipe: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    pipe.send(("ready", None))
    while True:
        try:
            job, arguments = pipe.recv()
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            pipe.send(("done", job(**arguments)))
        except BaseException:
            pipe.send(("failed", traceback.format_exc()))


def fork_context() -> Any:
    """Processes forked from a server that has imported torch, its compiler and gradkern.

    The server runs nothing and has no threads, so that its children are as good as new processes.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.distributed.models", "gradkern.distributed.functions", "torch._dynamo"]
    )
    return context


class Ranks:
    """`world` processes in one gloo group."""

    def __init__(self, world: int) -> None:
        context = fork_context()
        store = os.path.join(tempfile.mkdtemp(prefix="gradkern-ranks-"), "store")
        self.world, self.pipes, self.processes = world, [], []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, store, there), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)
        self._collect(START_TIMEOUT)

    def __call__(self, job: Callable[..., Any], **arguments: Any) -> list[Any]:
        """The job's results, one per rank. Raises AssertionError if a rank hangs or dies."""
        for pipe in self.pipes:
            pipe.send((job, arguments))
        return self._collect(JOB_TIMEOUT)

    def _collect(self, timeout: float) -> list[Any]:
        results, failures = [], []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(timeout):
                self.close()
                raise AssertionError(f"rank {rank} of {self.world} hangs: no answer within {timeout} s")
            try:
                kind, value = pipe.recv()
            except EOFError:
                self.close()
                raise AssertionError(f"rank {rank} of {self.world} died") from None
            results.append(value)
            if kind == "failed":
                failures.append(f"--- rank {rank} ---\n{value}")
        if failures:
            self.close()  # a rank that failed alone leaves the others' collectives out of step
            raise AssertionError("\n".join(failures))
        return results

    @property
    def alive(self) -> bool:
        return bool(self.processes)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=0.2)
            if process.is_alive():
                process.kill()
                process.join()
        self.processes = []


def free_port() -> int:
    """A free port below those that Linux assigns to connections (from 32768)."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def run_forked(target: Callable[..., None], world: int, *arguments: object) -> int:
    """Run ``target(rank, world, *arguments)`` on every rank; the exit status tells whether one has failed.

    The others are ended then: they would wait for it.
    """
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=target, args=(rank, world, *arguments)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    running = {rank.sentinel: rank for rank in ranks}
    while running:
        for sentinel in wait(list(running)):
            ended = running.pop(sentinel)
            ended.join()
            if ended.exitcode:
                for rank in running.values():
                    rank.terminate()
    return max(abs(rank.exitcode or 0) for rank in ranks)
