"""The documentation: its Python runs, paragraphs are short, and the site builds without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path) -> list[str]:
    """The Python of a page, in order. A block continues those before it."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


#: Pages whose code runs on two ranks (tests/distributed/test_page.py) or in tests/integrations.
NOT_RUN = {"distributed.md", "transformers.md", "lightning.md", "accelerate.md", "others.md"}
RUN = [page for page in PAGES if blocks(page) and page.name not in NOT_RUN]


@pytest.mark.integration
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for number, block in enumerate(blocks(page), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    assert len(names) > 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paragraphs_have_at_most_five_lines(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    long = [
        part.strip().splitlines()[0]
        for part in re.split(r"\n\s*\n", text)
        if len(part.strip().splitlines()) > 5 and not re.match(r"\s*([|#<>:*-]|\d+\.)", part)
    ]
    assert long == []


@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs MkDocs")
def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    assert (tmp_path / "site" / "reference" / "index.html").exists()
