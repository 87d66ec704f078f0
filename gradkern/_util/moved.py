"""Import paths of version 0.1, which work until 0.3 with a DeprecationWarning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from gradkern._util.warning import warn

#: Modules that moved in 0.2: old name to new. Pickles name them, too.
MOVED = {
    "gradkern.clipper": "gradkern.clipping.clipper",
    "gradkern.commands": "gradkern.cli.viewing",
    "gradkern.functional": "gradkern.clipping.functional",
    "gradkern.names": "gradkern.params.names",
    "gradkern.patch": "gradkern.integrations.torch_utils",
    "gradkern.plan": "gradkern.params.plan",
    "gradkern.stats": "gradkern.params.stats",
    "gradkern.monitor.capture": "gradkern.monitor.captures.capture",
    "gradkern.monitor.columns": "gradkern.history.columns",
    "gradkern.monitor.database": "gradkern.history.database",
    "gradkern.monitor.export": "gradkern.history.export",
    "gradkern.monitor.file_systems": "gradkern.history.file_systems",
    "gradkern.monitor.histogram": "gradkern.monitor.periodic.histogram",
    "gradkern.monitor.history": "gradkern.history.facade",
    "gradkern.monitor.layouts": "gradkern.monitor.models.layouts",
    "gradkern.monitor.lock": "gradkern.history.lock",
    "gradkern.monitor.optional": "gradkern._util.optional",
    "gradkern.monitor.reader": "gradkern.history.reader",
    "gradkern.monitor.recent": "gradkern.history.recent",
    "gradkern.monitor.recorder": "gradkern.monitor.writing.thread",
    "gradkern.monitor.reprs": "gradkern.history.reprs",
    "gradkern.monitor.rows": "gradkern.history.rows",
    "gradkern.monitor.scalars": "gradkern.history.scalars",
    "gradkern.monitor.step_numbers": "gradkern.history.step_numbers",
    "gradkern.monitor.store": "gradkern.history.format",
    "gradkern.monitor.summaries": "gradkern.history.pyramid",
    "gradkern.monitor.summary_reader": "gradkern.history.summary",
    "gradkern.monitor.transfer": "gradkern.monitor.captures.transfer",
    "gradkern.monitor.updates": "gradkern.monitor.periodic.updates",
    "gradkern.monitor.words": "gradkern.history.words",
    "gradkern.monitor.writer": "gradkern.history.writer",
    "gradkern.report.sparse": "gradkern.report.periodic",
}

#: Modules that have the names of a divided module which its new path lacks.
DIVIDED = {
    "gradkern.names": ("gradkern._util.names",),
    "gradkern.monitor.capture": ("gradkern.monitor.captures.step", "gradkern.monitor.periodic.capture"),
    "gradkern.monitor.columns": ("gradkern.history.layers", "gradkern.history.layout"),
    "gradkern.monitor.recorder": ("gradkern.monitor.writing.queue", "gradkern.monitor.writing.committer"),
    "gradkern.monitor.store": ("gradkern.history.schema",),
}

#: Names that moved or were renamed in modules of 0.1: old to new.
RENAMED = {
    "gradkern.demo.training.Run": "gradkern.demo.training.DemoRun",
    "gradkern.distributed.packed.pack": "gradkern.distributed.packing.pack",
    "gradkern.distributed.placements.Layout": "gradkern.distributed.placements.Domains",
    "gradkern.distributed.placements.layout_of": "gradkern.distributed.placements.domains_of",
    "gradkern.distributed.plan.Domain": "gradkern.distributed.placements.Domain",
    "gradkern.monitor.History": "gradkern.History",
    "gradkern.monitor.HistoryError": "gradkern.HistoryError",
    "gradkern.monitor.arguments.PHASE_SAID": "gradkern.monitor.statistics_arguments.PHASE_OF",
    "gradkern.monitor.arguments.new_folder": "gradkern.monitor.run_folder.new_folder",
    "gradkern.monitor.arguments.run_folder": "gradkern.monitor.run_folder.run_folder",
    "gradkern.monitor.database.look": "gradkern.history.database.has_run",
    "gradkern.monitor.history.Branch": "gradkern.history.reader.Branch",
    "gradkern.monitor.history.Floats": "gradkern.history.recorded.Floats",
    "gradkern.monitor.recorder.Recorder": "gradkern.monitor.writing.thread.WritingThread",
    "gradkern.monitor.sample.Part": "gradkern.monitor.sample.DeviceColumns",
    "gradkern.monitor.store.ranks_in_words": "gradkern.history.format.runs_in_words",
    "gradkern.monitor.transfer.Event": "gradkern.monitor.captures.transfer.DeviceEvent",
    "gradkern.monitor.words.Offender": "gradkern.history.words.FirstNonfinite",
    "gradkern.monitor.words.first_offender": "gradkern.history.words.first_nonfinite_of",
    "gradkern.report.data.Run": "gradkern.report.data.ReportData",
}


def forward(module: str) -> Callable[[str], Any]:
    """Make `__getattr__` for a module: its submodules in `MOVED`, its names in `RENAMED`. Each warns."""

    def get(name: str) -> Any:
        old = f"{module}.{name}"
        if old in MOVED:
            return import_module(old)
        if old in RENAMED:
            warn(f"{old} has moved to {RENAMED[old]}", DeprecationWarning)
            home, _, new = RENAMED[old].rpartition(".")
            return getattr(import_module(home), new)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return get


class _Forward(Loader):
    """Loads a module that forwards every attribute to its new place: see `MOVED`, `DIVIDED`, `RENAMED`."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warn(f"{module.__name__} has moved to {new}", DeprecationWarning)
        target = import_module(new)

        def get(name: str) -> Any:
            if f"{module.__name__}.{name}" in RENAMED:
                return forward(module.__name__)(name)
            for other in () if hasattr(target, name) else DIVIDED.get(module.__name__, ()):
                if hasattr(import_module(other), name):
                    return getattr(import_module(other), name)
            return getattr(target, name)

        module.__dict__.update(__getattr__=get, __dir__=lambda: dir(target))


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Forward()) if fullname in MOVED else None


def install() -> None:
    """Append the finder to `sys.meta_path`. Idempotent."""
    if not any(type(finder).__name__ == _Finder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
