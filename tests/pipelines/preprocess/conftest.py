"""A bucket that several tests share."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pyarrow.fs as pafs
import pytest

from tests.helpers.processes import end, free_port


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket on a real S3 server on loopback. The workers of a Ray head need the variables too: hence the query."""
    port, place = free_port(), tmp_path_factory.mktemp("s3")
    with (place / "log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/").close()
                break
            except OSError:
                time.sleep(0.2)
        query = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        fs, _ = pafs.FileSystem.from_uri(f"s3://bucket/?{query}")
        fs.create_dir("bucket")
        yield f"s3://bucket/FOLDER?{query}"
    finally:
        end(process)
