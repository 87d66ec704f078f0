"""`Warned`: warnings about failures while recording, one for each kind."""

from __future__ import annotations

from gradkern._util.warning import warn


class Warned:
    """Warns of each kind of trouble once, until it is over."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    def __contains__(self, kind: str) -> bool:
        return kind in self._kinds

    def tell(self, kind: str, message: str) -> None:
        """Warn, unless there was a warning of this kind."""
        if kind not in self._kinds:
            self._kinds.add(kind)
            warn(message, RuntimeWarning)

    def over(self, kind: str) -> None:
        """Trouble of this kind is over. If it happens again, there is another warning."""
        self._kinds.discard(kind)
