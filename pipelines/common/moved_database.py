"""MLflow's database beside the outputs, after it has moved with them: its runs name the artifacts beside it again.

MLflow records where artifacts lie as absolute addresses, and has no command that changes them.
"""

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"
"""Folder beside a local database that new experiments keep their artifacts in"""


def follow_artifacts(database: Path) -> None:
    """Let the experiments whose folder of artifacts has moved with `database` name the folder where it is now.

    Nothing is changed where the database lies as it was, is none of MLflow's, or cannot be written.
    """
    if not database.is_file():
        return
    home = database.parent / ARTIFACTS
    with contextlib.suppress(sqlite3.Error, OSError), contextlib.closing(sqlite3.connect(database, timeout=30)) as base:
        rows = base.execute(
            "SELECT experiment_id, artifact_location FROM experiments WHERE artifact_location LIKE ?",
            (f"file://%/{ARTIFACTS}",),
        ).fetchall()
        for experiment, location in rows:
            if location != home.as_uri() and _has_moved(base, experiment, location, home):
                _point_at(base, experiment, location, home.as_uri())


def _has_moved(base: sqlite3.Connection, experiment: int, location: str, home: Path) -> bool:
    """Whether the artifacts at `location` are gone, or `home` has a copy of them."""
    runs = base.execute("SELECT run_uuid FROM runs WHERE experiment_id = ? LIMIT 1000", (experiment,))
    return not Path(unquote(urlsplit(location).path)).exists() or any((home / run).is_dir() for (run,) in runs)


def _point_at(base: sqlite3.Connection, experiment: int, old: str, new: str) -> None:
    with base:  # One transaction.
        base.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment))
        base.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
            (new, len(old) + 1, experiment, len(old) + 1, f"{old}/"),
        )
