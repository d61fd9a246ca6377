"""Where runs are tracked: the settings, and the address that follows from them, without the login that it may hold."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from glo_core.common.config import AutoText, Config
from glo_core.common.credentials import redact
from glo_core.common.errors import ConfigError
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
