"""The journal mode for a file system: SQLite's WAL needs shared memory, which network file systems lack."""

from __future__ import annotations

import os
from pathlib import Path

#: File systems on which a memory-mapped WAL index is not shared between machines.
NETWORK_FILE_SYSTEMS = frozenset(
    """nfs nfs3 nfs4 cifs smb smb2 smb3 smbfs lustre gpfs beegfs afs ceph glusterfs 9p panfs orangefs
    pvfs2 ocfs2 gfs2 wekafs mapr virtiofs daos quobyte davfs coda""".split()  # noqa: SIM905
)


def file_system(path: str | os.PathLike[str], mounts: str | None = None) -> str:
    """Type of the file system of `path`: "ext4", "nfs4"; "" if it is not known.

    Args:
        mounts: the text of /proc/self/mountinfo; read if None.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return ""
    target = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # a later mount hides an earlier one
            best, kind = point, after.split(" ")[0]
    return kind


def journal_for(path: str | os.PathLike[str], mounts: str | None = None) -> str:
    """Journal mode for a folder: "WAL" on a local disk, "TRUNCATE" on a network file system."""
    kind = file_system(path, mounts)
    # FUSE file systems may or may not share memory maps, so they count as network file systems.
    network = kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse")
    return "TRUNCATE" if network else "WAL"
