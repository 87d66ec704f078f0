"""Code of the pages that is part of a larger program: it compiles, and its calls of gradkern are right.

The blocks of these pages that run are run in tests/integrations, tests/distributed and test_docs.py.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch

import gradkern

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


PARTS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for number, block in enumerate(blocks(page, "py"), 1)
]
DIFFS = blocks(ROOT / "README.md", "diff")


def side(diff: str, sign: str) -> str:
    """One side of a diff: the lines with this sign and the unchanged ones."""
    return "\n".join(line[2:] for line in diff.splitlines() if line[:1] in (sign, " "))


def signature(module: str, name: str) -> ast.arguments | None:
    """The arguments of a function, or of a class's __init__, from the source: frameworks are not imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node.args
        if isinstance(node, ast.ClassDef) and node.name == name:
            inits = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
            return inits[0].args if inits else None
    raise AssertionError(f"{module} has no {name}")


def check_call(call: ast.Call, arguments: ast.arguments) -> None:
    names = {a.arg for a in (*arguments.args, *arguments.kwonlyargs)}
    assert len(call.args) <= len(arguments.args) or arguments.vararg, ast.unparse(call)
    assert arguments.kwarg or {k.arg for k in call.keywords} <= names, ast.unparse(call)


def check_block(block: str) -> int:
    """Checks every use of gradkern in a block, and returns their number."""
    tree = ast.parse(block)
    imported: dict[str, str] = {}
    uses = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradkern"):
            imported.update({alias.name: node.module or "" for alias in node.names})
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in imported:
            arguments = signature(imported[node.func.id], node.func.id)
            if arguments is not None:
                check_call(node, arguments)
            uses += 1
        elif ast.unparse(node.func).startswith("gradkern."):
            found = getattr(gradkern, ast.unparse(node.func).removeprefix("gradkern."))
            inspect.signature(found).bind(*node.args, **{str(k.arg): k.value for k in node.keywords})
            uses += 1
    return uses


@pytest.mark.parametrize("block", PARTS)
def test_a_part_of_a_program_uses_gradkern_rightly(block):
    assert check_block(block) > 0


def test_there_are_parts():
    assert len(PARTS) >= 10 and len(DIFFS) == 2


def test_the_drop_in_of_the_readme():
    before: dict[str, object] = {}
    after: dict[str, object] = {}
    exec(side(DIFFS[0], "-"), before)
    exec(side(DIFFS[0], "+"), after)
    assert before["clip_grad_norm_"] is torch.nn.utils.clip_grad_norm_
    assert after["clip_grad_norm_"] is gradkern.clip_grad_norm_
    theirs, ours = (inspect.signature(names["clip_grad_norm_"]) for names in (before, after))
    shown = [(p.name, p.default) for p in ours.parameters.values()]
    assert shown[: len(theirs.parameters)] == [(p.name, p.default) for p in theirs.parameters.values()]


def test_the_trainer_of_the_readme():
    assert check_block(side(DIFFS[1], "+")) == 1
    compile(side(DIFFS[1], "-"), "README.md", "exec")
