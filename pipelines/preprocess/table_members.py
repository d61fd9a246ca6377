"""Parquet tables with a column of encoded images, one image in each row.

Two columns are read, that of the images and `label`; the others may hold what they like. Both are judged by the gate in
`glo_core.common.arrow_files` before a value is read, and only plain bytes and text are made of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from glo_core.common.arrow_files import extension_type, parquet_file
from glo_core.dataset_format.pixels.headers import HEAD_BYTES
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.members import Content, Members
from pipelines.preprocess.table_columns import Column, choose_column, field_of, is_bytes
from pipelines.preprocess.table_pages import Page, pages

READ_AHEAD = 1 << 20
"""Bytes of a column that are read at once: pages may be larger, row groups are never read whole"""
BATCH_BYTES, BATCH_ROWS, LABEL_ROWS = 16 << 20, 32, 4096
"""Of values that are in memory at once: bytes, though always one value, and rows at most"""
MAX_PAGE_BYTES, MAX_LABEL_PAGE_BYTES = 224 << 20, 32 << 20
"""Bytes of a page, decompressed: a page of images may be in memory four times, as a dictionary of one value"""
MAX_STORED_PAGE_BYTES = 1 << 30
"""Bytes of a page of images that are really in the file: photographs hardly shrink, and one page may hold hundreds"""
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
    _image_column(source, file)
    labels = _all_labels(source, file)
    rows = file.metadata.num_rows
    return Members([str(row).encode() for row in range(rows)], list(range(rows)), [-1] * rows, labels)


def read_rows(source: Any, rows: Sequence[int], order: Sequence[int]) -> Iterator[tuple[int, Content]]:
    """The images in `rows` of a table: (index into `rows`, content), as `order`, which sorts `rows`, has the indices.

    Raises:
        RejectedImageError: as of `list_table`, or if the table has fewer rows than it had.
        Exception: what pyarrow raises of a damaged file.
    """
    file = _open(source)
    column, first, position = _image_column(source, file), 0, 0
    for group in range(file.metadata.num_row_groups):
        # This row group holds the table's rows from `first` to before `end`.
        end = first + file.metadata.row_group(group).num_rows
        indices = []
        while position < len(order) and rows[order[position]] < end:
            indices.append(order[position])
            position += 1
        if indices:
            contents = _read_group(source, file, column, group, [rows[index] - first for index in indices])
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


def _image_column(source: Any, file: Any) -> Column:
    label = field_of(file.schema_arrow, "label")
    for field in [] if label is None else [label]:
        _require_plain([field])
    column = choose_column(file.schema_arrow, lambda column: _beginnings(source, file, column))
    if column is None:
        raise RejectedImageError("no image inside", "no column of encoded images")
    _require_plain([file.schema_arrow.field(column.path[0])])
    return column


def _require_plain(fields: Any) -> None:
    refused = extension_type(fields)
    if refused is not None:
        raise RejectedImageError("broken container", f"column {refused} is of an Arrow extension type")


# ---------------------------------------------------------------- values


def _read_group(source: Any, file: Any, column: Column, group: int, rows: Sequence[int]) -> Iterator[Content]:
    """The images in `rows` (ascending) of a row group; where one cannot be read, it and those behind it cannot."""
    done, first = 0, 0
    try:
        readable, largest = _readable(_pages(source, file, column, group), MAX_PAGE_BYTES, MAX_STORED_PAGE_BYTES)
        for values in _batches(file, column, group, _rows_at_once(largest, BATCH_ROWS)):
            while done < len(rows) and rows[done] < first + len(values):
                yield values[rows[done] - first].as_py() or b""
                done += 1
            if done == len(rows):
                return
            first += len(values)
            if readable is not None and first >= readable:
                raise RejectedImageError("too large", f"row group {group}: a page above {MAX_PAGE_BYTES} bytes")
        failure = RejectedImageError("broken container", f"row group {group}: has {first} rows")
    except RejectedImageError as error:
        failure = error
    except Exception as error:  # The other row groups may be whole.
        failure = RejectedImageError("broken container", f"row group {group}: {error or type(error).__name__}")
    yield from [failure] * (len(rows) - done)


def _batches(file: Any, column: Column, group: int, rows: int) -> Iterator[Any]:
    """The values of a column, `rows` at a time: `pyarrow.Array`s of large_binary, or of what the column is of."""
    name = ".".join(column.path)
    for batch in file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False):
        _require_plain(batch.schema)
        values = batch.column(batch.schema.get_field_index(column.path[0]))
        if column.path[1:]:
            values = pc.struct_field(values, list(column.path[1:]))
        if column.is_bytes and pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        yield values.cast(pa.large_binary()) if column.is_bytes else values


def _pages(source: Any, file: Any, column: Column, group: int) -> list[Page]:
    """The pages of the Parquet columns that hold `column`, in a row group."""
    name, metadata = ".".join(column.path), file.metadata.row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    held = [chunk for chunk in chunks if chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.")]
    return [page for chunk in held for page in pages(source, chunk)]


def _readable(group: Sequence[Page], most_bytes: int, most_stored: int = 0) -> tuple[int | None, int]:
    """How many rows lie before a page that is larger than `most_bytes`, None for all; and the largest page of these.

    Raises:
        RejectedImageError: if there are none.
    """
    rows, largest = 0, 0
    for page in group:
        if page.bytes > most_bytes and not _is_stored(page, most_stored):
            if not rows:
                raise RejectedImageError("too large", f"a page of {page.bytes} bytes")
            return rows, most_bytes
        rows, largest = rows + (0 if page.is_dictionary else page.values), max(largest, page.bytes)
    return None, largest


def _is_stored(page: Page, most_bytes: int) -> bool:
    """Whether a page takes about as much of the file as of memory, so that no small file becomes a large page."""
    return not page.is_dictionary and page.bytes <= min(2 * page.stored, most_bytes)


def _rows_at_once(largest: int, most_rows: int) -> int:
    """Rows of a batch if no value is larger than the largest page: a dictionary may hold one value of all rows."""
    return max(1, min(most_rows, BATCH_BYTES // max(largest, 1)))


def _beginnings(source: Any, file: Any, column: Column, count: int = 16) -> list[bytes]:
    """The first `count` values of a column that are there, of at most a thousand rows; fewer where reading fails."""
    values, rows = list[bytes](), 0
    try:
        for group in range(file.metadata.num_row_groups):
            _, largest = _readable(_pages(source, file, column, group), MAX_PAGE_BYTES, MAX_STORED_PAGE_BYTES)
            for batch in _batches(file, column, group, _rows_at_once(largest, count)):
                values += pc.binary_slice(batch.drop_null(), 0, HEAD_BYTES).to_pylist()
                rows += len(batch)
                if len(values) >= count or rows >= 1000:
                    return values
    except Exception:  # Reading all of it will say why.
        return values
    return values


# ---------------------------------------------------------------- labels


def _all_labels(source: Any, file: Any) -> list[str | None]:
    """The label of every row as text, None where there is none or it cannot be read."""
    groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    label = field_of(file.schema_arrow, "label")
    if label is None or pa.types.is_nested(label.type):
        return [None] * sum(groups)
    if file.metadata.num_row_groups and not _is_front_coded(file):
        file = parquet_file(source, buffer_size=READ_AHEAD, dictionaries=["label"])
    labels: list[str | None] = []
    for group, rows in enumerate(groups):
        of_group = _labels(source, file, group)[:rows]
        labels += of_group + [None] * (rows - len(of_group))
    return labels


def _is_front_coded(file: Any) -> bool:
    """Whether labels are stored by what they share with the one before: pyarrow makes no dictionary of these."""
    metadata = file.metadata.row_group(0)
    chunks = (metadata.column(index) for index in range(metadata.num_columns))
    return any(chunk.path_in_schema == "label" and "DELTA_BYTE_ARRAY" in chunk.encodings for chunk in chunks)


def _labels(source: Any, file: Any, group: int) -> list[str | None]:
    """The labels of a row group; those that can be read."""
    column, labels = Column(("label",), is_bytes=False), list[str | None]()
    try:
        held = _pages(source, file, column, group)
        readable, largest = _readable(held, MAX_LABEL_PAGE_BYTES)
        if pa.types.is_dictionary(file.schema_arrow.field("label").type):
            # A dictionary stays one in memory, so that only the plain values count.
            largest = max((page.bytes // max(page.values, 1) for page in held if not page.is_dictionary), default=0)
        for values in _batches(file, column, group, _rows_at_once(largest, LABEL_ROWS)):
            labels += _as_text(values)
            if readable is not None and len(labels) >= readable:
                return labels[:readable]
    except Exception:  # A damaged label is no reason to lose the image.
        return labels
    return labels


def _as_text(values: Any) -> list[str | None]:
    if pa.types.is_dictionary(values.type):
        # Cut before the dictionary is repeated for each row.
        return pa.DictionaryArray.from_arrays(values.indices, pa.array(_as_text(values.dictionary))).to_pylist()
    if not is_bytes(values.type):
        values = values.cast(pa.large_string())
    # Text that is not valid would raise, and is shown with a sign in its place. A character has four bytes at most.
    texts = pc.binary_slice(values.cast(pa.large_binary()), 0, 4 * LABEL_LENGTH).to_pylist()
    return [None if text is None else text.decode(errors="replace")[:LABEL_LENGTH] for text in texts]
