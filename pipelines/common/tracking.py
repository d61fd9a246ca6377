"""The only file that imports MLflow. Only the driver of a job talks to it.

MLflow is imported by the functions that call it, not above them: Ray's worker processes import this package too,
and each would spend seconds on a library that it must not use.
"""

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from PIL import Image

from glo_core.common.credentials import redact
from glo_core.common.errors import ConfigError, UserError
from glo_core.common.location import Location
from pipelines.common.moved_database import ARTIFACTS, follow_artifacts
from pipelines.common.tracking_config import TrackingConfig, tracking_uri

P = ParamSpec("P")
R = TypeVar("R")


def import_mlflow() -> None:
    """Import MLflow, which takes seconds, while another process prepares the work."""
    importlib.import_module("mlflow")


def _one_line_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Turn MLflow's errors into a `UserError`; whatever the job has finished is on disk before it is logged."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except UserError:
            raise
        except Exception as error:  # MLflow's, its database's or the network's
            raise UserError(f"MLflow: {_first_line(error)}") from None

    return call


class Tracker:
    """One MLflow run, open from `start` or `reopen` to `finish`."""

    def __init__(self, client: Any, run_id: str) -> None:
        """Track the run `run_id` through `client`, an `mlflow.MlflowClient`."""
        self.client, self.run_id = client, run_id

    @classmethod
    def start(cls, config: TrackingConfig, root: Path | Location, *, name: str, run_id: str | None = None) -> Self:
        """Open the run `run_id` again, or a new one, with the machine's metrics; for the work of this process.

        Args:
            root: directory of the outputs, home of the default database.
            name: of the job.
            run_id: of the run to open again, if MLflow still has it.

        Raises:
            UserError: if the server does not answer.
        """
        import mlflow

        uri = tracking_uri(config, root)
        with _reaching(uri):
            client, experiment = _connect(uri, config.experiment)
            resumed = run_id if run_id and _exists(client, run_id) else None
            if resumed is None:
                _require_run_of_environment(client, uri)
            run = mlflow.start_run(
                run_id=resumed,
                experiment_id=experiment,
                run_name=None if resumed else name,
                log_system_metrics=True,
            )
        return cls(client, run.info.run_id)

    @classmethod
    def reopen(cls, config: TrackingConfig, root: Path | Location, *, name: str, run_id: str | None) -> Self:
        """The run `run_id`, or a new one if MLflow has none of that id; to send what it lacks of work done before.

        Args and errors as of `start`.
        """
        uri = tracking_uri(config, root)
        with _reaching(uri):
            client, experiment = _connect(uri, config.experiment)
            if run_id and _exists(client, run_id):
                return cls(client, run_id)
            return cls(client, client.create_run(experiment, run_name=name).info.run_id)

    def answers(self) -> bool:
        """Whether MLflow can be asked for this run."""
        with _without_retries():
            try:
                self.client.get_run(self.run_id)
            except Exception:  # Whatever its store raises.
                return False
        return True

    @_one_line_errors
    def link(self, inputs: Mapping[str, str | None]) -> None:
        """Name the runs whose outputs this one uses, by what each output is, such as `dataset`."""
        links = {role: run_id for role, run_id in inputs.items() if run_id}
        tags = {f"glo.input.{role}": run_id for role, run_id in links.items()}
        if links:  # MLflow shows this note, as Markdown, on the run's page.
            experiment = self.client.get_run(self.run_id).info.experiment_id
            lines = [
                f"- {role} from run [{run_id}](#/experiments/{experiment}/runs/{run_id})"
                for role, run_id in links.items()
            ]
            tags["mlflow.note.content"] = "Made from:\n" + "\n".join(lines)
        self.tags(tags)

    @_one_line_errors
    def tags(self, tags: Mapping[str, Any]) -> None:
        """Set (nested) tags: for what does not decide the result, since MLflow's page shows every parameter first."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, str(value)) for key, value in _flatten(tags).items()]
        for batch in _batches(entries, 100):
            self.client.log_batch(self.run_id, tags=batch)

    @_one_line_errors
    def params(self, params: Mapping[str, Any]) -> None:
        """Log a (nested) config; a parameter that this run already has stays."""
        from mlflow.entities import Param

        logged = self.client.get_run(self.run_id).data.params
        entries = [Param(key, str(value)) for key, value in _flatten(params).items() if key not in logged]
        for batch in _batches(entries, 100):
            self.client.log_batch(self.run_id, params=batch)

    @_one_line_errors
    def history(self, reports: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
        """Log many reports at once: (milliseconds since 1970, images seen, metrics)."""
        from mlflow.entities import Metric

        metrics = [Metric(key, value, when, step) for when, step, values in reports for key, value in values.items()]
        for batch in _batches(metrics, 1000):
            self.client.log_batch(self.run_id, metrics=batch)

    @_one_line_errors
    def image(self, path: Path, images_seen: int = 0) -> None:
        """Show a picture in the run's page as part of a series, and keep the file as an artifact."""
        with Image.open(path) as image:
            self.client.log_image(self.run_id, image, key=path.stem, step=images_seen)
        self.client.log_artifact(self.run_id, str(path), artifact_path="grids")

    @_one_line_errors
    def artifact(self, path: Path) -> None:
        """Keep a file."""
        self.client.log_artifact(self.run_id, str(path))

    @_one_line_errors
    def dataset(self, path: str, digest: str, context: str) -> None:
        """Name a dataset, or another result of a stage, that the run uses (`context` says as what)."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        dataset = MetaDataset(CodeDatasetSource({"path": path}), name=Location(path).name, digest=digest)
        entry = DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", context)])
        self.client.log_inputs(self.run_id, [entry])

    @_one_line_errors
    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, KILLED (stopped on request) or FAILED."""
        import mlflow

        active = mlflow.active_run()
        if active is not None and active.info.run_id == self.run_id:
            mlflow.end_run(status)
        else:
            self.client.set_terminated(self.run_id, status)

    def leave(self) -> None:
        """Stop working on the run, although MLflow could not be told how it ends; another run may start."""
        import mlflow

        active = mlflow.active_run()
        if active is not None and active.info.run_id == self.run_id:
            with _without_retries(), contextlib.suppress(Exception):  # Whatever its store raises.
                mlflow.end_run("RUNNING")  # Forgets the run first, and fails where MLflow is away.


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    """Let MLflow ask its server once."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    retries = os.environ.get(name, "1")
    os.environ[name] = "0"
    try:
        yield
    finally:
        os.environ[name] = retries


_reached: set[str] = set()
"""URIs at which MLflow has answered this process"""


def was_reached(config: TrackingConfig, root: Path | Location) -> bool:
    """Whether MLflow has answered this process where runs with outputs in `root` are tracked."""
    return tracking_uri(config, root) in _reached


@contextlib.contextmanager
def _reaching(uri: str) -> Iterator[None]:
    """Turn an error of the block, which connects to `uri`, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # MLflow's, its database's (a full disk, a missing driver), or the network's
        if _names_remedy(error):
            raise UserError(f"{redact(uri, uri)}: MLflow refuses: {_one_line(error)}") from None
        raise UserError(
            f"{redact(uri, uri)}: MLflow does not answer there ({_first_line(error)}); start the server, or set "
            "`tracking_uri` or MLFLOW_TRACKING_URI to another one"
        ) from None
    _reached.add(uri)


def _connect(uri: str, experiment: str) -> tuple[Any, str]:
    """An `mlflow.MlflowClient` of `uri`, and the id of the experiment, which is made if it is not there."""
    import mlflow

    # A server that is away is asked once more, after 2 s, and one that does not answer has 10 s for each: 22 s in all,
    # not MLflow's 20 minutes. A stage tries again later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    local = Path(uri.removeprefix("sqlite:///")).absolute().parent if uri.startswith("sqlite:///") else None
    if local is not None:
        local.mkdir(parents=True, exist_ok=True)
        follow_artifacts(Path(uri.removeprefix("sqlite:///")).absolute())
    given = "MLFLOW_TRACKING_URI" in os.environ
    mlflow.set_tracking_uri(uri)
    if not given:  # MLflow has set it, as if the user had said where the next runs of this process go.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    client = mlflow.MlflowClient()
    return client, _experiment(client, experiment, local)


def _experiment(client: Any, name: str, root: Path | None) -> str:
    """Id of the experiment `name`, made if it is not there.

    Raises:
        ConfigError: if it is deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise ConfigError(
            f"`experiment` (={name}): is deleted; you can restore the experiment (mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}), or permanently delete the experiment to create a new one, "
            "or name another one"
        )
    if experiment is not None:
        return str(experiment.experiment_id)
    # Beside a local database the artifacts belong beside it too, not in the working directory.
    location = (root / ARTIFACTS).as_uri() if root else None
    return str(client.create_experiment(name, artifact_location=location))


def _exists(client: Any, run_id: str) -> bool:
    """Whether the store has the run; any error but this one may pass, and raises."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _require_run_of_environment(client: Any, uri: str) -> None:
    """Check the run that MLFLOW_RUN_ID names, which MLflow opens in place of a new one.

    Raises:
        ConfigError: if it is of another store.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id and not _exists(client, run_id):
        raise ConfigError(
            f"MLFLOW_RUN_ID={run_id}: {redact(uri, uri)} has no such run; unset MLFLOW_RUN_ID, or set "
            "MLFLOW_TRACKING_URI to the store that has it"
        )


def _batches(entries: list[R], limit: int) -> Iterator[list[R]]:
    """Cut to MLflow's limits for one request: 1000 metrics, 100 parameters, 100 tags."""
    for start in range(0, len(entries), limit):
        yield entries[start : start + limit]


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in params.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _names_remedy(error: Exception) -> bool:
    """Whether MLflow itself, or its server, says what is wrong: a deleted experiment, an older database."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, RestException):
        return True
    connection_failed = "API request to" in str(error) or "Max retries" in str(error)
    return isinstance(error, MlflowException) and not connection_failed


def _one_line(error: Exception) -> str:
    """MLflow's whole message, remedy included."""
    return redact(" ".join(str(error).split()), os.environ.get("MLFLOW_TRACKING_URI", ""))


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return redact(line, os.environ.get("MLFLOW_TRACKING_URI", ""))[:160]
