"""The last-block protocol of the CUDA kernels in every interleaving, whole and with each part removed.

    python scripts/litmus.py

Reads the operations of arrives_last() from csrc/cuda/warp.h and runs them for two and three blocks of three
threads: a writer of a record, the one that counts the block, and another. After a second barrier the writer
and the other thread of the last block read all records. Each read must be ordered after its write, exactly
one block must be the last, and the counter must end as it began. It then removes each operation that orders
something in turn, and must report a violation.

The memory model is that of PTX and C++11, restricted to atomics that are read-modify-writes of one counter.
Such operations see each other in the order in which they run, so that interleavings and the happens-before
relation suffice:

- a barrier orders what its threads did before it ahead of what they do after it;
- an atomic operation publishes what was before its thread's last fence;
- what a thread has seen in the counter is ordered before it by its next fence.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "warp.h"
OPERATIONS = {
    r"__threadfence\(\)": "fence",
    r"atomicAdd\(counter": "add",
    r"atomicExch\(counter": "reset",
}
BARRIERS = ("barrier before", "barrier after")  #: of a block, where its three threads meet


def protocol() -> list[str]:
    body = re.search(r"bool arrives_last\(.*?\n}", SOURCE.read_text(), re.S)
    assert body
    found = re.finditer("|".join(f"({pattern})" for pattern in OPERATIONS), body[0])
    return [list(OPERATIONS.values())[(match.lastindex or 0) - 1] for match in found]


def programs(arrive: list[str]) -> list[list[str]]:
    """The programs of a block's three threads. They read if the block is the last."""
    before, after = BARRIERS
    return [["write", before, after, "read"], [before, *arrive, after], [before, after, "read"]]


@dataclass(frozen=True)
class Thread:
    """`known`, `fenced` and `seen` are bit sets of the records whose writes are ordered before this point,
    were ordered before the last fence, and will be ordered by the next fence."""

    at: int = 0
    known: int = 0
    fenced: int = 0
    seen: int = 0
    waits: bool = False


@dataclass(frozen=True)
class State:
    threads: tuple[Thread, ...]
    met: tuple[tuple[str, int, int, int], ...] = ()  #: barrier, block, threads that came, what they knew
    counter: int = 0
    published: int = 0
    last: int = -1  #: the block that found itself the last


class Violation(Exception):
    pass


def step(state: State, i: int, operation: str, blocks: int) -> State | None:
    """The state after one operation of thread `i`, or None if it has to wait."""
    own, block = state.threads[i], i // 3
    after, changed = replace(own, at=own.at + 1), state
    if operation in BARRIERS:
        came, known = next(((n, k) for name, b, n, k in state.met if (name, b) == (operation, block)), (0, 0))
        if own.waits and came < 3:
            return None
        if own.waits:
            after = replace(after, waits=False, known=own.known | known)
        else:
            after = replace(own, waits=True)
            others = tuple(m for m in state.met if m[:2] != (operation, block))
            changed = replace(
                state, met=tuple(sorted((*others, (operation, block, came + 1, known | own.known))))
            )
    elif operation == "write":
        after = replace(after, known=own.known | 1 << block)
    elif operation == "fence":
        known = own.known | own.seen
        after = replace(after, known=known, fenced=known, seen=0)
    elif operation == "add" or (operation == "reset" and state.last == block):
        after = replace(after, seen=own.seen | state.published)
        last = block if operation == "add" and state.counter == blocks - 1 else state.last
        if last != state.last and state.last >= 0:
            raise Violation("two blocks are the last")
        counter = state.counter + 1 if operation == "add" else 0
        changed = replace(state, counter=counter, published=state.published | own.fenced, last=last)
    elif operation == "read" and state.last == block and own.known != (1 << blocks) - 1:
        raise Violation("a record is read that is not ordered after its write")
    return replace(changed, threads=(*changed.threads[:i], after, *changed.threads[i + 1 :]))


def successors(state: State, blocks: int, code: list[list[str]]) -> list[State]:
    """The states after one more operation of any thread. With three blocks, an operation that concerns a
    block alone is not delayed: it commutes with those of other blocks."""
    found = []
    running = [i for i, t in enumerate(state.threads) if t.at < len(code[i % 3])]
    if not running and (state.last < 0 or state.counter != 0):
        raise Violation("no block is the last" if state.last < 0 else "the counter is not reset")
    for i in running:
        operation = code[i % 3][state.threads[i].at]
        following = step(state, i, operation, blocks)
        if following and blocks > 2 and operation not in ("add", "reset"):
            return [following]
        found += [following] if following else []
    return found


def explore(blocks: int, code: list[list[str]]) -> tuple[int, str]:
    """The number of states, and the first violation."""
    stack = [State(tuple(Thread() for _ in range(3 * blocks)))]
    known = set(stack)
    try:
        while stack:
            new = set(successors(stack.pop(), blocks, code)) - known
            known |= new
            stack += new
    except Violation as violation:
        return len(known), str(violation)
    return len(known), ""


def main() -> int:
    arrive = protocol()
    failures = 0
    for blocks in (2, 3):
        states, violation = explore(blocks, programs(arrive))
        print(f"{blocks} blocks, {states:,} states: {violation or 'nothing to report'}", flush=True)
        failures += bool(violation)
    whole = programs(arrive)
    mutants = {
        f"{name} ({i + 1})": programs(arrive[:i] + arrive[i + 1 :])
        for i, name in enumerate(arrive)
        if name in ("fence", "reset")
    }
    mutants |= {name: [[op for op in thread if op != name] for thread in whole] for name in BARRIERS}
    for name, code in mutants.items():
        states, violation = explore(2, code)
        print(f"without {name}: {violation or 'SURVIVES'}", flush=True)
        failures += not violation
    print(f"{failures} failures")
    return 1 if failures or len(mutants) != 5 else 0


if __name__ == "__main__":
    sys.exit(main())
