"""One block: a Ray task reads a row group of the plan and writes the decoded images and their manifest rows.

row group of the plan -> bytes (read once) -> content hash -> pixels -> blocks/N-K.arrow, manifest/N-K.parquet
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from glo_core.common.arrays import Int64Array
from glo_core.common.arrow_files import int64_values, open_parquet
from glo_core.common.errors import DatasetError, UserError
from glo_core.common.files import atomic_write
from glo_core.common.location import Location, is_uri
from glo_core.dataset_format.blocks import write_block
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import Decoded, decode
from glo_core.dataset_format.manifest import MANIFEST, ManifestRecord, block_path, manifest_path
from glo_core.dataset_format.records import read_config, schema_metadata
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.common.ray_data import unregister_pickled_objects
from pipelines.preprocess.attempts import begin_attempt
from pipelines.preprocess.block_builder import BlockBuilder, Content, Decoder
from pipelines.preprocess.containers import is_container, read_ahead, read_members
from pipelines.preprocess.decoder_process import SECONDS_PER_FILE, DecoderProcess
from pipelines.preprocess.guards import require_base
from pipelines.preprocess.plan import is_done, plan_path, read_plan
from pipelines.preprocess.reader_process import ReaderProcess
from pipelines.preprocess.reading import NotLoadedError, foreign_data, read_file
from pipelines.preprocess.sources import place_of
from pipelines.preprocess.time_limit import time_limit

MemberReader = Callable[[Location, Sequence[int], Sequence[int]], Iterator[tuple[int, Content]]]
"""Reads members of a container, as `read_members`"""


class TaskReport(NamedTuple):
    """What a task reports."""

    files: int
    """Rows of its block"""
    bytes: int
    """Bytes of the files that it read"""
    attempts: int
    """Times that its run began it; more than once only if the process or the node died"""
    error: str
    """One line, or "" """


class PlanTask(NamedTuple):
    """What the tasks of a plan share; pickled, since Arrow, in which Ray Data keeps rows, holds UTF-8 alone."""

    dataset: Location
    number: int
    """Of the plan"""
    plan_id: str
    run: str
    """As `begin_attempt` has it"""
    contents: Any
    """Ray's reference to the `ContentIndex` of the snapshots before"""


def decode_block(row: dict[str, Any], plan: PlanTask) -> dict[str, Any]:
    """Decode one row group of a plan into one block and its part of the manifest. Runs in a Ray task.

    A retry is harmless: file names are fixed, a file appears whole or not at all, and a block that is there is skipped.

    Args:
        row: `block`, the number of the row group.
        plan: whose row group it is.

    Returns:
        A `TaskReport` as a dict, Ray Data's row.
    """
    unregister_pickled_objects()
    try:
        return _decode_block(plan, int(row["block"]))._asdict()
    except UserError as error:  # An exception of a task would reach the user as Ray's traceback.
        message = str(error)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        message = f"{error.filename or plan.dataset}: {reason}"
    return TaskReport(0, 0, 0, message.encode(errors="backslashreplace").decode())._asdict()


def _decode_block(task: PlanTask, block: int) -> TaskReport:
    dataset, number = task.dataset, task.number
    config, plan = read_config(dataset), read_plan(plan_path(dataset, number))
    if plan.record.plan_id != task.plan_id:
        raise DatasetError(f"{plan.path}: another writer has replaced it; run the same command again")
    if is_done(dataset, plan, block):
        return TaskReport(plan.block_rows[block], 0, 1, "")
    attempt = begin_attempt(dataset, number, block, task.run)
    files = open_parquet(plan.path, DatasetError).read_row_group(block)
    import ray

    with _decoder(config, in_process_of_its_own=attempt.repeated) as decoder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata.
        builder = BlockBuilder(files, config, ray.get(task.contents), decoder)
        for row, content in _read_all(files, plan.record.sources, config.max_bytes, decoder_is_apart=attempt.repeated):
            if isinstance(content, RejectedImageError) and content.reason in ("missing", "unreadable"):
                file = files.slice(row, 1).select(["source", "path", "bytes"]).to_pylist()[0]
                require_base(Location(plan.record.sources[file["source"]]), file["path"], was_there=file["bytes"] >= 0)
            builder.add(row, content)
    builder.resolve_duplicates()
    place = block_path(dataset, number, block)
    ids, held_out = files.column("image_id").to_numpy(), np.asarray(files.column("held_out"))
    # int64 [images]: the rows of the plan's group that are images
    rows = np.flatnonzero(builder.is_image)
    pixels = builder.pixels if len(rows) == len(ids) else builder.pixels[rows]
    entry = write_block(place, ids[rows], pixels, held_out[rows], config.code_shards)
    attempt.end()
    schema = MANIFEST.with_metadata(schema_metadata(ManifestRecord(plan_id=task.plan_id, block=entry)))
    with atomic_write(manifest_path(dataset, number, block)) as temporary, temporary.open("wb") as file:
        pq.write_table(builder.manifest(place.name).cast(schema), file)
    return TaskReport(len(ids), sum(size or 0 for size in builder.sizes), attempt.number, "")


@contextlib.contextmanager
def _decoder(config: ResolvedDatasetConfig, *, in_process_of_its_own: bool) -> Iterator[Decoder]:
    """How files are decoded: here, for speed; where that ended the task, each in a process that may die."""
    if in_process_of_its_own:
        with DecoderProcess(config) as process:
            yield process.decode
        return

    with time_limit(SECONDS_PER_FILE) as limit:

        def decode_here(data: bytes) -> Decoded:
            # The time limit ends the process, and the next attempt finds out which file it was. Reading, which may be
            # slow, does not count: the clock runs in here alone.
            with limit, foreign_data("broken"):
                return decode(data, config)

        yield decode_here


# ---------------------------------------------------------------- reading


def _read_all(
    files: Any, bases: dict[str, str], max_bytes: int, *, decoder_is_apart: bool
) -> Iterator[tuple[int, Content]]:
    """The bytes of every file of a row group: (row, what reading gave). Members of a container come together.

    Args:
        decoder_is_apart: whether containers are read in a process that may die, as images are decoded.
    """
    with ReaderProcess() as reader:
        read = reader.read_members if decoder_is_apart else read_members
        yield from _read_with(reader, read, files, bases, max_bytes)


def _read_with(
    reader: ReaderProcess, read_container: MemberReader, files: Any, bases: dict[str, str], max_bytes: int
) -> Iterator[tuple[int, Content]]:
    sources, paths = files.column("source").to_pylist(), files.column("path").to_pylist()
    if files.column("member").null_count == len(files):
        members = [None] * len(files)
    else:
        members = files.column("member").to_pylist()
    places = {name: Location(base) for name, base in bases.items()}
    by_container: dict[tuple[str, bytes], list[int]] = {}
    remote = []
    for row, (source, path, member) in enumerate(zip(sources, paths, members, strict=True)):
        if member is not None:
            by_container.setdefault((source, path), []).append(row)
        elif not is_container(path) and (places[source].remote or is_uri(os.fsdecode(path))):
            remote.append(row)
        else:
            yield row, _read(reader, places[source], path, max_bytes)
    read = read_ahead(lambda row: _read(reader, places[sources[row]], paths[row], max_bytes), remote)
    yield from zip(remote, read, strict=True)
    if by_container:
        # Both are null in the rows of files that are no members.
        starts, lengths = int64_values(files.column("start")), int64_values(files.column("length"))
        for (source, path), member_rows in by_container.items():
            small = lengths[member_rows] <= max_bytes
            rows = [row for row, is_small in zip(member_rows, small, strict=True) if is_small]
            for row in sorted(set(member_rows).difference(rows)):
                yield row, NotLoadedError("too large", f"{lengths[row]} bytes", int(lengths[row]), None)
            for row, content in _read_container(
                read_container, places[source], path, rows, starts[rows], lengths[rows]
            ):
                if isinstance(content, bytes) and len(content) > max_bytes:  # Of a table's row, only reading tells.
                    content = RejectedImageError("too large", f"{len(content)} bytes")
                yield row, content


def _read(reader: ReaderProcess, base: Location, path: bytes, max_bytes: int) -> Content:
    try:
        if is_container(path):  # Without a member, since there was none when it was listed: say why.
            with foreign_data("missing"):
                place = place_of(base, path)
            with foreign_data("broken container"):
                members = reader.list_members(place)  # It may have ended the process that listed it.
            raise RejectedImageError("broken container", members.damage or "changed since it was listed")
        return read_file(base, path, max_bytes)
    except RejectedImageError as error:
        return error


def _read_container(
    read: MemberReader, base: Location, path: bytes, rows: Sequence[int], starts: Int64Array, lengths: Int64Array
) -> Iterator[tuple[int, Content]]:
    """Members of the container at `path`: `rows`, `starts` and `lengths` have one entry for each."""
    unread = set(rows)
    try:
        with foreign_data("broken container"):
            contents = read(place_of(base, path), starts.tolist(), lengths.tolist())
        while True:
            with foreign_data("broken container"):  # Around reading alone: what the caller raises is not the file's.
                index, data = next(contents, (-1, b""))
            if index < 0:
                break
            unread.remove(rows[index])
            yield rows[index], data
    except RejectedImageError as error:
        yield from ((row, error) for row in sorted(unread))
