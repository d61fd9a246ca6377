"""Two and four workers of one thread against one worker of one thread, at the same global batch.

    python -m benchmarks.train_workers [--resolution 32] [--batch-size 128] [--decoder seed]

Each worker is a process that runs the whole training loop; two of them share the work by `torch.distributed` with
gloo over the loopback, as under Ray Train on one machine. Beside them stand two processes that know nothing of each
other, each with half of the batch: what two cores give where nothing is exchanged. So do four of each, on whatever
cores there are. Sides alternate; medians and spread.
"""

import argparse
import functools
import multiprocessing
import os
import socket
import statistics
from typing import Any

import torch
import torch.distributed as dist

import glo_core as glo
from benchmarks.environment import describe, describe_config
from benchmarks.rounds import Spread, json_line, measure_in_turn, ratio, table
from glo_core.common.runtime import Metrics

IMAGES = 4096


def work(rank: int, size: int, port: int, options: argparse.Namespace, batch_size: int, rates: Any) -> None:
    """Train a few steps on one thread; rank 0, or every lone worker, puts its median images/s."""
    torch.set_num_threads(1)
    found: list[float] = []

    def on_report(_: int, metrics: Metrics) -> None:
        if "images_per_s" in metrics:
            found.append(metrics["images_per_s"])

    runtime: glo.SingleProcess
    if size > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
        dist.init_process_group("gloo")
        runtime = glo.TorchDistributed(on_report=on_report)
    else:
        runtime = glo.SingleProcess(on_report=on_report)
    shape = (IMAGES, options.resolution, options.resolution, options.channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = glo.TrainConfig(
        batch_size=batch_size,
        code=glo.CodeConfig(dim=options.code_dim, init="random"),
        decoder=glo.DecoderConfig(kind=options.decoder),
    )
    glo.train_phase(
        config,
        glo.TensorImages(images),
        glo.Phase(target=options.steps * batch_size),
        runtime=runtime,
        intervals=glo.Intervals(report=5 * batch_size, checkpoint=10**12),
        autocast=options.autocast,
    )
    if runtime.rank == 0:
        rates.put(statistics.median(found[1:]))
    if size > 1:
        dist.destroy_process_group()


def side(workers: int, together: bool, batch_size: int, options: argparse.Namespace) -> float:
    """Images/s of all workers."""
    context = multiprocessing.get_context("spawn")
    rates = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = workers if together else 1
    processes = [
        context.Process(target=work, args=(rank if together else 0, size, port, options, batch_size, rates))
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    total = sum(rates.get() for _ in range(1 if together else workers))
    for process in processes:
        process.join()
    return float(total)


def main() -> None:
    """Time one process, several that share the work, and as many that exchange nothing, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [
        ("resolution", 32), ("channels", 1), ("batch-size", 128), ("code-dim", 32), ("steps", 100), ("rounds", 5),
    ]:  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--decoder", default=glo.DecoderConfig().kind, help="default: %(default)s")
    parser.add_argument("--autocast", choices=["auto", "off", "bfloat16"], default="auto", help="default: %(default)s")
    options = parser.parse_args()
    print(describe())
    print(describe_config(options))
    sides = {
        "one": functools.partial(side, 1, False, options.batch_size, options),
        "two": functools.partial(side, 2, True, options.batch_size, options),
        "two_apart": functools.partial(side, 2, False, options.batch_size // 2, options),
        "four": functools.partial(side, 4, True, options.batch_size, options),
        "four_apart": functools.partial(side, 4, False, options.batch_size // 4, options),
    }
    rates = measure_in_turn(sides, options.rounds)
    ratios = {
        "speedup": ratio(rates["two"], rates["one"]),
        "ratio_apart": ratio(rates["two"], rates["two_apart"]),
        "ratio_four_apart": ratio(rates["four"], rates["four_apart"]),
    }
    print(table(ratios, "ratio"))
    print(table({name: Spread.of(values) for name, values in rates.items()}, "images/s"))
    print(
        json_line(ratios, **{f"{name}_images_per_s": round(Spread.of(values).median) for name, values in rates.items()})
    )


if __name__ == "__main__":
    main()
