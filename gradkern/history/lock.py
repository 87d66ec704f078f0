"""`RunLock`: ensures that only one monitor records to a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gradkern.history.format import HistoryError, making

_held: set[str] = set()


class RunLock:
    """An advisory lock on ``RUN/.lock``. It ends with the process, even if that is killed.

    On a file system without locks it works within one process only.

    Raises:
        HistoryError: another monitor holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        with making(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._key = str(folder.resolve())
            if self._key in _held:
                raise HistoryError(_taken(folder))
            self._file: Any = (folder / ".lock").open("a")
        try:
            import fcntl

            # Not flock: a forked data loader would inherit it, and hold it after its parent has ended.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not on this system
            pass
        except (BlockingIOError, PermissionError) as error:
            self._file.close()
            raise HistoryError(_taken(folder)) from error
        except OSError:  # no locks on this file system
            pass
        _held.add(self._key)
        self._process = os.getpid()

    def release(self) -> None:
        """Release the lock."""
        if os.getpid() == self._process:
            _held.discard(self._key)
            self._file.close()


def _taken(folder: Path) -> str:
    return (
        f"[GradMonitor] run_dir {str(folder)!r}: another monitor is recording to it; use another run_dir, or "
        "close that monitor first (in a notebook: call .close() before you run its cell again)"
    )
