"""The CPUs and the GPU of each Ray Train worker, chosen so that the nodes there are, or can come, hold the workers.

nodes, node types of an autoscaler -> share of a worker -> refused in one line, or printed
"""

import bisect
import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from glo_core.common.errors import ConfigError
from pipelines.common.ray_nodes import Node, NodeType, autoscaler_node_types, live_nodes
from pipelines.common.ray_session import uses_cluster
from pipelines.common.this_machine import this_machine
from pipelines.train.config import TrainJob

log = logging.getLogger("glo.train")


class Pool(NamedTuple):
    """Nodes that may hold the workers."""

    nodes: Sequence[Node]
    """Those there are"""
    coming: Sequence[NodeType]
    """What an autoscaler may add"""

    def slots(self, cpus: float, gpus: int) -> int:
        """How many workers of `cpus` and `gpus` all nodes hold together."""
        return sum(
            number * min(int((node.cpus + 1e-9) / cpus), node.gpus // gpus if gpus else 1 << 40)
            for node, number in self._kinds().items()
        )

    def largest_share(self, workers: int, gpus: int) -> float:
        """The most CPUs that each of `workers` can have, whole above 1; 0 if there is no room for so many."""
        parts = {node.cpus / part for node in self._kinds() for part in range(1, workers + 1)}
        # Ray counts in steps of 1/10,000: two thirds of a CPU, rounded up, would never find room.
        shares = sorted({float(math.floor(part)) if part >= 1 else math.floor(part * 1e4) / 1e4 for part in parts})
        shares = [share for share in shares if share > 0]
        # Fewer workers fit the larger their share is.
        fitting = bisect.bisect_right(shares, -workers, key=lambda share: -self.slots(share, gpus))
        return shares[fitting - 1] if fitting else 0.0

    def gpus(self) -> int:
        """All GPUs."""
        return sum(number * node.gpus for node, number in self._kinds().items())

    def expected_workers(self, fewest: int, most: int, gpus: int) -> int:
        """Of a range of workers, as many as there are nodes or GPUs will share the CPUs."""
        places = self.gpus() if gpus else sum(number for node, number in self._kinds().items() if node.cpus > 0)
        return min(most, max(fewest, places))

    def _kinds(self) -> Counter[Node]:
        kinds = Counter(self.nodes)
        for kind in self.coming:
            kinds[kind.node] += kind.most
        return kinds

    def __str__(self) -> str:
        there = (
            " and ".join(f"{number} node(s) of {node}" for node, number in sorted(Counter(self.nodes).items()))
            or "no node"
        )
        types = " and ".join(f"{kind.most} of {kind.node}" for kind in self.coming)
        return f"{there}; its autoscaler may add {types}" if types else there


def trains_here(job: TrainJob) -> bool:
    """Whether the training needs no Ray: it has one worker, and nobody has named a cluster, or connected to one."""
    return job.fewest_and_most_workers == (1, 1) and not uses_cluster()


def resources_here(job: TrainJob) -> dict[str, float]:
    """CPUs and GPUs of the one worker, on this machine alone. Prints them.

    Raises:
        ConfigError: if this machine has fewer than the job names.
    """
    here = Pool([this_machine()], ())
    return _printed(job, choose_resources(job, here, here), here)


def worker_resources(job: TrainJob) -> dict[str, float]:
    """CPUs and GPUs of each worker: those that the job names, or an even share of what the nodes have. Prints both.

    Raises:
        ConfigError: if no nodes that there are, or that can come, hold as many workers as the job needs.
    """
    present, coming = Pool(live_nodes(), ()), autoscaler_node_types()
    possible = Pool(present.nodes, coming or ())
    try:
        resources = choose_resources(job, present, possible)
    except ConfigError:
        if coming is not None or job.cpus_per_worker is None:
            raise
        # An autoscaler that does not tell what it can start: Ray asks it, and `StartWatch` says what is waited for.
        resources = {"CPU": job.cpus_per_worker} | ({"GPU": 1.0} if job.device == "gpu" else {})
    return _printed(job, resources, possible)


def _printed(job: TrainJob, resources: dict[str, float], pool: Pool) -> dict[str, float]:
    in_words = Node(resources["CPU"], int(resources.get("GPU", 0)))
    device = "gpu" if "GPU" in resources else "cpu"
    log.info(f"device {device}; {job.workers} worker(s) of {in_words} each; the cluster has {pool}")
    return resources


def choose_resources(job: TrainJob, present: Pool, possible: Pool) -> dict[str, float]:
    """The resources of each worker.

    Args:
        job: names workers and device, and may name CPUs.
        present: nodes there are.
        possible: the same, and those that can come.

    Raises:
        ConfigError: as of `worker_resources`.
    """
    fewest, most = job.fewest_and_most_workers
    use_gpu = job.device == "gpu" or (job.device == "auto" and possible.gpus() >= fewest)
    gpus = 1 if use_gpu else 0
    if possible.gpus() < fewest * gpus:
        raise ConfigError(
            f"`device` (=gpu) with `workers` (={job.workers}) needs {fewest} GPU(s), and the cluster has "
            f"{possible.gpus()}: {possible}; use fewer workers, or the device cpu"
        )
    for pool, least in ((present, 1.0), (possible, 0.0)):  # No node is waited for while those there have room.
        if job.cpus_per_worker is None:
            share = pool.largest_share(pool.expected_workers(fewest, most, gpus), gpus)
        else:
            least, share = 0.0, job.cpus_per_worker
            share *= pool.slots(share, gpus) >= fewest
        if share > 0 and share >= least:
            return {"CPU": share, "GPU": 1.0} if use_gpu else {"CPU": share}
    raise ConfigError(_no_room(job, possible, gpus))


def _no_room(job: TrainJob, pool: Pool, gpus: int) -> str:
    if job.cpus_per_worker is None:
        return f"`workers` (={job.workers}): the cluster has no CPU for them; it has {pool}"
    wanted = Node(job.cpus_per_worker, gpus)
    room = pool.slots(job.cpus_per_worker, gpus)
    return (
        f"`cpus_per_worker` (={job.cpus_per_worker:g}) with `workers` (={job.workers}): the cluster has room for "
        f"{room} worker(s) of {wanted}; it has {pool}"
    )
