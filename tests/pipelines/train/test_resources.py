"""CPUs and GPUs of workers: on real raylets, and by a table of clusters."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from glo_core.common.errors import ConfigError
from glo_core.common.location import Location
from jobs.cli import parse
from pipelines.common.ray_nodes import Node, NodeType
from pipelines.train import start_watch
from pipelines.train.config import TrainJob
from pipelines.train.resources import Pool, choose_resources
from tests.helpers.paths import ROOT
from tests.helpers.processes import await_start, end, free_port

SMALL, BIG, GPU = Node(2, 0), Node(16, 0), Node(8, 4)


def job(workers: str = "1", **settings: Any) -> TrainJob:
    return TrainJob(dataset=Location("/d"), run=Path("/r"), workers=workers, **settings)


def chosen(nodes: list[Node], coming: list[NodeType] | None = None, **settings: Any) -> tuple[float, float]:
    resources = choose_resources(job(**settings), Pool(nodes, ()), Pool(nodes, coming or ()))
    return resources["CPU"], resources.get("GPU", 0)


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus"),
    [
        ([Node(8, 0), Node(8, 0)], "1", 8),
        ([Node(0, 0), Node(8, 0), Node(8, 0)], "2", 8),
        ([Node(8, 0), Node(8, 0)], "3", 4),
        ([Node(8, 0), Node(8, 0)], "1:8", 8),  # As many as there are nodes, at first.
        ([Node(16, 0), Node(4, 0)], "2", 8),  # Both on the large node.
        ([Node(16, 0), Node(7, 0)], "3", 7),
        ([Node(2, 0)], "3", 0.6666),  # Ray counts in 1/10,000.
        ([Node(1, 0)] * 3, "4", 0.5),
        ([Node(8.5, 0)], "1", 8),
    ],
)
def test_an_even_share_fits_the_nodes_there_are(nodes: list[Node], workers: str, cpus: float) -> None:
    assert chosen(nodes, workers=workers) == (cpus, 0)
    fewest, _ = job(workers).fewest_and_most_workers
    assert Pool(nodes, ()).slots(cpus, 0) >= fewest


def test_a_gpu_is_taken_where_there_are_enough() -> None:
    assert chosen([BIG, GPU]) == (8, 1)
    assert chosen([BIG, GPU], workers="4") == (2, 1)
    assert chosen([BIG, GPU], workers="1:8") == (2, 1)
    assert chosen([BIG, GPU], workers="5") == (4, 0)  # auto: not enough GPUs
    assert chosen([BIG, GPU], device="cpu") == (16, 0)


def test_what_an_autoscaler_may_add_counts() -> None:
    coming = [NodeType(GPU, 2)]
    assert chosen([Node(0, 0)], coming) == (8, 1)
    assert chosen([SMALL], coming) == (8, 1)  # auto takes a GPU that can come
    assert chosen([SMALL], coming, device="cpu") == (2, 0)  # and waits for no node without need
    assert chosen([Node(0, 0)], [NodeType(BIG, 3)], workers="3") == (16, 0)
    assert chosen([SMALL], [NodeType(BIG, 3)], cpus_per_worker=16.0, workers="2") == (16, 0)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"cpus_per_worker": 64.0}, r"`cpus_per_worker` \(=64\) with `workers` \(=1\): the cluster has room for 0 "
         r"worker\(s\) of 64 CPU\(s\); it has 2 node\(s\) of 8 CPU\(s\)$"),
        ({"cpus_per_worker": 8.0, "workers": "3"}, r"room for 2 worker\(s\) of 8 CPU\(s\); it has 2 node\(s\) of 8"),
        ({"device": "gpu"}, r"`device` \(=gpu\) with `workers` \(=1\) needs 1 GPU\(s\), and the cluster has 0: 2 node"),
    ],
)  # fmt: skip
def test_what_no_node_can_hold_is_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        chosen([Node(8, 0), Node(8, 0)], **settings)
    assert "\n" not in str(caught.value)


def test_many_workers_are_placed_quickly() -> None:
    started = time.monotonic()
    assert chosen([Node(96, 0)] * 500 + [Node(64, 0)] * 500, workers="20000")[0] == 4
    assert time.monotonic() - started < 20


@pytest.mark.usefixtures("session")
def test_a_wait_for_room_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(start_watch, "PATIENCE_SECONDS", 1.5)
    with caplog.at_level(logging.INFO, "glo"), start_watch.watch_start("2", {"CPU": 2.0}) as watch:
        deadline = time.monotonic() + 60
        while "waiting" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert not watch.started
    assert "waiting for 2 worker(s) of 2 CPU(s) each, for " in caplog.text
    assert " of 2 CPU(s): another job may use the rest, or nodes are to come" in caplog.text


# ---------------------------------------------------------------- real raylets


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """Address of a cluster of a head without CPUs and two nodes of 8 (by their word)."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=8)
        yield cluster.address
    finally:
        cluster.shutdown()


SCRIPT = """
import json, sys, ray
from jobs.cli import main
from pipelines.train.config import TrainJob
from pipelines.train.resources import worker_resources
def run(job):
    ray.init(log_to_driver=False, logging_level="ERROR")
    print(json.dumps(worker_resources(job)))
main("train", TrainJob, run, argv=["--dataset", "/", "--run", "/r", *sys.argv[1:]])
"""


def ask(address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *flags],
        capture_output=True, text=True, timeout=120, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": address},
    )  # fmt: skip


def test_two_nodes_of_eight_give_one_worker_eight(two_nodes: str) -> None:
    done = ask(two_nodes)
    assert json.loads(done.stdout) == {"CPU": 8.0}, done.stderr
    nodes = "the cluster has 1 node(s) of 0 CPU(s) and 2 node(s) of 8 CPU(s)"
    assert f"train: device cpu; 1 worker(s) of 8 CPU(s) each; {nodes}" in done.stderr


def test_two_nodes_of_eight_refuse_a_worker_of_64(two_nodes: str) -> None:
    done = ask(two_nodes, "--cpus-per-worker", "64")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "train: error: --cpus-per-worker (=64) with --workers (=1): the cluster has room for 0 worker(s) of 64 CPU(s)"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_autoscaler_of_ray_up_tells_what_can_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")  # Of the head and of who asks it: the provider wants it.
    types = {
        "head": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    provider = {"type": "fake_multinode", "disable_node_updaters": True, "disable_launch_config_check": True}
    # What `ray up` writes besides: the autoscaler ends without it.
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    written: dict[str, object] = {"file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False}
    config = written | {f"{name}_commands": [] for name in commands} | {
        "cluster_name": "fake", "max_workers": 2, "provider": provider, "auth": {}, "head_node_type": "head",
        "available_node_types": types, "idle_timeout_minutes": 1, "upscaling_speed": 1,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="glo", dir="/tmp", ignore_cleanup_errors=True) as folder:
        path, port = Path(folder) / "config.yaml", free_port()
        path.write_text(json.dumps(config))
        command = ["start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--temp-dir={folder}",
                   "--node-ip-address=127.0.0.1", "--include-dashboard=false",
                   f"--autoscaling-config={path}"]  # fmt: skip
        log = Path(folder) / "log"
        with log.open("wb") as file:
            head = subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", *command], stdout=file, stderr=file)
        try:
            await_start(head, log)
            address = f"127.0.0.1:{port}"
            for _ in range(60):
                done = ask(address)
                if not done.returncode and "autoscaler" in done.stderr:
                    break  # The cluster answers before its autoscaler has told what it may add.
                time.sleep(1)
            assert json.loads(done.stdout) == {"CPU": 8.0, "GPU": 1.0}, done.stderr
            assert "its autoscaler may add 2 of 8 CPU(s) and 1 GPU(s)" in done.stderr
        finally:
            end(head)


def test_the_command_line_takes_what_the_table_takes() -> None:
    line = ["--dataset", "/", "--run", "/r", "--cpus-per-worker", "0.5"]
    assert parse("train", TrainJob, argv=line).cpus_per_worker == 0.5
