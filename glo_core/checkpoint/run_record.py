"""`run.json`: the first file of a stage's directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.records import Record, read_record

RUN_FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """One training of a run to a target."""

    start: int
    """Images seen at its start"""
    target: int
    """Images seen at its end"""
    snapshot: str
    """Digest of the snapshot that it trains on"""
    images: int | None = None
    """Their number, where `glo.train` began the phase"""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.target:
            raise ValueError(f"phases: start={self.start} and target={self.target} must be 0 <= start < target")


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """`run.json`: what a stage works on, and with which settings. `glo.train` writes that of the stage train."""

    format: ClassVar[str] = "glo-run"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another run directory (a warm start from this run is not possible)"

    stage: str
    identity: dict[str, Any]
    """The settings that decide the result, nested; of defaults, the values that they were resolved to"""
    inputs: dict[str, str]
    """Digest of each input, by name"""
    paths: dict[str, str]
    """Where each input lies, by name; not identity"""
    versions: dict[str, str]
    """Version of each library; not identity"""
    mlflow_run_id: str | None = None
    phases: tuple[PhaseRecord, ...] = ()
    """Of a training, oldest first"""


def read_run_record(directory: Path) -> RunRecord | None:
    """The record of the stage that made `directory`; None if there is no record.

    Raises:
        CheckpointError: if the record is damaged, or of another format or version.
    """
    path = directory / RUN_FILE
    return read_record(path, RunRecord) if path.exists() else None
