"""The suite's work on several processes: runs are recorded and cures tried where they are independent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.diagnosis.cures import Outcome, try_cures
from benchmarks.diagnosis.faulty import Case
from benchmarks.diagnosis.judge import Verdict
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.train import train

__all__ = ["cure_all", "record_all"]

Task = TypeVar("Task")
Pair = tuple[Case, Verdict]


def record_all(runs: Iterable[tuple[Recipe, int]], folder: Path, reuse: bool, jobs: int) -> None:
    """Train runs (a recipe and a seed, each once) into `folder`, where `train` finds them."""
    _each(partial(_record, folder=folder, reuse=reuse), sorted(set(runs), key=repr), jobs)


def cure_all(pairs: Iterable[Pair], folder: Path, reuse: bool, jobs: int) -> list[Outcome]:
    """Try the remedies of cases; those of one recipe and seed in one process, since they may share runs."""
    groups: dict[tuple[Recipe, int], list[Pair]] = {}
    for case, verdict in pairs:
        groups.setdefault((case.twin, verdict.seed), []).append((case, verdict))
    found = _each(partial(_cure, folder=folder, reuse=reuse), list(groups.values()), jobs)
    return [outcome for group in found for outcome in group]


def _record(run: tuple[Recipe, int], folder: Path, reuse: bool) -> None:
    train(*run, folder, reuse=reuse)


def _cure(pairs: Sequence[Pair], folder: Path, reuse: bool) -> list[Outcome]:
    return [try_cures(case, verdict, folder, reuse) for case, verdict in pairs]


def _each(work: Callable[[Task], Any], tasks: Sequence[Task], jobs: int) -> list[Any]:
    """The results of `work` for each task, in order."""
    if jobs == 1:
        return [work(task) for task in tasks]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(work, tasks))
