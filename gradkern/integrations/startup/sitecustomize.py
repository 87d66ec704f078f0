"""Patch torch under `gradkern run`. Python imports this module when it starts.

The patch is applied as soon as the program imports torch. Another `sitecustomize` on the path still runs.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Patches torch after it is imported. It is found in the usual way."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The specification of torch, with a loader that patches."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            load = loader.exec_module

            def load_and_patch(module: ModuleType) -> None:
                load(module)
                _patch()

            loader.exec_module = load_and_patch
        return spec


def _patch() -> None:
    try:
        from gradkern.integrations.run import start

        start(os.environ.get("GRADKERN_RUN_MONITOR"))
    except Exception as error:  # the user's program has to run in any case
        print(f"gradkern run: torch is not patched: {error}", file=sys.stderr)


def _run_next() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    elsewhere = [folder for folder in sys.path if os.path.abspath(folder) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get("GRADKERN_RUN"):
    sys.meta_path.insert(0, _AfterTorch())
_run_next()
