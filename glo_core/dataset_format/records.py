"""What every record of a dataset shares, `dataset.json`, and the records that stand in the schema of a file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from glo_core.common.errors import DatasetError
from glo_core.common.location import Location
from glo_core.common.records import Record, parse_record, read_record, record_bytes, write_record
from glo_core.dataset_format.config import ResolvedDatasetConfig


class DatasetFile(Record):
    """Base of the records of a dataset's files: a damaged one raises a `DatasetError`."""

    error = DatasetError
    anew = "preprocess the images anew into another folder"


FileT = TypeVar("FileT", bound=DatasetFile)


@dataclass(frozen=True, kw_only=True)
class DatasetRecord(DatasetFile):
    """What `dataset.json` holds: written when the dataset is created, and never changed."""

    format = "glo-dataset"
    dtype: Literal["uint8"]
    """Of a pixel"""
    layout: Literal["HWC"]
    """Order of an image's axes: height, width, channels"""
    config: ResolvedDatasetConfig


def record_path(dataset: Location) -> Location:
    """The file whose presence makes a directory a dataset."""
    return dataset / "dataset.json"


def read_config(dataset: Location) -> ResolvedDatasetConfig:
    """What `dataset` is.

    Raises:
        DatasetError: if `dataset.json` is missing, damaged, or of another format or version.
    """
    return read_record(record_path(dataset), DatasetRecord).config


def write_config(dataset: Location, config: ResolvedDatasetConfig) -> None:
    """Write `dataset.json`."""
    write_record(record_path(dataset), DatasetRecord(dtype="uint8", layout="HWC", config=config))


# ---------------------------------------------------------------- records in the schema of a Parquet file


SCHEMA_KEY = b"glo"
"""The metadata key of a Parquet file's schema under which its record stands, as JSON"""


def schema_metadata(record: DatasetFile) -> dict[bytes, bytes]:
    """The metadata of the schema of a Parquet file that `record` describes."""
    return {SCHEMA_KEY: record_bytes(record)}


def parse_schema(metadata: Mapping[bytes, bytes] | None, kind: type[FileT], place: Path | Location) -> FileT:
    """The record in the metadata of the schema of `place`, a whole Parquet file.

    Raises:
        DatasetError: if there is none, it is damaged, or of another format or version.
    """
    try:
        values: Any = json.loads((metadata or {}).get(SCHEMA_KEY, b"{}"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise DatasetError(f"{place}: the record in its schema is damaged; copy the file back")
    return parse_record(values, kind, place)
