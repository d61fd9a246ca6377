"""What the nodes of the Ray cluster have, and what its autoscaler may add."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple


class Node(NamedTuple):
    """What a node has for workers."""

    cpus: float
    gpus: int

    def __str__(self) -> str:
        gpus = f" and {self.gpus} GPU(s)" if self.gpus else ""
        return f"{self.cpus:g} CPU(s){gpus}"


class NodeType(NamedTuple):
    """A type of node that an autoscaler starts."""

    node: Node
    most: int
    """Nodes of it at most"""


def live_nodes() -> list[Node]:
    """The nodes that are alive."""
    import ray

    return [_node(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def autoscaler_node_types() -> list[NodeType] | None:
    """The types of nodes that the cluster's autoscaler may start; None if there may be one that does not tell.

    Ray hands the file that configures an autoscaler (`ray up`) to a process of the head, which is asked for there.
    """
    import ray

    context = ray.get_runtime_context()
    (head,) = (node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"])
    if context.get_node_id() == head:
        config = _autoscaler_config(context.gcs_address)
    else:
        on_head = ray.remote(_autoscaler_config).options(num_cpus=0, resources={_HEAD: 0.001})
        config = ray.get(on_head.remote(context.gcs_address))
    if config is None:
        return None
    return [
        NodeType(_node(kind.get("resources", {})), int(kind["max_workers"]))
        for name, kind in config.get("available_node_types", {}).items()
        if name != config.get("head_node_type") and kind.get("max_workers", 0) > 0
    ]


_HEAD = "node:__internal_head__"
"""A resource that the head alone has"""


def _autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """The configuration of the autoscaler of the cluster at `gcs_address`, whose head this process runs on.

    Empty if there is none; None if it does not run here (as beside KubeRay's head).
    """
    import psutil
    import yaml

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if options.get("gcs-address") != gcs_address or not any(word.endswith("/monitor.py") for word in words):
            continue
        if "autoscaling-config" not in options:
            return {}
        with contextlib.suppress(OSError, yaml.YAMLError):
            config: dict[str, Any] = yaml.safe_load(Path(options["autoscaling-config"]).expanduser().read_text())
            return config
    return None


def _node(resources: dict[str, float]) -> Node:
    return Node(float(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
