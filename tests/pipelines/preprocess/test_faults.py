"""A node that dies while it decodes: several real raylets on this machine, one of them killed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.processes import await_start, end, free_port
from tests.helpers.write_images import write_images


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Address of a head without CPUs, and two nodes of one CPU each."""
    scratch = Path(tempfile.mkdtemp(prefix="glo", dir="/tmp"))
    address = f"127.0.0.1:{free_port()}"
    head = ["--head", "--num-cpus=0", f"--port={address.split(':')[1]}", "--include-dashboard=false",
            f"--temp-dir={scratch}", "--node-ip-address=127.0.0.1"]  # fmt: skip
    # `import pipelines`, by an earlier test, keeps Ray on the loopback, where a second node may not come.
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for options in (head, *[[f"--address={address}", "--num-cpus=1"]] * 2):
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
            place = scratch / f"log-{len(nodes)}"
            with place.open("wb") as log:
                nodes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
            await_start(nodes[-1], place)
        yield address, nodes[1:]
    finally:
        for node in reversed(nodes):
            end(node)
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.mark.slow
def test_a_node_that_dies_costs_nothing(cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path) -> None:
    address, nodes = cluster
    write_images(tmp_path / "images", 6000, seed=0, side=64)
    command = [sys.executable, "-m", "jobs.preprocess", "--input", str(tmp_path / "images"), "--resolution", "32"]
    environment = os.environ | {"RAY_ADDRESS": address}

    def start(dataset: str) -> subprocess.Popen[str]:
        arguments = [*command, "--dataset", str(tmp_path / dataset)]
        return subprocess.Popen(
            arguments, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    whole = start("whole")
    assert whole.wait(200) == 0, whole.communicate()[0][-2000:]
    killed = start("killed")
    for _ in range(2000):
        if len(list((tmp_path / "killed").glob("manifest/0*"))) >= 2:
            break
        time.sleep(0.05)
    for process in (*psutil.Process(nodes[1].pid).children(recursive=True), psutil.Process(nodes[1].pid)):
        process.kill()
    output = killed.communicate(timeout=200)[0]
    if killed.returncode:  # Allowed, where the same command then goes on.
        again = start("killed")
        assert again.wait(200) == 0, output[-1000:] + again.communicate()[0][-2000:]
    for name in ("plans", "blocks", "manifest"):
        files = {path.name: path.read_bytes() for path in (tmp_path / "whole" / name).iterdir()}
        assert {path.name: path.read_bytes() for path in (tmp_path / "killed" / name).iterdir()} == files
    one, other = (json.loads((tmp_path / d / "snapshots" / "000001.json").read_text()) for d in ("whole", "killed"))
    assert one["digest"] == other["digest"]
