"""A stage: a locked directory, the inputs and the settings that decide its result, and the records of both.

A stage writes `run.json` first and `done.json` last. A finished stage is skipped; an interrupted one resumes;
settings or inputs other than those in its record are refused in one line.
"""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from glo_core.common.digests import digest_json
from glo_core.common.errors import CheckpointError
from glo_core.common.file_lock import file_lock
from glo_core.common.files import differences
from glo_core.common.location import Location
from glo_core.common.records import read_record, write_record
from pipelines.common.leftovers import logs_of_run, send_leftovers
from pipelines.common.progress import Progress, failure_ends
from pipelines.common.progress_log import is_behind
from pipelines.common.records import DONE_FILE, RUN_FILE, DoneRecord, RunRecord, read_run_record
from pipelines.common.tracking_config import TrackingConfig
from pipelines.common.versions import library_versions

DoneT = TypeVar("DoneT", bound=DoneRecord)


@dataclass(frozen=True)
class Input:
    """Something made by an earlier stage."""

    path: Path | Location
    digest: str
    run_id: str | None
    """MLflow run that made it"""


@dataclass
class Stage(Generic[DoneT]):
    """A stage whose directory is locked; see `open_stage`."""

    name: str
    directory: Path
    root: Path
    inputs: Mapping[str, Input]
    record: RunRecord
    done: DoneT | None
    """What `done.json` holds, if the stage is finished"""
    tracking: TrackingConfig
    _progress: Progress | None = None

    @property
    def progress(self) -> Progress:
        """What is told MLflow."""
        if self._progress is None:
            raise RuntimeError(f"stage {self.name} has not begun")
        return self._progress

    def begin(self, params: Mapping[str, Any]) -> None:
        """Open the MLflow run, the same one as before an interruption, and write `run.json`.

        Args:
            params: the (nested) settings that MLflow shows.

        Raises:
            UserError: if MLflow does not answer at the beginning of a stage's first command; see `Progress.connect`.
        """
        progress = self._open_progress()
        progress.connect()
        self._progress = progress
        self.record = dataclasses.replace(self.record, mlflow_run_id=progress.run_id)
        self.done = None
        self.save()
        progress.describe(
            params=params,
            tags={"glo.directory": self.directory, "glo.version": library_versions()},
            inputs={name: source.run_id for name, source in self.inputs.items()},
        )
        for name, source in self.inputs.items():
            progress.dataset(source.path, source.digest, name)

    def _open_progress(self) -> Progress:
        return Progress(self.tracking, self.root, self.name, self.directory, self.record.mlflow_run_id)

    def save(self) -> None:
        """Write `run.json`."""
        write_record(self.directory / RUN_FILE, self.record)

    def finish(self, done: DoneT) -> None:
        """Write `done.json` and end the MLflow run."""
        self.done = done
        write_record(self.directory / DONE_FILE, done)
        self.end_run("FINISHED")

    def end_run(self, status: str) -> None:
        """End the MLflow run, if one is open: FINISHED, KILLED (stopped on request) or FAILED."""
        if self._progress is None:
            return
        progress, self._progress = self._progress, None
        if progress.finish(status):
            self._keep_run_id(progress)
            self._send_leftovers()

    def send_rest(self) -> None:
        """Send what MLflow missed of an earlier command, of this stage or of others of the run."""
        if is_behind(self.directory):
            progress = self._open_progress()
            if not progress.try_to_send():
                return
            self._keep_run_id(progress)
        self._send_leftovers()

    def _send_leftovers(self) -> None:
        run = self.directory if self.name == "train" else self.directory.parent.parent
        send_leftovers(self.tracking, self.root, [path for path in logs_of_run(run) if path != self.directory])

    def _keep_run_id(self, progress: Progress) -> None:
        """Record a run that MLflow could be told of only later."""
        if progress.run_id != self.record.mlflow_run_id:
            self.record = dataclasses.replace(self.record, mlflow_run_id=progress.run_id)
            with contextlib.suppress(OSError):  # `progress.sent` has it too.
                self.save()


@contextlib.contextmanager
def open_stage(
    name: str,
    directory: Path,
    *,
    root: Path,
    identity: Mapping[str, Any],
    inputs: Mapping[str, Input],
    done_type: type[DoneT],
    tracking: TrackingConfig,
    sets_aside: bool = False,
) -> Iterator[Stage[DoneT]]:
    """Lock `directory` and compare its record with what is requested.

    Args:
        root: home of the default MLflow database.
        identity: whatever decides the result, as JSON has it; never paths, worker counts or devices.
        done_type: what `done.json` holds.
        sets_aside: whether results of other inputs are moved to a directory beside, and not refused.

    Raises:
        CheckpointError: if the directory is in use, its records are damaged, or it holds the outcome of other
            settings or inputs.
    """
    with file_lock(directory, CheckpointError):
        saved = read_run_record(directory)
        digests = {key: source.digest for key, source in inputs.items()}
        if sets_aside and saved is not None and saved.stage == name and saved.inputs != digests:
            set_aside(directory, saved)
            saved = None
        record = RunRecord(
            stage=name,
            identity=dict(identity),
            inputs=digests,
            paths={**(saved.paths if saved else {}), **{key: str(source.path) for key, source in inputs.items()}},
            versions=library_versions(),
            mlflow_run_id=saved.mlflow_run_id if saved else None,
            phases=saved.phases if saved else (),
        )
        if saved:
            _require_same(directory, saved, record)
        finished = saved is not None and (directory / DONE_FILE).exists()
        done = read_record(directory / DONE_FILE, done_type) if finished else None
        stage = Stage(name, directory, root, inputs, record=record, done=done, tracking=tracking)
        if saved is not None and saved.paths != record.paths:
            with contextlib.suppress(OSError):  # What is read-only stays as it is.
                write_record(directory / RUN_FILE, dataclasses.replace(saved, paths=record.paths))
        with failure_ends(stage.end_run):
            yield stage


def set_aside(directory: Path, saved: RunRecord) -> None:
    """Move a stage's results to a directory beside, which is named after the digest of their inputs.

    What training draws into the same directory stays. Done half, it is done again by the next command.
    """
    target = directory.with_name(f"{directory.name}-{digest_json(saved.inputs)[:8]}")
    target.mkdir(exist_ok=True)
    # First the mark that they are finished, and last the record that says whose they are.
    order = {DONE_FILE: 0, RUN_FILE: 2}
    for path in sorted(directory.iterdir(), key=lambda path: order.get(path.name, 1)):
        if path.name != ".lock" and not path.name.startswith("training_"):
            if (target / path.name).is_dir():
                shutil.rmtree(target / path.name)
            path.replace(target / path.name)
    logging.getLogger(f"glo.{saved.stage}").info(
        "%s held results of other inputs, which are now in %s", directory, target
    )


def _require_same(directory: Path, saved: RunRecord, requested: RunRecord) -> None:
    if saved.stage != requested.stage:
        raise CheckpointError(
            f"{directory}: holds the outcome of {saved.stage}, not of {requested.stage}; give another directory"
        )
    changed = differences(saved.inputs, requested.inputs)
    if changed:
        raise CheckpointError(
            f"{directory}: was made from other inputs ({'; '.join(changed)}); "
            "give the ones it was made from, or another directory"
        )
    changed = differences(saved.identity, requested.identity)
    if changed:
        raise CheckpointError(
            f"{directory}: was made with another recipe ({'; '.join(changed)}); "
            "use the old values or another directory, or delete this one"
        )


def identity_of(config: Any, owner: type) -> dict[str, Any]:
    """The fields of `config` that its base class `owner` declares, which decide a result, as JSON has them."""
    values = dataclasses.asdict(config)
    return {field.name: _as_json(values[field.name]) for field in dataclasses.fields(owner)}


def _as_json(value: Any) -> Any:
    """`value` with lists in place of tuples."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def saved_config_of_newest(run: Path | str, folder: str, owner: type) -> dict[str, Any]:
    """The identity of the stage that made `<run>/<folder>/<images seen>` of the newest checkpoint, if one did.

    Only fields of `owner`, a config, are taken: a record must choose no code, place or server.
    """
    from glo_core.checkpoint.layout import committed_checkpoints

    for checkpoint in committed_checkpoints(Path(run))[-1:]:
        record = read_run_record(Path(run) / folder / checkpoint.name)
        names = {field.name for field in dataclasses.fields(owner)}
        return {name: value for name, value in record.identity.items() if name in names} if record else {}
    return {}


def run_id_of(directory: Path) -> str | None:
    """MLflow id of the stage that made `directory`; None if it has no record or was not tracked."""
    record = read_run_record(directory)
    return record.mlflow_run_id if record else None
