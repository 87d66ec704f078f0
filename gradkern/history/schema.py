"""The tables of a run's file, in each version of the format.

    RUN/history.db
      meta        key, value (JSON): versions and arguments
      facts       key, value (JSON): about the model, its optimizers and the policy
      layouts     the names, sizes, … of the parameters; a new row whenever they change
      branches    where the run was continued from an earlier step
      steps       plain numbers of each recorded step
      blocks      the rows of `steps` again, 256 packed in one, to read them quickly
      vals        per-parameter columns of a step: little-endian blobs, one entry per parameter
      weights     periodic: weight norms and update ratios
      looks       periodic, `ZerosRow`: zero counts, and fractions of elements that were ever non-zero
      hists       periodic: log2 histograms
      summaries   aggregates of 16, 64, 256, … steps, written with the step that completes them
      name_lists  lists of names (JSON), which the next three tables refer to
      extras      the caller's own numbers of a step
      groups      total norm, factor and threshold of each named group of a step
      amendments  numbers added to a step later; the last one counts
      events      what happened at a step: kind and data (JSON)

A change that an earlier gradkern can ignore (a new table) does not raise the version: unknown tables are
ignored, and `ADDITIONS` that a file lacks are read as empty. Any other change raises the version and needs a
migration (`gradkern.history.migration`).
"""

from __future__ import annotations

APPLICATION_ID = 0x67726B6E  # "grkn"
VERSION = 2

_UNCHANGED = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "layouts": "CREATE TABLE layouts (id INTEGER PRIMARY KEY, params TEXT NOT NULL)",
    "branches": (
        "CREATE TABLE branches (id INTEGER PRIMARY KEY, from_step INTEGER, first_seq INTEGER NOT NULL, "
        "kept INTEGER NOT NULL, time REAL NOT NULL)"
    ),
    "blocks": "CREATE TABLE blocks (idx INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "weights": (
        "CREATE TABLE weights (id INTEGER PRIMARY KEY, branch INTEGER NOT NULL, step INTEGER NOT NULL, "
        "layout INTEGER NOT NULL, exact INTEGER NOT NULL, weight_norm BLOB NOT NULL, ratio BLOB NOT NULL)"
    ),
    "hists": (
        "CREATE TABLE hists (id INTEGER PRIMARY KEY, branch INTEGER NOT NULL, step INTEGER NOT NULL, "
        "layout INTEGER NOT NULL, counts BLOB NOT NULL, underflow BLOB NOT NULL)"
    ),
}

#: Tables that every file of the current version has.
CORE = {
    **_UNCHANGED,
    "steps": (
        "CREATE TABLE steps (seq INTEGER PRIMARY KEY, branch INTEGER NOT NULL, step INTEGER NOT NULL, "
        "layout INTEGER NOT NULL, flags INTEGER NOT NULL, time REAL NOT NULL, loss REAL, "
        "total_norm REAL, clip_coef REAL, inv_scale REAL, lr BLOB, threshold REAL)"
    ),
    "vals": (
        "CREATE TABLE vals (seq INTEGER PRIMARY KEY, norm BLOB NOT NULL, max_abs BLOB NOT NULL, "
        "l2_norm BLOB, nonfinite BLOB, zeros BLOB, factor BLOB)"
    ),
    "summaries": (
        "CREATE TABLE summaries (level INTEGER, idx INTEGER, body BLOB NOT NULL, "
        "PRIMARY KEY (level, idx)) WITHOUT ROWID"
    ),
}

#: Tables that a file may lack; they are read as empty then.
ADDITIONS = {
    "facts": "CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "looks": (
        "CREATE TABLE looks (id INTEGER PRIMARY KEY, branch INTEGER NOT NULL, step INTEGER NOT NULL, "
        "layout INTEGER NOT NULL, nonzero BLOB NOT NULL, zeros BLOB NOT NULL)"
    ),
    "name_lists": "CREATE TABLE name_lists (id INTEGER PRIMARY KEY, names TEXT NOT NULL)",
    "extras": "CREATE TABLE extras (seq INTEGER PRIMARY KEY, names INTEGER NOT NULL, data BLOB NOT NULL)",
    "groups": "CREATE TABLE groups (seq INTEGER PRIMARY KEY, names INTEGER NOT NULL, data BLOB NOT NULL)",
    "amendments": (
        "CREATE TABLE amendments (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, names INTEGER NOT NULL, "
        "data BLOB NOT NULL)"
    ),
    "events": (
        "CREATE TABLE events (id INTEGER PRIMARY KEY, branch INTEGER NOT NULL, step INTEGER NOT NULL, "
        "time REAL NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL)"
    ),
}

SCHEMA = {**CORE, **ADDITIONS}

#: The tables of each version that can be read.
VERSIONS = {
    1: {
        **_UNCHANGED,
        "steps": (
            "CREATE TABLE steps (seq INTEGER PRIMARY KEY, branch INTEGER NOT NULL, step INTEGER NOT NULL, "
            "layout INTEGER NOT NULL, flags INTEGER NOT NULL, time REAL NOT NULL, loss REAL, "
            "total_norm REAL, clip_coef REAL, inv_scale REAL, lr BLOB)"
        ),
        "vals": (
            "CREATE TABLE vals (seq INTEGER PRIMARY KEY, norm BLOB NOT NULL, max_abs BLOB NOT NULL, "
            "l2_norm BLOB, nonfinite BLOB, zeros BLOB)"
        ),
        "summaries": (
            "CREATE TABLE summaries (level INTEGER, idx INTEGER, step0 INTEGER NOT NULL, "
            "step1 INTEGER NOT NULL, head BLOB NOT NULL, body BLOB NOT NULL, "
            "PRIMARY KEY (level, idx)) WITHOUT ROWID"
        ),
    },
    2: CORE,
}
