"""Codes of appended images that were fitted before training went on: kept until a checkpoint has them.

A stop or a crash in the middle of the fitting then loses one chunk of rows per rank.
"""

import hashlib
from pathlib import Path

from glo_core.checkpoint.attempt import Attempt
from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.arrays import Int, Int64Array
from glo_core.common.digests import digest_json
from glo_core.common.errors import CheckpointError
from glo_core.common.files import write_bytes
from glo_core.common.shapes import Float, Tensor
from glo_core.common.tensor_files import read_tensors, tensor_bytes


class FittedCodes:
    """The files of one run, `growth/<digest>/<digest of the ids>.safetensors`, a chunk of rows each.

    The first digest is that of the checkpoint and the snapshot that the codes were fitted for.
    """

    def __init__(self, attempt: Attempt | None, checkpoint: Checkpoint, snapshot: str) -> None:
        """Keep codes in the run of `attempt`; None keeps nothing."""
        name = digest_json({"checkpoint": checkpoint.digest, "snapshot": snapshot})
        self._attempt = attempt
        self._directory = attempt.run / "growth" / name if attempt is not None else None

    def load(self, ids: Int[Int64Array, " n"]) -> Float[Tensor, "n dim"] | None:
        """The raw codes `[n, dim]` of the chunk of `ids` (int64 `[n]`), on the CPU; None if they are not kept."""
        if self._directory is None or not self._file(ids).exists():
            return None
        try:
            return read_tensors(self._file(ids), ("raw",))["raw"]
        except CheckpointError:  # A damaged file costs its chunk.
            return None

    def save(self, ids: Int[Int64Array, " n"], raw: Float[Tensor, "n dim"]) -> None:
        """Keep the raw codes `[n, dim]` of a chunk.

        Raises:
            FencedError: if a newer attempt trains the run.
        """
        if self._attempt is not None:
            self._attempt.require_current()
            write_bytes(self._file(ids), tensor_bytes({"raw": raw.detach().cpu().contiguous()}))

    def _file(self, ids: Int64Array) -> Path:
        assert self._directory is not None
        digest = hashlib.blake2b(ids.astype("<i8").tobytes(), digest_size=16).hexdigest()
        return self._directory / f"{digest}.safetensors"
