"""`Snapshot`: the data of the live view, read from the end of a run."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradkern._util.names import common_prefix
from gradkern._util.text import visible
from gradkern.diagnosis import Finding, Notice, diagnose, notice_of
from gradkern.diagnosis.watchdog import next_diagnosis
from gradkern.history import format
from gradkern.history.facade import History
from gradkern.history.format import HistoryError
from gradkern.history.noted import Event
from gradkern.history.words import FirstNonfinite, first_nonfinite_of, phase_in_words

F64 = NDArray[np.float64]

#: Records that are drawn, and records whose parameters are compared.
TAIL, ROWS = 4096, 64
#: Rows of a table at most.
_TOP = 40
_STALLED_AFTER = 120.0  # seconds
#: Seconds between two diagnoses of a run that grows, and the share of the time that they may take.
_DIAGNOSIS, _DIAGNOSIS_SHARE = 5.0, 0.05
_CREATION = 5.0  # seconds that a monitor may take to create its file


@dataclass(frozen=True)
class Ranked:
    """One line of a table."""

    name: str
    text: str
    alarm: bool = False


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one moment. None means not recorded."""

    title: str
    status: str
    stalled: bool = False
    note: str = "no step recorded yet"
    """Shown in place of the numbers while there are none."""
    records: int = 0
    step: int = 0
    total_norm: float | None = None
    phase: str = ""
    """When the norms were measured, in words."""
    max_norm: float | None = None
    loss: float | None = None
    lr: float | None = None
    clip_rate: float | None = None
    clip_rate_lately: float | None = None
    skipped: int = 0
    nonfinite_steps: int = 0
    first_nonfinite: FirstNonfinite | None = None
    headline: Finding | None = None
    """The headline of the last diagnosis; None if it found nothing worse than "info"."""
    happened: Mapping[str, int] = field(default_factory=dict)
    """Number of events by kind, without findings."""
    latest: Notice | None = None
    """The last of them."""
    parts: Sequence[Ranked] = ()
    """Total norms of groups and models of the last step."""
    norms: F64 = field(default_factory=lambda: np.zeros(0))
    clipped: F64 = field(default_factory=lambda: np.zeros(0))
    largest: Sequence[Ranked] = ()
    smallest: Sequence[Ranked] = ()
    risen: Sequence[Ranked] = ()
    fallen: Sequence[Ranked] = ()
    throughput: str = ""
    changes: tuple[int, int] = (0, 0)
    """How often the file was opened and how often the run went back to an earlier step."""

    def same_as(self, other: Snapshot) -> bool:
        """Whether both would be drawn alike."""
        return self._appearance() == other._appearance()

    def _appearance(self) -> tuple[object, ...]:
        return self.records, self.step, self.status, self.note, self.changes, self.headline, self.happened


class Watcher:
    """Takes snapshots of one run; reads only what was added since the last one."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self._history: History | None = None
        self._file: tuple[int, int] | None = None
        self._opened = 0
        self._missing_at: float | None = None
        self._headline: Finding | None = None
        self._diagnosed = 0
        self._diagnose_at = 0.0

    def take(self, wait: bool = True) -> Snapshot:
        """Read the run.

        Args:
            wait: do not raise if the folder does not exist or the run has not begun.

        Raises:
            HistoryError: there is no run, or the file is not a run. The message names the file.
        """
        title = self.run_dir.resolve().name
        self._let_go_if_replaced()
        if self._history is None:
            missing = self._missing() if wait else ""
            self._history = None if missing else self._open()
            if self._history is None:
                return Snapshot(title, "waiting for the run to begin", note=missing)
        else:
            self._history.refresh()
        with format.reading(self._history.path, "watch"):
            return self._read(title, self._history)

    def _let_go_if_replaced(self) -> None:
        """Close a file that was deleted or replaced. The next call opens the new one."""
        if self._history is None or _identity(self._history.path, self._file) == self._file:
            return
        self.close()
        self._history = None
        self._missing_at = time.monotonic()

    def _missing(self) -> str:
        """What is missing, in words; empty if there is a file."""
        if self.run_dir.exists() and (not self.run_dir.is_dir() or (self.run_dir / format.DATABASE).exists()):
            return ""
        self._missing_at = time.monotonic()
        where = visible(str(self.run_dir.absolute()))
        runs = visible(format.runs_in_words(self.run_dir), 2000)
        if runs:
            return f"no run, but folders of runs: {where}\n{runs}"
        kind = "no run" if self.run_dir.exists() else "no such folder"
        return f"{kind} yet: {where}\nIt will be shown once a GradMonitor records to it."

    def _open(self) -> History | None:
        """The history; None if the file was created a moment ago and has no tables yet."""
        try:
            self._file = _identity(self.run_dir / format.DATABASE if self.run_dir.is_dir() else self.run_dir)
            history = History.open(self.run_dir)
            self._opened += 1
            return history
        except HistoryError:
            if self._missing_at is None or time.monotonic() - self._missing_at > _CREATION:
                raise
            return None

    def close(self) -> None:
        """Close the file."""
        if self._history is not None:
            self._history.close()

    def _read(self, title: str, history: History) -> Snapshot:
        closed = history.meta.get("closed")
        if not len(history):
            return Snapshot(title, "waiting for the first step" if closed is None else "ended")
        norms, coef, clipped = history.total_norm, history.has_coef, history.clipped
        stalled, status = _status(time.time() - float(history.time[-1]), closed is not None)
        losses = history.loss[history.has_loss]
        thresholds = history.max_norm[clipped]
        thresholds = thresholds[np.isfinite(thresholds)]
        largest, smallest, risen, fallen = _rank(history)
        events = [event for event in history.events if event.kind != "finding"]
        return Snapshot(
            title=title,
            status=status,
            stalled=stalled,
            records=len(history),
            step=int(history.steps[-1]),
            total_norm=float(norms[-1]),
            phase=phase_in_words(history, slice(-1, None)),
            max_norm=float(thresholds[-1]) if len(thresholds) else None,
            loss=float(losses[-1]) if len(losses) else None,
            lr=_or_none(float(history.lr[-1])),
            clip_rate=float(clipped[coef].mean()) if coef.any() else None,
            clip_rate_lately=float(clipped[coef][-100:].mean()) if coef.any() else None,
            skipped=int(history.skipped.sum()),
            nonfinite_steps=int((~np.isfinite(norms)).sum()),
            first_nonfinite=first_nonfinite_of(history),
            headline=self._diagnose(history, closed is not None),
            happened=_counted(events),
            latest=notice_of(events[-1].step, events[-1].kind, events[-1].data) if events else None,
            parts=_parts(history),
            norms=norms[-TAIL:],
            clipped=clipped[-TAIL:].astype(np.float64),
            largest=largest,
            smallest=smallest,
            risen=risen,
            fallen=fallen,
            throughput=_throughput(history),
            changes=(self._opened, len(history.branch_rows)),
        )

    def _diagnose(self, history: History, ended: bool) -> Finding | None:
        """The headline. The run is diagnosed again after enough new steps, within a share of the time."""
        records, now = len(history), time.monotonic()
        went_back = records < self._diagnosed
        due = went_back or records >= next_diagnosis(self._diagnosed) or (ended and records > self._diagnosed)
        if due and now >= self._diagnose_at:
            alarms = [finding for finding in diagnose(history) if finding.is_alarm]
            self._headline = alarms[0] if alarms else None
            took = time.monotonic() - now
            self._diagnosed = records
            self._diagnose_at = now + max(_DIAGNOSIS, took / _DIAGNOSIS_SHARE)
        return self._headline


def _counted(events: Sequence[Event]) -> Counter[str]:
    """How often each kind happened."""
    counts: Counter[str] = Counter()
    for event in events:
        counts[event.kind] += event.count
    return counts


def _identity(file: Path, unknown: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """Device and inode of a file; None if it does not exist, `unknown` if that cannot be determined."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    except OSError:
        return unknown
    return found.st_dev, found.st_ino


def _status(age: float, ended: bool) -> tuple[bool, str]:
    """Whether the run has stalled, and its status in words; `age` is the age of the last step in seconds."""
    if age < _STALLED_AFTER:
        return False, "ended" if ended else "recording"
    minutes = age / 60
    if minutes < 120:
        ago = f"{minutes:.0f} min ago"
    else:
        hours = minutes / 60
        ago = f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} days ago"
    return not ended, f"ended, last step {ago}" if ended else f"last step {ago}"


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _rank(history: History) -> tuple[list[Ranked], list[Ranked], list[Ranked], list[Ranked]]:
    """Parameters by rms in the last record, and by its ratio to the median of the records before."""
    columns = history.window(max(0, len(history) - ROWS), len(history))
    rms = columns.rms.astype(np.float64)
    skip = len(common_prefix(history.names))
    last, names, bad = rms[-1], [name[skip:] for name in history.names], columns.nonfinite[-1] > 0
    known = ~np.isnan(last) | bad
    by_size = sorted(np.flatnonzero(known), key=lambda i: -math.inf if bad[i] else -last[i])
    shown = [Ranked(names[i], "inf or NaN" if bad[i] else f"{last[i]:.3g}", bool(bad[i])) for i in by_size]
    middle = _medians(rms[:-1])
    usable = np.flatnonzero(known & ~bad & (last > 0) & (middle > 0))
    change = np.log(last[usable] / middle[usable]) if len(usable) else np.zeros(0)
    order = np.argsort(change)

    def moved(rows: NDArray[np.int64]) -> list[Ranked]:
        return [Ranked(names[usable[i]], f"×{math.exp(change[i]):.3g}") for i in rows]

    risen, fallen = order[::-1][:_TOP], order[:_TOP]
    half = min(_TOP, (len(shown) + 1) // 2)  # no parameter appears in both tables
    return (
        shown[:half],
        shown[half:][::-1][:_TOP],
        moved(risen[change[risen] > 0]),
        moved(fallen[change[fallen] < 0]),
    )


def _parts(history: History) -> list[Ranked]:
    """The total norm of each group in the last step that has one, the largest first."""
    last = {}
    for name, group in history.groups.items():
        known = np.flatnonzero(~np.isnan(group.total_norm))
        if len(known):
            last[name] = float(group.total_norm[known[-1]])
    ordered = sorted(last, key=lambda name: -last[name])
    return [Ranked(name, f"{last[name]:.3g}", not math.isfinite(last[name])) for name in ordered]


def _medians(rows: F64) -> F64:
    """Median of the finite values of each column; NaN where there is none."""
    middle = np.full(rows.shape[1], np.nan)
    finite = np.where(np.isfinite(rows), rows, np.nan)
    some = ~np.isnan(finite).all(axis=0) if len(rows) else np.zeros(rows.shape[1], dtype=bool)
    if some.any():
        middle[some] = np.nanmedian(finite[:, some], axis=0)
    return middle


def _throughput(history: History) -> str:
    """Steps and values per second over the last records, and the cost of the monitor itself."""
    times = history.time[-101:]
    elapsed = float(times[-1] - times[0])
    parts = [f"{len(history.names):,} parameters", *_own_cost(history.meta.get("monitor"))]
    if len(times) >= 2 and elapsed > 0:
        rate = (len(times) - 1) / elapsed
        values = rate * len(history.names) * 3  # norm, largest magnitude, non-finite count
        parts = [f"{rate:.3g} steps/s", f"{values:,.0f} values/s recorded", *parts]
    return ", ".join(parts)


def _own_cost(noted: Any) -> list[str]:
    if not isinstance(noted, dict):
        return []
    numbers = {key: noted.get(key) for key in ("record_us", "lost")}
    known = {key: value for key, value in numbers.items() if isinstance(value, (int, float))}
    parts = [f"record() {known['record_us']:.0f} µs"] if "record_us" in known else []
    return [*parts, f"{known['lost']:,} lost"] if known.get("lost") else parts
