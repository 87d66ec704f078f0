"""Opening a run's database for writing or reading. A file that is not a run is left unchanged."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

from gradkern.history import file_systems, migration
from gradkern.history.format import BUSY_SECONDS, DATABASE, HistoryError, as_folder, making, reading
from gradkern.history.schema import APPLICATION_ID, SCHEMA, VERSION, VERSIONS

_REMEDY = "it is left as it is: move it away, or use another run_dir"


def has_run(folder: Path) -> bool:
    """Whether there is a run to continue. Changes nothing, but see `play_back`.

    Raises:
        HistoryError: the file is another program's, or damaged.
    """
    file = folder / DATABASE
    with reading(file, "GradMonitor"):
        if not _size(file):
            return False
        # Opened as immutable, another program's WAL database gets no files beside it.
        beside = any(_size(f"{file}{ending}") for ending in ("-wal", "-journal"))
        connection = _open_read_only(file, "GradMonitor", immutable=not beside)
        try:
            if _is_fresh(connection):
                return False
            _check(connection, file, "GradMonitor")
            return True
        finally:
            connection.close()


def connect_writer(folder: Path, journal: str | None = None) -> tuple[sqlite3.Connection, str]:
    """Open the database of a run for writing; created if it does not exist, else checked by `has_run` before.

    Returns:
        The connection (usable from any one thread at a time) and the journal mode in use.

    Raises:
        HistoryError: the folder cannot be written, or the file is not an intact run; it is left as it is.
    """
    file = folder / DATABASE
    with making(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with reading(file, "GradMonitor"):
        connection = sqlite3.connect(
            file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            return connection, _prepare(connection, file, journal or file_systems.journal_for(folder))
        except BaseException:
            connection.close()
            raise


def connect_reader(folder: str | os.PathLike[str]) -> sqlite3.Connection:
    """Open the database of a run for reading, while it is written or afterwards.

    Never changes it, except that it rolls back an incomplete transaction of a killed process (`play_back`).

    Raises:
        TypeError: `folder` is not a path.
        HistoryError: there is no run, it is not intact, or another process holds it for too long; names
            the file.
    """
    file = as_folder(folder, "History.open")
    file = file / DATABASE if file.is_dir() else file
    if not file.is_file():
        what = "file" if file.name == DATABASE else "folder or file"
        raise HistoryError(f"[History.open] {str(file)!r}: no recorded run here: no such {what}")
    with reading(file, "History.open"):
        connection = _open_read_only(file, "History.open")
        try:
            connection.text_factory = _decode_text
            if sys.version_info >= (3, 11):
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1 << 28)
            migration.show_as_current(connection, _check(connection, file, "History.open"))
        except BaseException:
            connection.close()
            raise
        return connection


def leave_one_file(connection: sqlite3.Connection) -> None:
    """Move the WAL into the main file, before the writer closes.

    Readers then make no files beside it. While others have it open, it stays a WAL database.
    """
    connection.execute("PRAGMA busy_timeout=0")
    for statement in ("PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA journal_mode=DELETE"):
        try:
            connection.execute(statement)
        except sqlite3.Error:  # the WAL keeps what it has
            return


def play_back(file: Path, operation: str) -> None:
    """Roll back an incomplete transaction of a killed process, as SQLite does when it may write.

    Raises:
        HistoryError: the rollback journal cannot be played back here; names it.
    """
    uri = file.absolute().as_uri() + "?mode=rw"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise
        raise HistoryError(
            f"[{operation}] {str(file)!r}: a process was killed while it wrote, and {f'{file}-journal'!r}, "
            f"which rolls back what it left half written, cannot be played back here ({error}); open the run "
            "where its folder can be written, or copy both files to such a place and open that"
        ) from error
    finally:
        connection.close()


def _prepare(connection: sqlite3.Connection, file: Path, wanted: str) -> str:
    """Create or check the tables; returns the journal mode in use."""
    connection.execute("PRAGMA trusted_schema=OFF")
    fresh = _is_fresh(connection)
    version = VERSION
    if fresh:
        connection.execute("PRAGMA page_size=8192")
    else:
        version = _check(connection, file, "GradMonitor")
    mode = str(connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0]).upper()
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA journal_size_limit=16777216")
    if fresh:
        _create(connection)
    else:
        connection.execute("BEGIN IMMEDIATE")  # fails now, not in an hour, if it cannot be written
        connection.execute("ROLLBACK")
        migration.migrate(connection, version)
    return mode


def _is_fresh(connection: sqlite3.Connection) -> bool:
    """Whether it has no tables and no other program's ID, because a process died right after creating it."""
    mark = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and mark in (0, APPLICATION_ID)


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA.values():
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={VERSION}")
    connection.execute("COMMIT")


def _open_read_only(file: Path, operation: str, immutable: bool = False) -> sqlite3.Connection:
    if 0 < _size(file) < 512:  # less than the smallest page: SQLite would treat it as empty
        raise HistoryError(_damage(file, operation))
    try:
        return _connect_read_only(file, immutable)
    except sqlite3.OperationalError as error:
        # A file that a process holds is not opened without locks: it may be half written.
        if immutable or not any(text in str(error) for text in ("readonly", "unable to open")):
            raise
        if _size(f"{file}-journal"):
            play_back(file, operation)
            return _connect_read_only(file)
        if _size(f"{file}-wal"):
            raise
        # A WAL database in a read-only folder, without a WAL: everything is in the main file.
        return _connect_read_only(file, immutable=True)
    except sqlite3.DatabaseError as error:
        raise HistoryError(_damage(file, operation, error)) from error


def _connect_read_only(file: Path, immutable: bool = False) -> sqlite3.Connection:
    uri = file.absolute().as_uri() + ("?mode=ro&immutable=1" if immutable else "?mode=ro")
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _decode_text(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _check(connection: sqlite3.Connection, file: Path, operation: str) -> int:
    """Check that it is ours, complete, and has the tables of its version; returns the version."""
    if connection.execute("PRAGMA application_id").fetchone()[0] not in (APPLICATION_ID, 0):
        raise HistoryError(
            f"[{operation}] {str(file)!r}: expected a gradkern history, got another program's "
            f"database; {_REMEDY}"
        )
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise HistoryError(
            f"[{operation}] {str(file)!r}: written by a newer gradkern (format {version}, this one reads "
            f"up to {VERSION}); update gradkern"
        )
    found = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    if not _are_tables_of(version, found):
        got = "a database with other tables" if found else "an empty file"
        raise HistoryError(f"[{operation}] {str(file)!r}: expected a gradkern history, got {got}; {_REMEDY}")
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    _check_length(file, operation, pages * page)
    return int(version)


def _are_tables_of(version: int, found: list[tuple[str, str, str]]) -> bool:
    """Whether it has all tables of that version, and beyond them only plain tables that we do not know."""
    wanted = VERSIONS.get(version, {})
    known = {**SCHEMA, **wanted}
    tables = {name: sql for kind, name, sql in found if kind == "table"}
    return (
        bool(wanted)
        and len(tables) == len(found)
        and wanted.keys() <= tables.keys()
        and all(known.get(name, sql) == sql for name, sql in tables.items())
        and all(sql.startswith("CREATE TABLE ") for sql in tables.values())  # no virtual table
    )


def _check_length(file: Path, operation: str, expected: int) -> None:
    """Check the length only: opening and closing the file would release this process's locks on it."""
    if any(_size(f"{file}{ending}") for ending in ("-wal", "-journal")):
        return  # being written, or to be recovered by SQLite
    size = _size(file)
    if size < expected:
        raise HistoryError(
            f"[{operation}] {str(file)!r}: the file is truncated: expected {expected} bytes, got "
            f"{size}; {_REMEDY}"
        )


def _damage(file: Path, operation: str, error: sqlite3.Error | None = None) -> str:
    """An error message for a file that SQLite does not open."""
    with file.open("rb") as opened:
        header = opened.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return f"[{operation}] {str(file)!r}: expected a gradkern history, got another file; {_REMEDY}"
    page = int.from_bytes(header[16:18], "big")
    if header[24:28] == header[92:96]:
        pages = int.from_bytes(header[28:32], "big")
        _check_length(file, operation, (65536 if page == 1 else page) * pages)
    return f"[{operation}] {str(file)!r}: the file is corrupt ({error}); {_REMEDY}"


def _size(path: str | os.PathLike[str]) -> int:
    """Size in bytes; 0 if there is no such file."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
