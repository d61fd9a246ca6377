"""Columns of Ray Data's extension type for pickled objects, whose values run code when they become Python objects."""

import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa

NAME = "ray.data.arrow_pickled_object"


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def pickled(path: Path, rows: int) -> Any:
    """`rows` values, each of which makes the file `path` when it is unpickled: the storage of the type."""
    return pa.array([pickle.dumps(_Touch(path))] * rows, pa.large_binary())


def pickled_field(name: str, kind: Any = None) -> Any:
    """A field that is of the extension type once the file is read where the type is registered."""
    return pa.field(
        name, kind or pa.large_binary(), metadata={"ARROW:extension:name": NAME, "ARROW:extension:metadata": ""}
    )


def register() -> None:
    """Register the type, as `import ray.data` does where nobody unregisters it."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    try:
        pa.register_extension_type(ArrowPythonObjectType())
    except pa.ArrowKeyError:
        return


def is_registered() -> bool:
    """Whether this process makes that type of a file's column."""
    schema = pa.ipc.read_schema(pa.schema([pickled_field("x")]).serialize())
    return isinstance(schema.field("x").type, pa.BaseExtensionType)
