"""Ray Data's extension type for pickled objects: gone where it was imported, in the driver and in tasks."""

import os
import subprocess
import sys

import pytest
import ray

from pipelines.common.ray_data import ray_task
from tests.helpers.pickled_objects import is_registered, register


@ray.remote
def import_all() -> tuple[int, bool]:
    import ray.data
    import ray.train  # noqa: F401

    register()
    return os.getpid(), is_registered()


@ray_task
def look() -> tuple[int, bool]:
    return os.getpid(), is_registered()


@pytest.mark.usefixtures("session")
def test_a_task_unregisters_it_in_a_process_that_imported_ray_data() -> None:
    before = dict(ray.get([import_all.remote() for _ in range(8)]))
    assert all(before.values())
    for _ in range(20):
        process, registered = ray.get(look.remote())
        assert not registered
        if process in before:
            return
    pytest.fail("no task ran in a process that had imported Ray Data")


@pytest.mark.parametrize(
    "imports",
    ["pipelines.train.ray_workers", "pipelines.train.ray_runtime", "pipelines.pipeline", "pipelines.common.ray_data"],
)
def test_the_driver_unregisters_it_right_after_the_import(imports: str) -> None:
    program = (
        f"import {imports}; from pipelines.common.ray_data import import_ray_data; import_ray_data();"
        "import ray.train; from tests.helpers.pickled_objects import is_registered; print(is_registered())"
    )
    if imports.startswith("pipelines.train"):  # They import Ray Train, and Ray Train imports Ray Data.
        program = program.replace("import_ray_data();", "")
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )
