"""Several Python threads, forks, flush-to-zero modes, and the GIL."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time

import pytest
import torch

import gradkern
from tests.support import reference as ref
from tests.support.strategies import CHUNK, parameters, values


def test_several_python_threads_at_once(threads):
    threads(2)
    jobs = [[values("normal", CHUNK * 3 + i, torch.float32, seed=i), torch.ones(100)] for i in range(6)]
    expected = [ref.bits(gradkern.get_total_norm(job)) for job in jobs]
    wrong = []

    def work(job, right):
        for _ in range(50):
            if ref.bits(gradkern.get_total_norm(job)) != right:
                wrong.append(right)

    workers = [threading.Thread(target=work, args=args) for args in zip(jobs, expected)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
        assert not w.is_alive()
    assert not wrong


def test_clipping_in_several_threads(threads):
    threads(2)
    old = [values("normal", CHUNK * 2 + i, torch.float32, seed=i) for i in range(6)]
    grads = [g.clone() for g in old]
    totals = [None] * 6

    def work(i):
        totals[i] = gradkern.clip_grad_norm_(parameters([grads[i]]), 1.0)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    for i in range(6):
        ref.assert_scaled(grads[i], old[i], ref.coefficient(1.0, totals[i]))


def test_the_gil_is_released(threads):
    """While one thread measures for a long time, another one runs Python."""
    threads(1)
    grad = torch.full((1 << 25,), 0.5)
    finished = threading.Event()
    ticks = []

    def tick():
        while not finished.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    begin = time.perf_counter()
    while time.perf_counter() - begin < 0.5:
        gradkern.get_total_norm([grad], 3.0)  # a call of some tenths of a second
    finished.set()
    ticker.join(10)
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    one_call = time.perf_counter()
    gradkern.get_total_norm([grad], 3.0)
    one_call = time.perf_counter() - one_call
    assert len(ticks) > 50
    assert max(gaps) < max(0.5 * one_call, 0.1), f"another thread stood still for {max(gaps):.3f} s"


def test_gradients_dropped_meanwhile_stay_alive(threads):
    threads(2)
    params = parameters([values("normal", 1 << 20, torch.float32, seed=i) for i in range(8)])
    expected = gradkern.clip_grad_norm_(params, float("inf"), norm_type=3.0).item()
    result = []
    worker = threading.Thread(
        target=lambda: result.append(gradkern.clip_grad_norm_(params, float("inf"), norm_type=3.0))
    )
    worker.start()
    time.sleep(0.02)
    for p in params:
        p.grad = None
    worker.join(60)
    assert result[0].item() in (expected, pytest.approx(0.0)) or result[0].item() < expected


def _in_child(queue, param):
    # No operation of torch here that would use its threads: those hang after a fork.
    total = gradkern.get_total_norm([param.grad])
    gradkern.clip_grad_norm_([param], 1.0)
    queue.put((total.item(), ref.bits(param.grad)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child(threads):
    threads(2)
    grad = values("normal", CHUNK * 8, torch.float32, seed=1)
    here = gradkern.get_total_norm([grad]).item()  # the parent's threads are running now
    param = parameters([grad.clone()])[0]
    gradkern.clip_grad_norm_([param], 1.0)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    other = parameters([grad.clone()])[0]
    child = fork.Process(target=_in_child, args=(queue, other))
    child.start()
    total, clipped = queue.get(timeout=60)
    child.join(30)
    assert child.exitcode == 0
    assert total == here
    assert clipped == ref.bits(param.grad)


FORK_BEFORE_FIRST_USE = """
import os, signal, torch
torch.set_num_threads(2)
grad = torch.randn(1 << 20)
(grad * 2).sum()  # starts torch's threads; gradkern has not computed anything yet
import gradkern
child = os.fork()
if child == 0:
    signal.alarm(20)
    value = gradkern.get_total_norm([grad]).item()
    os._exit(0 if value > 0 else 3)
_, status = os.waitpid(child, 0)
print(status)
"""


def test_a_child_forked_before_gradkern_computed_anything(run_with_torch):
    done = run_with_torch(FORK_BEFORE_FIRST_USE)
    assert done.stdout.strip() == "0", done.stdout + done.stderr


def test_set_num_threads_is_respected(run_with_torch):
    code = """
import threading, torch
torch.set_num_threads(1)
import gradkern, os
grad = torch.ones(1 << 22)
before = len(os.listdir("/proc/self/task"))
gradkern.get_total_norm([grad])
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = run_with_torch(code)
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.parametrize("count", [1, 2])
def test_flush_denormal_does_not_change_norms(count, threads):
    threads(count)
    tiny = [
        values("subnormal float32", CHUNK * 3, torch.float32, seed=1),
        torch.full((9,), 5e-324, dtype=torch.float64),
    ]
    half = values("subnormal float16", CHUNK, torch.float16, seed=1)
    wanted = [ref.bits(gradkern.get_total_norm(x, p)) for x in (tiny, [half]) for p in (2.0, 1.0, 3.0)]
    assert torch.set_flush_denormal(True)
    try:
        got = [gradkern.get_total_norm(x, p) for x in (tiny, [half]) for p in (2.0, 1.0, 3.0)]
        on = (torch.tensor([1e-40]) * 1).item() == 0
    finally:
        torch.set_flush_denormal(False)
    assert on, "the caller's mode was lost"
    assert [ref.bits(t) for t in got] == wanted


def test_flush_denormal_treats_every_thread_alike(threads):
    """What is written follows the caller's mode, in whichever thread it is written."""
    grad = values("subnormal float32", CHUNK * 6, torch.float32, seed=1)
    results = []
    assert torch.set_flush_denormal(True)
    try:
        for count in (1, 2, 4):
            threads(count)
            new = grad.clone()
            gradkern.clip_grads_with_norm_(parameters([new]), 0.5, 1.0)
            results.append(ref.bits(new))
    finally:
        torch.set_flush_denormal(False)
    assert len(set(results)) == 1
