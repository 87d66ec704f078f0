"""setuptools' build backend; a wheel needs torch, and its absence is said before anything is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

sys.path.insert(0, str(Path(__file__).parent))

from torches import torches


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    torches()
    return build_meta.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    torches()
    return build_meta.get_requires_for_build_editable(config_settings)
