"""The work of `glo_core` spread over Ray, and tracked in MLflow.

Ray and MLflow read their environment when they are imported, so that it is set here, before anything below does.
"""

import os
import secrets
import tempfile

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
# Under `uv run`, Ray would start each worker by another `uv run`, which builds an environment of its own, or fails.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
if os.path.expanduser("~") == "~":  # noqa: PTH111, `Path` raises
    # MLflow cannot be imported where a user has neither HOME nor an entry in passwd, as in containers.
    os.environ["HOME"] = tempfile.gettempdir()
if not os.environ.get("RAY_ADDRESS"):
    # A Ray of one machine then listens on the loopback interface alone, as on Windows and macOS.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
if not os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ:
    # Other users of this machine reach it: a secret that lives as long as the process keeps them out.
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
