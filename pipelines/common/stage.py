"""What a stage is: a locked directory, the inputs and the recipe that decide its result, and a record of both.

`run.json` is written first and `done.json` last. A finished stage is not done again; an interrupted one goes on;
a recipe or an input that differs from the record's is refused in one line.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glo_core.common.errors import UserError
from glo_core.common.file_lock import file_lock
from glo_core.common.files import FORMAT_VERSION, differences, read_json, write_json
from glo_core.common.location import Location
from pipelines.common.tracking import Tracker, TrackingConfig
from pipelines.common.versions import library_versions


@dataclass(frozen=True)
class Input:
    """Something made by an earlier stage."""

    path: Path | Location
    digest: str
    run_id: str | None
    """MLflow run that made it"""


@dataclass
class Stage:
    """A stage whose directory is locked; see `open_stage`."""

    name: str
    directory: Path
    root: Path
    inputs: Mapping[str, Input]
    record: dict[str, Any]
    done: dict[str, Any] | None
    """What `done.json` holds, if the stage was finished before"""
    tracking: TrackingConfig
    _tracker: Tracker | None = None

    @property
    def tracker(self) -> Tracker:
        if self._tracker is None:
            raise RuntimeError(f"stage {self.name} has not begun")
        return self._tracker

    def begin(self, params: Mapping[str, Any]) -> None:
        """Open the MLflow run, the same one as before an interruption, and write `run.json`."""
        links = {what: source.run_id for what, source in self.inputs.items()}
        self._tracker = Tracker.start(
            self.tracking, self.root, name=self.name, inputs=links, run_id=self.record.get("mlflow_run_id")
        )
        self.record["mlflow_run_id"] = self._tracker.run_id
        self.done = None
        self.save()
        self._tracker.tags({"glo.directory": self.directory, "glo.version": library_versions()})
        self._tracker.params(params)
        for what, source in self.inputs.items():
            self._tracker.dataset(source.path, source.digest, what)

    def save(self) -> None:
        write_json(self.directory / "run.json", self.record)

    def finish(self, outputs: Mapping[str, Any]) -> None:
        """Write `done.json` and end the MLflow run."""
        self.done = {"format_version": FORMAT_VERSION, **outputs}
        write_json(self.directory / "done.json", self.done)
        self._end_run("FINISHED")

    def close(self, status: str) -> None:
        if self._tracker is not None and self.done is None:
            self._end_run(status)

    def _end_run(self, status: str) -> None:
        try:
            self.tracker.finish(status)
        except UserError as error:  # What the stage made is made.
            print(f"{self.name}: {error}", flush=True)


@contextlib.contextmanager
def open_stage(
    name: str,
    directory: Path,
    *,
    root: Path,
    identity: Mapping[str, Any],
    inputs: Mapping[str, Input],
    tracking: TrackingConfig,
) -> Iterator[Stage]:
    """Lock `directory` and compare its record with what is requested.

    Args:
        root: home of the default MLflow database.
        identity: whatever decides the result; never paths, worker counts or devices.

    Raises:
        UserError: if the directory is in use, or holds the outcome of another recipe or of other inputs.
    """
    with file_lock(directory):
        path = directory / "run.json"
        record = read_json(path) if path.exists() else {}
        requested = {
            "stage": name,
            "identity": dict(identity),
            "inputs": {k: v.digest for k, v in inputs.items()},
        }
        if record:
            _compare(directory, record, requested)
        done_path = directory / "done.json"
        stage = Stage(
            name,
            directory,
            root,
            inputs,
            tracking=tracking,
            record={
                "format_version": FORMAT_VERSION,
                **record,
                **requested,
                "versions": library_versions(),
                "paths": {key: str(value.path) for key, value in inputs.items()},
            },
            done=read_json(done_path) if record and done_path.exists() else None,
        )
        try:
            yield stage
        except (SystemExit, KeyboardInterrupt):
            stage.close("KILLED")
            raise
        except BaseException:
            stage.close("FAILED")
            raise


def _compare(directory: Path, record: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
    if record["stage"] != requested["stage"]:
        raise UserError(
            f"{directory}: holds the outcome of {record['stage']}, not of {requested['stage']}; give another directory"
        )
    changed = differences(record["inputs"], requested["inputs"])
    if changed:
        raise UserError(
            f"{directory}: was made from other inputs ({'; '.join(changed)}); "
            "give the ones it was made from, or another directory"
        )
    changed = differences(record["identity"], requested["identity"])
    if changed:
        raise UserError(
            f"{directory}: was made with another recipe ({'; '.join(changed)}); "
            "use the old values or another directory, or delete this one"
        )


def identity_of(config: Any, owner: type) -> dict[str, Any]:
    """The fields of `config` that its base class `owner` declares: those that decide a result."""
    values = dataclasses.asdict(config)
    # As JSON will give them back: tuples become lists.
    return {field.name: _plain(values[field.name]) for field in dataclasses.fields(owner)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def saved_config_of_newest(run: Path | str, folder: str) -> dict[str, Any]:
    """The identity of the stage that made `<run>/<folder>/<images seen>` of the newest checkpoint, if one did."""
    from glo_core.checkpoint.layout import committed_checkpoints

    record = next((Path(run) / folder / mark.name / "run.json" for mark in committed_checkpoints(Path(run))[-1:]), None)
    return read_json(record).get("identity", {}) if record is not None and record.exists() else {}


def run_id_of(directory: Path) -> str | None:
    """MLflow id of the stage that made `directory`, if it is known."""
    path = directory / "run.json"
    return read_json(path).get("mlflow_run_id") if path.exists() else None
