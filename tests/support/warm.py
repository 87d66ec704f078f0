"""Programs in forks of a process that has imported torch, which takes most of the time of a short program.

It has imported torch's compiler, too, as the first step of an optimizer and the first graph do. It does
not import gradkern and runs no operation, so that it has no threads. A fork is therefore as good as a new
interpreter for a program that begins with ``import torch``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path
from typing import Any, TextIO


class WarmPython:
    """Runs programs in forks of one process, which is started with the first of them."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, code: str, cwd: Path, environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Like `subprocess.run` of ``python -c code``."""
        if self._server is None:
            self._server = self._start()
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder) / name for name in ("stdout", "stderr")]
            job = {
                "code": code,
                "cwd": str(cwd),
                "environment": environment,
                "said": [str(path) for path in said],
            }
            status = self._ask(job, timeout)
            return subprocess.CompletedProcess(code, status, *(path.read_text() for path in said))

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and "GRADKERN" not in k}
        return subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _ask(self, job: dict[str, Any], timeout: float) -> int:
        server = self._server
        assert server is not None and server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], timeout)[0]:
            self.close()
            raise subprocess.TimeoutExpired(job["code"], timeout)
        return int(server.stdout.readline())

    def close(self) -> None:
        """End the process and the program that it runs."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, 9)
            self._server.communicate()
            self._server = None


def serve() -> None:
    """Read jobs as lines of JSON, and answer each with the exit status of its program."""
    import torch

    torch.compile(lambda x: x, backend="eager")(0)  # imports most of the compiler
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    here = Path(__file__).parent
    installed = [path for path in sys.path if Path(path or ".").resolve() != here]
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            os._exit(_run(job, installed))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(job: dict[str, Any], installed: list[str]) -> int:
    """Run a program as its own `__main__`. Returns the exit status."""
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.path[:] = ["", *job["environment"].get("PYTHONPATH", "").split(os.pathsep), *installed]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in zip((1, 2), job["said"]):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["-c"]
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        exec(compile(job["code"], "<string>", "exec"), main.__dict__)
        status = 0
    except SystemExit as end:
        status = _status_of(end, sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # as at the end of an interpreter
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _status_of(end: SystemExit, errors: TextIO) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=errors)
    return 1


if __name__ == "__main__":
    serve()
