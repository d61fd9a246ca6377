"""Ray Data without its Arrow extension type for pickled objects, which would unpickle what a file holds.

`import ray.data` registers that type, and so does `import ray.train`. A module that imports one of them unregisters the
type right after; so does each task before its work, since Ray may have imported Ray Data into the task's process. The
gate in `glo_core.common.arrow_files` refuses such files in any case.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pyarrow as pa

PICKLED_OBJECT = "ray.data.arrow_pickled_object"
"""Name of the extension type"""


def import_ray_data() -> Any:
    """Import Ray Data, which takes seconds, and unregister its type for pickled objects."""
    import ray.data

    unregister_pickled_objects()
    return ray.data


def unregister_pickled_objects() -> None:
    """Make this process read columns of that type as plain bytes."""
    with contextlib.suppress(pa.ArrowKeyError):  # Not registered here
        pa.unregister_extension_type(PICKLED_OBJECT)


def ray_task(function: Callable[..., Any]) -> Any:
    """`ray.remote(function)`, whose process unregisters that type before the function is called."""
    import ray

    @functools.wraps(function)
    def task(*arguments: Any, **options: Any) -> Any:
        unregister_pickled_objects()
        return function(*arguments, **options)

    return ray.remote(task)
