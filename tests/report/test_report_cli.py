"""`gradkern report` and `gradkern watch`: exit status, messages, what is imported when."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gradkern.cli.main import main

Make = Callable[..., Path]


def test_a_report_is_written_where_asked(
    recorded: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, pictures = tmp_path / "out.html", tmp_path / "png"
    assert main(["report", str(recorded()), "-o", str(target), "--png", str(pictures)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{target} ({target.stat().st_size / 1e6:.2f} MB)"
    assert sorted(Path(line) for line in lines[1:]) == sorted(pictures.iterdir())
    assert len(lines) == 8


def test_without_a_terminal_one_frame_is_printed(recorded: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(recorded())]) == 0
    text = capsys.readouterr().out
    assert "step 40" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("command", ["watch", "report", "diagnose"])
@pytest.mark.parametrize("there", [True, False])
def test_a_run_that_is_not_there(
    command: str, there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "no\x1b[2Jrun"
    if there:
        folder.mkdir()
    once = ["--once"] if command == "watch" else []
    assert main([command, str(folder), *once]) == 2
    error = capsys.readouterr().err
    assert f"gradkern {command}: " in error
    missing = "file" if there else "folder or file"
    assert f"no recorded run here: no such {missing}\n" in error
    assert "RUN is the run_dir given to GradMonitor" in error
    assert "\x1b" not in error


@pytest.mark.parametrize("command", ["watch", "report"])
def test_runs_of_ranks_are_pointed_at(
    recorded: Make, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(2):
        recorded(name=f"run/rank{rank}", steps=3)
    assert main([command, str(tmp_path / "run")]) == 2
    hint = capsys.readouterr().err.splitlines()[1]
    assert hint == "Each rank has its own run in there; give one of them as RUN: rank0, rank1."


@pytest.mark.parametrize("command", ["watch", "report"])
@pytest.mark.parametrize(
    "content", [b"", b"not a database at all" * 10, b"SQLite format 3\0" + b"\xff" * 300]
)
def test_a_file_that_is_no_history(
    command: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history.db").write_bytes(content)
    assert main([command, str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "history.db" in error
    assert "Traceback" not in error
    assert (tmp_path / "history.db").read_bytes() == content


def test_a_truncated_run_is_an_error(recorded: Make, capsys: pytest.CaptureFixture[str]) -> None:
    file = recorded(steps=400) / "history.db"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert main(["report", str(file.parent)]) == 2
    assert "truncated" in capsys.readouterr().err
    assert not (file.parent / "report.html").exists()


def test_a_report_into_a_folder(recorded: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(recorded()), "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'report.html'} (")


def test_a_path_that_ends_with_a_slash_is_a_folder(
    recorded: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new"
    assert main(["report", str(recorded()), "-o", f"{target}/"]) == 2
    assert f"cannot write {target / 'report.html'}: No such file" in capsys.readouterr().err
    assert not target.exists()
    target.mkdir()
    assert main(["report", str(recorded()), "-o", f"{target}/"]) == 0
    assert (target / "report.html").exists()


@pytest.mark.parametrize("place", ["missing/r.html", "file/r.html", "full"])
def test_a_place_that_cannot_be_written(
    recorded: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full.partial").symlink_to("/dev/full")
    assert main(["report", str(recorded()), "-o", str(tmp_path / place)]) == 2
    reason = {"m": "No such file or directory", "f": "Not a directory"}[place[0]]
    reason = "No space left on device" if place == "full" else reason
    error = capsys.readouterr().err
    assert error == f"gradkern report: cannot write {tmp_path / place}: {reason}\n"
    assert not (tmp_path / "full").exists()


def test_pictures_that_cannot_be_written(
    recorded: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    (tmp_path / "file").touch()
    assert main(["report", str(recorded()), "--png", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"gradkern report: cannot write {tmp_path / 'file'}: File exists\n"


@pytest.mark.parametrize("option", ["-o", "--png"])
def test_an_empty_path(recorded: Make, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(recorded()), option, ""])
    assert stopped.value.code == 2
    assert "expected a path, got nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "inside"),
    [
        (["report", "x"], "gradkern.report.load.load"),
        (["demo", "--no-picture"], "gradkern.demo.command._run"),
        (["bench"], "gradkern.bench.command._run"),
    ],
)
def test_an_interrupt_is_one_line(
    command: list[str], inside: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inside, interrupted)
    assert main(command) == 130
    assert capsys.readouterr().err == f"gradkern {command[0]}: interrupted\n"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_an_interval_makes_sense(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["watch", "x", "--interval", seconds])
    assert stopped.value.code == 2
    assert "--interval" in capsys.readouterr().err


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_optional_packages_are_imported_by_what_needs_them_only(recorded: Make) -> None:
    code = (
        "import sys, gradkern.cli, gradkern.report\n"
        "assert gradkern.cli.main(['report', sys.argv[1]]) == 0\n"
        "print(*sorted({'rich', 'matplotlib', 'pandas'} & set(sys.modules)), sep=',')"
    )
    done = python(code, str(recorded()))
    assert done.stdout.splitlines()[1:] == [""], done.stderr


def test_a_missing_package_names_its_extra(recorded: Make) -> None:
    code = (
        "import sys\n"
        "sys.modules['rich'] = sys.modules['matplotlib'] = None\n"
        "from gradkern.cli.main import main\n"
        "print(main(['watch', sys.argv[1]]), main(['report', sys.argv[1], '--png', sys.argv[1]]))"
    )
    done = python(code, str(recorded()))
    assert done.stdout.splitlines()[-1] == "2 2"
    assert done.stderr.splitlines() == [
        "gradkern watch: the live view needs rich: pip install rich (extra: gradkern[monitor])",
        "gradkern report: gradkern's pictures need matplotlib: "
        "pip install matplotlib (extra: gradkern[monitor])",
    ]
