"""The only file that imports MLflow. Only the driver of a job talks to it.

MLflow is imported by the functions that call it, not above them: Ray's worker processes import this package too,
and each would spend seconds on a library that it must not use.
"""

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar
from urllib.parse import unquote, urlsplit

from PIL import Image

from glo_core.common.config import AutoText, Config
from glo_core.common.credentials import redact
from glo_core.common.errors import ConfigError, UserError
from glo_core.common.location import Location


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(Config):
    """Where runs are tracked."""

    tracking_uri: AutoText = None
    """MLflow server or database; auto takes MLFLOW_TRACKING_URI, else mlflow.db beside the outputs"""
    experiment: str = "glo"
    """MLflow experiment"""


def tracking_uri(config: TrackingConfig, root: Path | Location) -> str:
    """The URI that runs with outputs in `root` are tracked at.

    Raises:
        ConfigError: if none is given and `root` is remote: no database can lie in an object store.
    """
    uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and Location(root).remote:
        raise ConfigError(
            f"`tracking_uri` must be given, such as http://server:5000 or sqlite:////absolute/path/mlflow.db: "
            f"MLflow's database cannot lie beside {root}"
        )
    return _without_login(uri) if uri else f"sqlite:///{root / 'mlflow.db'}"


def _without_login(uri: str) -> str:
    """`uri` without user:password@ of a server, which MLflow finds in its own variables from now on.

    MLflow prints and stores the URI that it is given. A database's URI keeps its password, which its driver needs.

    Raises:
        ConfigError: if a server's URI holds a user, or a token, without a password.
    """
    scheme, _, rest = uri.partition("://")
    login, at, _ = urlsplit(uri).netloc.rpartition("@") if scheme.lower() in ("http", "https") else ("", "", "")
    if not at:
        return uri
    user, colon, password = login.partition(":")
    if not (user and colon and password):
        raise ConfigError(
            f"`tracking_uri` (={redact(uri)}): holds a user without a password; set MLFLOW_TRACKING_TOKEN instead"
        )
    os.environ |= {"MLFLOW_TRACKING_USERNAME": unquote(user), "MLFLOW_TRACKING_PASSWORD": unquote(password)}
    return f"{scheme}://{rest.removeprefix(login + at)}"


P = ParamSpec("P")
R = TypeVar("R")


def _one_line_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Turn MLflow's errors into a `UserError`; whatever the job has finished is on disk before it is logged."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        from mlflow.exceptions import MlflowException

        try:
            return method(*args, **kwargs)
        except (MlflowException, OSError) as error:
            raise UserError(f"MLflow: {_first_line(error)}; run the same command again once it answers") from None

    return call


class Tracker:
    """One MLflow run, open from `start` to `finish`."""

    def __init__(self, client: Any, run_id: str) -> None:
        """Track the run `run_id` through `client`, an `mlflow.MlflowClient`."""
        self.client, self.run_id = client, run_id

    @classmethod
    def start(
        cls,
        config: TrackingConfig,
        root: Path | Location,
        *,
        name: str,
        run_id: str | None = None,
        inputs: Mapping[str, str | None] | None = None,
    ) -> Self:
        """Open the run `run_id` again, or a new one.

        Args:
            root: directory of the outputs, home of the default database.
            name: of the job.
            run_id: of the run to open again, if MLflow still has it.
            inputs: MLflow ids of the runs whose outputs this one uses, by what each output is, such as `dataset`.

        Raises:
            UserError: if the server does not answer.
        """
        import mlflow
        from mlflow.exceptions import MlflowException

        uri = tracking_uri(config, root)
        # A server that is away is asked again for 14 s (2 + 4 + 8), not for MLflow's four minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        local = Path(uri.removeprefix("sqlite:///")).absolute().parent if uri.startswith("sqlite:///") else None
        if local is not None:
            local.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        try:
            client = mlflow.MlflowClient()
            experiment = _experiment(client, config.experiment, local)
            resumed = run_id if run_id and _exists(client, run_id) else None
            run = mlflow.start_run(
                run_id=resumed,
                experiment_id=experiment,
                run_name=None if resumed else name,
                log_system_metrics=True,
            )
        except (MlflowException, OSError) as error:
            raise UserError(
                f"{uri}: MLflow does not answer there ({_first_line(error)}); start the server, or set "
                "`tracking_uri` or MLFLOW_TRACKING_URI to another one"
            ) from None
        tracker = cls(client, run.info.run_id)
        tracker._link(name, experiment, inputs or {})
        return tracker

    def _link(self, name: str, experiment: str, inputs: Mapping[str, str | None]) -> None:
        links = {role: run_id for role, run_id in inputs.items() if run_id}
        tags = {"glo.job": name, **{f"glo.input.{role}": run_id for role, run_id in links.items()}}
        if links:  # MLflow shows this note, as Markdown, on the run's page.
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

    def metrics(self, metrics: Mapping[str, float], images_seen: int = 0) -> None:
        """Log metrics at `images_seen`."""
        self.history([(int(time.time() * 1000), images_seen, dict(metrics))])

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
    def dataset(self, path: Path | Location, digest: str, context: str) -> None:
        """Name a dataset, or another result of a stage, that the run uses (`context` says as what)."""
        import mlflow
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset

        source = CodeDatasetSource({"path": str(path)})
        mlflow.log_input(MetaDataset(source, name=path.name, digest=digest), context=context)

    @_one_line_errors
    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, KILLED (stopped on request) or FAILED."""
        import mlflow

        mlflow.end_run(status)


def _experiment(client: Any, name: str, root: Path | None) -> str:
    """Id of the experiment `name`, made if it is not there."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # Beside a local database the artifacts belong beside it too, not in the working directory.
    location = (root / "mlartifacts").as_uri() if root else None
    return str(client.create_experiment(name, artifact_location=location))


def _exists(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


def _batches(entries: list[R], limit: int) -> Iterator[list[R]]:
    """Cut to MLflow's limits for one request: 1000 metrics, 100 parameters, 100 tags."""
    for start in range(0, len(entries), limit):
        yield entries[start : start + limit]


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in params.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return redact(line, os.environ.get("MLFLOW_TRACKING_URI", ""))[:160]
