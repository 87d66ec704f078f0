from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    """`ranks(2)`: two running processes, started once a session (again after a failure)."""
    pools: dict[int, Ranks] = {}

    def of(world: int) -> Ranks:
        if world not in pools or not pools[world].alive:
            pools[world] = Ranks(world)
        return pools[world]

    yield of
    for pool in pools.values():
        pool.close()
