"""How far two runs are apart: weights, codes, optimizer state and final figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from glo_core.checkpoint.reader import Checkpoint


def largest_difference(one: Path, other: Path) -> float:
    """The largest relative difference between two runs: weights, codes, optimizer state, and final losses."""
    first, second = Checkpoint.latest(one), Checkpoint.latest(other)
    pairs: list[tuple[Any, Any]] = []
    for name in ("decoder", "ema", "optimizer"):
        tensors = [checkpoint.tensors(name) for checkpoint in (first, second)]
        assert tensors[0].keys() == tensors[1].keys()
        pairs += [(tensors[0][key].double().numpy(), tensors[1][key].double().numpy()) for key in tensors[0]]
    for shard in range(first.code_shards):
        columns = [checkpoint.shard(shard) for checkpoint in (first, second)]
        pairs += [(columns[0][key], columns[1][key]) for key in columns[0]]
    seen = first.position.images_seen
    losses = [json.loads((run / "metrics" / f"{seen}.json").read_text())["psnr"] for run in (one, other)]
    pairs.append((np.array(losses[:1]), np.array(losses[1:])))
    return max(float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-12), initial=0)) for a, b in pairs if a.size)
