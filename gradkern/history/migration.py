"""Files of earlier versions: readers see them through views, the next writer converts them."""

from __future__ import annotations

import sqlite3

from gradkern.history import scalars
from gradkern.history.schema import ADDITIONS, CORE, VERSION

#: For each earlier version, statements that show its tables as those of the current one. Blocks of version 1
#: have fewer columns, so readers use the rows of `steps` instead.
_VIEWS = {
    1: (
        "CREATE TEMP VIEW steps AS SELECT seq, branch, step, layout, flags, time, loss, total_norm, "
        "clip_coef, inv_scale, lr, NULL AS threshold FROM main.steps",
        "CREATE TEMP VIEW vals AS SELECT seq, norm, max_abs, l2_norm, nonfinite, zeros, NULL AS factor "
        "FROM main.vals",
        "CREATE TEMP VIEW summaries AS SELECT level, idx, body FROM main.summaries",
        "CREATE TEMP TABLE blocks (idx INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    ),
}


def show_as_current(connection: sqlite3.Connection, version: int) -> None:
    """Show a reader the tables of the current version; the file is not changed."""
    found = {name for (name,) in connection.execute("SELECT name FROM main.sqlite_master")}
    connection.execute("PRAGMA temp_store=MEMORY")
    for statement in _VIEWS.get(version, ()):
        connection.execute(statement)
    for name, statement in ADDITIONS.items():
        if name not in found:
            connection.execute(statement.replace("CREATE TABLE", "CREATE TEMP TABLE", 1))


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Convert a file to the current version, in one transaction."""
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if version == VERSION and found.issuperset(ADDITIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for name, statement in ADDITIONS.items():
            if name not in found:
                connection.execute(statement)
        if version == 1:
            _from_version_1(connection)
        connection.execute(f"PRAGMA user_version={VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _from_version_1(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE steps ADD COLUMN threshold REAL")
    connection.execute("ALTER TABLE vals ADD COLUMN factor BLOB")
    connection.execute("ALTER TABLE summaries RENAME TO summaries_1")
    connection.execute(CORE["summaries"])
    connection.execute("INSERT INTO summaries SELECT level, idx, body FROM summaries_1")
    connection.execute("DROP TABLE summaries_1")
    connection.execute("DELETE FROM blocks")
    last = connection.execute("SELECT max(seq) FROM steps").fetchone()[0] or 0
    scalars.write_blocks(connection, 0, last)
