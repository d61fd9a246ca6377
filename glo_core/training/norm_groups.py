"""The norm groups of a recipe: which lanes of a global batch share batch statistics."""

import math

from glo_core.common.runtime import Runtime
from glo_core.data.lanes import lanes_of_rank, num_lanes
from glo_core.decoder.batch_norm import NormGroups


def norm_groups(rows: int, batch_size: int, code_shards: int, runtime: Runtime) -> NormGroups:
    """Where this rank's rows lie among groups of `rows` rows of a global batch of `batch_size`.

    Args:
        rows: of a group; whole lanes, as many in each group.
        batch_size: images of a global batch.
        code_shards: S.
        runtime: this rank and its connection to the others.
    """
    lanes = num_lanes(code_shards, batch_size)
    rows_per_lane = batch_size // lanes
    # Axis [rank]: its first row in the global batch.
    first = [
        int(lanes_of_rank(rank, world_size=runtime.world_size, lanes=lanes)[0]) * rows_per_lane
        for rank in range(runtime.world_size)
    ]
    return NormGroups(
        rows=rows,
        count=batch_size // rows,
        first=first[runtime.rank],
        # Every rank begins where a group begins, or some group has rows on two ranks.
        shared=math.gcd(*first, rows) != rows,
        runtime=runtime,
    )
