"""`C`: the compiled extension or its substitute.

Every function of `gradkern._C` returns None (or False) for a list that it does not support. Callers then use
the functions over ranks or torch's operations. `C` is a `NullBackend` under ``GRADKERN_DISABLE=1`` and if no
extension fits the installed torch. Under ``GRADKERN_VERIFY=1`` each result is compared with float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from gradkern.kernels.extension import DISABLED, EXTENSION, VERIFY
from gradkern.kernels.verify import Verified


class NullBackend:
    """Has the functions of `gradkern._C`, but supports no list."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _decline

    @staticmethod
    def dicts_unchanged(owners: Sequence[tuple[dict[str, Any], tuple[Any, ...]]]) -> bool:
        """Whether every dict still holds the same objects."""
        return all(
            list(map(id, chain.from_iterable(owner.items()))) == list(map(id, before))
            for owner, before in owners
        )

    @staticmethod
    def build_info() -> dict[str, str]:
        return {}


def _decline(*_: Any) -> None:
    return None


if TYPE_CHECKING:
    from gradkern import _C

    C = _C
else:
    C = NullBackend() if DISABLED or EXTENSION is None else Verified(EXTENSION) if VERIFY else EXTENSION
