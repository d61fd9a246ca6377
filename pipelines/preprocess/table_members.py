"""Parquet tables with a column of encoded images, one image in each row.

Two columns are read, that of the images and `label`; the others may hold what they like. Both are judged by the gate in
`glo_core.common.arrow_files` before a value is read, and only plain bytes and text are made of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from glo_core.common.arrow_files import extension_type, parquet_file
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.members import Content, Members
from pipelines.preprocess.table_columns import Column, choose_column, field_of, is_bytes

READ_AHEAD = 1 << 20
"""Bytes of a column that are read at once: pages may be larger, row groups are never read whole"""
BATCH_BYTES, BATCH_ROWS, LABEL_ROWS = 16 << 20, 32, 256
"""Of values that are in memory at once: bytes by the average of the row group, and rows at most"""
LABEL_LENGTH = 256
"""Characters of a label that are kept"""
SPARE_ROWS = 1 << 20
"""Rows that a table may have beyond one for each byte of its file: a row without an image takes next to none"""


def list_table(source: Any) -> Members:
    """The rows of a Parquet file as images.

    Args:
        source: a seekable `pyarrow.NativeFile`.

    Raises:
        RejectedImageError: if no column holds images, one that would be read is of an extension type, or the counts of
            rows cannot be right.
        Exception: what pyarrow raises of a damaged file.
    """
    file = _open(source)
    _image_column(file)
    labels = [label for group in range(file.metadata.num_row_groups) for label in _labels(file, group)]
    rows = file.metadata.num_rows
    return Members([str(row).encode() for row in range(rows)], list(range(rows)), [-1] * rows, labels)


def read_rows(source: Any, rows: Sequence[int], order: Sequence[int]) -> Iterator[tuple[int, Content]]:
    """The images in `rows` of a table: (index into `rows`, content), as `order`, which sorts `rows`, has the indices.

    Raises:
        RejectedImageError: as of `list_table`, or if the table has fewer rows than it had.
        Exception: what pyarrow raises of a damaged file.
    """
    file = _open(source)
    column, first, position = _image_column(file), 0, 0
    for group in range(file.metadata.num_row_groups):
        # This row group holds the table's rows from `first` to before `end`.
        end = first + file.metadata.row_group(group).num_rows
        indices = []
        while position < len(order) and rows[order[position]] < end:
            indices.append(order[position])
            position += 1
        if indices:
            contents = _read_group(file, column, group, [rows[index] - first for index in indices])
            yield from zip(indices, contents, strict=True)
        first = end
    if position < len(order):
        raise RejectedImageError("missing", "the table has fewer rows than it had")


def _open(source: Any) -> Any:
    file = parquet_file(source, buffer_size=READ_AHEAD)
    rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    total = file.metadata.num_rows
    if min(rows, default=0) < 0 or sum(rows) != total or total > source.size() + SPARE_ROWS:
        raise RejectedImageError("broken container", f"{total} rows by its footer, {sum(rows)} by its row groups")
    return file


def _image_column(file: Any) -> Column:
    label = field_of(file.schema_arrow, "label")
    for field in [] if label is None else [label]:
        _require_plain([field])
    column = choose_column(file.schema_arrow, lambda column: _beginnings(file, column))
    if column is None:
        raise RejectedImageError("no image inside", "no column of encoded images")
    _require_plain([file.schema_arrow.field(column.path[0])])
    return column


def _require_plain(fields: Any) -> None:
    refused = extension_type(fields)
    if refused is not None:
        raise RejectedImageError("broken container", f"column {refused} is of an Arrow extension type")


# ---------------------------------------------------------------- values


def _read_group(file: Any, column: Column, group: int, rows: Sequence[int]) -> Iterator[Content]:
    """The images in `rows` (ascending) of a row group; where one cannot be read, it and those behind it cannot."""
    done, first = 0, 0
    try:
        for values in _batches(file, column, group, BATCH_ROWS):
            while done < len(rows) and rows[done] < first + len(values):
                yield values[rows[done] - first].as_py() or b""
                done += 1
            if done == len(rows):
                return
            first += len(values)
        failure = RejectedImageError("broken container", f"row group {group}: has {first} rows")
    except RejectedImageError as error:
        failure = error
    except Exception as error:  # The other row groups may be whole.
        failure = RejectedImageError("broken container", f"row group {group}: {error or type(error).__name__}")
    yield from [failure] * (len(rows) - done)


def _batches(file: Any, column: Column, group: int, most_rows: int) -> Iterator[Any]:
    """The values of a column, a few rows at a time: `pyarrow.Array`s of large_binary, or of what the column is of."""
    metadata = file.metadata.row_group(group)
    size = sum(metadata.column(index).total_uncompressed_size for index in _leaves(file, column))
    rows = max(1, min(most_rows, BATCH_BYTES * max(metadata.num_rows, 1) // max(size, 1)))
    name = ".".join(column.path)
    for batch in file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False):
        _require_plain(batch.schema)
        values = batch.column(batch.schema.get_field_index(column.path[0]))
        if column.path[1:]:
            values = pc.struct_field(values, list(column.path[1:]))
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        yield values.cast(pa.large_binary()) if column.is_bytes else values


def _leaves(file: Any, column: Column) -> list[int]:
    """The numbers of the Parquet columns that hold `column`."""
    name = ".".join(column.path)
    paths = (file.metadata.schema.column(index).path for index in range(file.metadata.num_columns))
    return [index for index, path in enumerate(paths) if path == name or path.startswith(f"{name}.")]


def _beginnings(file: Any, column: Column, count: int = 16) -> list[bytes]:
    """The first `count` values of a column that are there, of at most a thousand rows; fewer where reading fails."""
    values, rows = list[bytes](), 0
    try:
        for group in range(file.metadata.num_row_groups):
            for batch in _batches(file, column, group, count):
                values += [value.as_py() for value in batch.drop_null()]
                rows += len(batch)
                if len(values) >= count or rows >= 1000:
                    return values
    except Exception:  # Reading all of it will say why.
        return values
    return values


def _labels(file: Any, group: int) -> list[str | None]:
    """The labels of a row group as text, None where there is none or it cannot be read."""
    rows = file.metadata.row_group(group).num_rows
    labels: list[str | None] = []
    if field_of(file.schema_arrow, "label") is None:
        return [None] * rows
    try:
        for values in _batches(file, Column(("label",), is_bytes=False), group, LABEL_ROWS):
            labels += _as_text(values)
    except Exception:  # A damaged label is no reason to lose the image.
        labels += [None] * (rows - len(labels))
    return (labels + [None] * (rows - len(labels)))[:rows]


def _as_text(values: Any) -> list[str | None]:
    if pa.types.is_nested(values.type):
        return [None] * len(values)
    if not is_bytes(values.type):
        values = values.cast(pa.large_string())
    # Text that is not valid would raise, and is shown with a sign in its place.
    texts = values.cast(pa.large_binary()).to_pylist()
    return [None if text is None else text.decode(errors="replace")[:LABEL_LENGTH] for text in texts]
