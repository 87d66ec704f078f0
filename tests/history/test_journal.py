"""The journal mode, and the files that it leaves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gradkern import GradMonitor, History
from gradkern.history import file_systems, format
from gradkern.history.writer import HistoryWriter
from tests.support.loops import layout, small_model, step_row

MOUNTS = """
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:30 / /home rw - nfs4 server:/home rw
31 30 8:2 / /home/local\\040disk rw - xfs /dev/sdb rw
32 22 0:31 / /scratch rw - lustre mgs:/scratch rw
33 22 0:32 / /cloud rw - fuse.gcsfuse bucket rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "journal"),
    [
        ("/data/run", "ext4", "WAL"),
        ("/home/someone/run", "nfs4", "TRUNCATE"),
        ("/homes/run", "ext4", "WAL"),
        ("/home/local disk/run", "xfs", "WAL"),
        ("/scratch", "lustre", "TRUNCATE"),
        ("/cloud/a/b", "fuse.gcsfuse", "TRUNCATE"),
    ],
)
def test_network_file_systems_get_another_journal(path, kind, journal):
    assert file_systems.file_system(path, MOUNTS) == kind
    assert file_systems.journal_for(path, MOUNTS) == journal


def test_the_journal_in_use_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(file_systems, "file_system", lambda *_: "nfs4")
    with GradMonitor(small_model(), None, tmp_path) as monitor:
        assert monitor.history().meta["journal"] == "TRUNCATE"
        assert not list(tmp_path.glob("*-wal"))


def files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def test_a_closed_run_is_one_file_and_stays_one_when_it_is_read(tmp_path):
    for end in (7, 9):  # a writer that begins again finds it as well
        writer = HistoryWriter(tmp_path, {})
        assert writer.journal == "WAL"
        writer.write([step_row(s, [s, s], layout(2)) for s in range((writer.last_step or 0) + 1, end + 1)])
        writer.close()
        assert files(tmp_path) == [format.DATABASE]
        before = (tmp_path / format.DATABASE).read_bytes()
        with History.open(tmp_path) as history:
            assert len(history.norm) == end
        assert files(tmp_path) == [format.DATABASE] and (tmp_path / format.DATABASE).read_bytes() == before


def test_a_run_that_is_read_while_it_ends_and_begins_again(tmp_path):
    where = layout(2)
    writer = HistoryWriter(tmp_path, {})
    writer.write([step_row(1, [1, 1], where)])
    with History.open(tmp_path):
        start = time.monotonic()
        writer.close()  # cannot leave its WAL, and does not wait for that
        assert time.monotonic() - start < 2
        late = History.open(tmp_path)
    writer = HistoryWriter(tmp_path, {})
    writer.write([step_row(2, [2, 2], where)])
    assert late.refresh() == 1 and late.norm[:, 0].tolist() == [1, 2]
    late.close()
    writer.close()
    assert files(tmp_path) == [format.DATABASE]
    with History.open(tmp_path) as idle:  # a reader of one file beside a writer that continues in a WAL
        writer = HistoryWriter(tmp_path, {})
        assert writer.journal == "WAL"
        writer.write([step_row(3, [3, 3], where)])
        assert idle.refresh() == 1 and len(idle) == 3
        writer.close()
