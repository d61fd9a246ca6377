"""Versions of the libraries that a result was made with."""

import platform
from importlib.metadata import version

LIBRARIES = ("torch", "ray", "pyarrow", "pillow", "simplejpeg", "mlflow", "numpy")


def library_versions() -> dict[str, str]:
    """Version of Python and of each library that decides results."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
