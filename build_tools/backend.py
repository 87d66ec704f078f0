"""setuptools' build backend. A wheel needs torch; without it, an error comes before anything is built."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

sys.path.insert(0, str(Path(__file__).parent))

from torches import torches


def _after_finding_torch(hook: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(hook)
    def checked(*args: Any, **kwargs: Any) -> Any:
        torches()
        return hook(*args, **kwargs)

    return checked


# An isolated build calls the first of these, one with --no-build-isolation the last.
get_requires_for_build_wheel = _after_finding_torch(build_meta.get_requires_for_build_wheel)
get_requires_for_build_editable = _after_finding_torch(build_meta.get_requires_for_build_editable)
prepare_metadata_for_build_wheel = _after_finding_torch(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = _after_finding_torch(build_meta.prepare_metadata_for_build_editable)
build_wheel = _after_finding_torch(build_meta.build_wheel)
build_editable = _after_finding_torch(build_meta.build_editable)
