"""Passwords in the URI of a tracking server: they reach the server, and nothing that is shown or stored."""

import base64
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from ray.job_submission import JobSubmissionClient

from tests.helpers.paths import ROOT
from tests.helpers.processes import Head
from tests.helpers.write_images import write_images

PASSWORD = "hunter/22%"
LOGIN = "user:hunter%2F22%25"
SECRETS = (PASSWORD, "hunter")


def preprocess(tmp_path: Path, uri: str, address: str = "", **environment: str) -> tuple[int, str]:
    """Status and output of a preprocessing that is tracked at `uri`."""
    if not (tmp_path / "images").exists():
        write_images(tmp_path / "images", 6, seed=0)
    command = [sys.executable, "-m", "jobs.preprocess", "--input", str(tmp_path / "images"), "--resolution", "16"]
    command += ["--dataset", str(tmp_path / "d"), *(["--tracking-uri", uri] if uri else [])]
    variables = os.environ | {"RAY_ADDRESS": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def test_a_password_is_in_no_file_no_output_and_no_record_of_ray(
    mlflow_server: str, head: Head, tmp_path: Path
) -> None:
    uri = mlflow_server.replace("http://", f"http://{LOGIN}@")
    status, output = preprocess(tmp_path, uri, head.address)
    assert (status, [secret for secret in SECRETS if secret in output]) == (0, []), output
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hunter" not in path.read_bytes(), path
    jobs = [
        job.entrypoint for job in JobSubmissionClient(head.dashboard).list_jobs() if str(tmp_path) in job.entrypoint
    ]
    assert [job.count("***@") for job in jobs] == [1]
    assert "hunter" not in "".join(jobs)


class Refuses(http.server.BaseHTTPRequestHandler):
    """Answers 401, and keeps what the client says that it is."""

    logins: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.logins.append(self.headers["Authorization"])
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"no")

    do_POST = do_GET  # noqa: N815, the name that http.server calls

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_login_reaches_the_server_from_the_flag_and_from_the_variable(refusing_server: str, tmp_path: Path) -> None:
    uri = f"http://{LOGIN}@{refusing_server}"
    for flag, environment in ((uri, {}), ("", {"MLFLOW_TRACKING_URI": uri})):
        Refuses.logins.clear()
        status, output = preprocess(tmp_path, flag, **environment)
        assert Refuses.logins[0] == f"Basic {base64.b64encode(f'user:{PASSWORD}'.encode()).decode()}"
        assert (status, "Traceback" in output, "hunter" in output) == (1, False, False)


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:hun/hunter22@127.0.0.1:9",
        "bogus://user:hunter22@127.0.0.1/db",
        "postgresql://user:hunter22@127.0.0.1:1/db",
    ],
)
def test_no_error_repeats_a_password(uri: str, tmp_path: Path) -> None:
    status, output = preprocess(tmp_path, uri)
    assert (status, "hunter" in output, "Traceback" in output) == (1, False, False), output


LISTENING = """
import psutil
from pathlib import Path
from pipelines.common.ray_session import ray_session
import ray

with ray_session():
    ray.get(ray.remote(lambda: None).remote())
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = [socket for process in tree for socket in process.net_connections("inet") if socket.status == "LISTEN"]
    parents = Path(ray._private.worker.global_worker.node.get_session_dir_path()).parents
    print(oct(min(path.stat().st_mode & 0o777 for path in parents if path.name != "")))
    print(len(sockets), {socket.laddr.ip for socket in sockets} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"})
"""


def test_a_ray_of_this_machine_is_closed_to_the_network_and_its_directory_to_other_users() -> None:
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], capture_output=True, text=True, env=environment, timeout=120, cwd=ROOT
    )
    mode, count, loopback = done.stdout.split()[-3:]
    assert (mode, int(count) > 4, loopback) == ("0o700", True, "True"), done.stdout + done.stderr
