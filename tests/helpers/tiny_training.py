"""A training so small that a test can repeat it."""

import torch

import glo_core as glo
from glo_core.training.auto_config import resolve_defaults

CONFIG = glo.TrainConfig(
    batch_size=32,
    learning_rate=5e-3,
    code=glo.CodeConfig(dim=4, learning_rate=2e-2),
    decoder=glo.DecoderConfig(kind="seed", filters=(16, 8), kernel_size=4),
)
RESOLVED = resolve_defaults(CONFIG, num_images=150, resolution=16)
"""`CONFIG` for the images of the fixture `blobs`, with nothing left to choose"""


def same(first: glo.TrainResult, second: glo.TrainResult) -> bool:
    pairs = zip(first.decoder.state_dict().values(), second.decoder.state_dict().values(), strict=True)
    tables = (first.table, second.table)
    columns = zip(*(table.read(0, len(table.ids)).values() for table in tables), strict=True)
    return all(torch.equal(a, b) for a, b in [*pairs, *columns])


class Impatient(glo.SingleProcess):
    """Requests a stop at the n-th call of `stop_requested`."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left == 0
