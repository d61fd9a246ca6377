"""The gate for Parquet and Arrow files: extension types at any depth, registered or not, and nothing past the gate."""

import ast
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glo_core.common.arrow_files import int64_values, open_arrow, open_parquet, read_parquet
from glo_core.common.errors import DatasetError, UserError
from glo_core.common.location import Location
from tests.helpers.nested_table import nested_table
from tests.helpers.paths import ROOT
from tests.helpers.pickled_objects import is_registered, pickled, pickled_field, register

ROWS = 3


def struct(child: Any, field: Any) -> Any:
    return pa.StructArray.from_arrays([child], fields=[field])


def lists(child: Any, field: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), child, type=pa.list_(field))


def fixed_lists(child: Any, field: Any) -> Any:
    return pa.FixedSizeListArray.from_arrays(child, type=pa.list_(field, 1))


def map_items(child: Any, field: Any) -> Any:
    offsets, keys = pa.array(range(ROWS + 1), pa.int32()), pa.array(["a", "b", "c"])
    return pa.MapArray.from_arrays(offsets, keys, child, pa.map_(pa.field("key", pa.string(), False), field))


def map_keys(child: Any, field: Any) -> Any:
    offsets, items = pa.array(range(ROWS + 1), pa.int32()), pa.array(["a", "b", "c"])
    return pa.MapArray.from_arrays(offsets, child, items, pa.map_(field.with_nullable(False), pa.string()))


def union(child: Any, field: Any) -> Any:
    codes = pa.array([0] * ROWS, pa.int8())
    array = pa.UnionArray.from_sparse(codes, [child])
    return array.cast(pa.sparse_union([field])) if array.type != pa.sparse_union([field]) else array


def run_ends(child: Any, field: Any) -> Any:
    return pa.RunEndEncodedArray.from_arrays(pa.array(range(1, ROWS + 1), pa.int32()), child)


def as_opaque_storage(child: Any, field: Any) -> Any:
    storage = struct(child, field)
    return pa.ExtensionArray.from_storage(pa.opaque(storage.type, "type", "vendor"), storage)


NESTED = {"struct": struct, "list": lists, "fixed list": fixed_lists, "map item": map_items, "map key": map_keys}


@pytest.fixture(params=[False, True], ids=["unregistered", "registered"])
def registered(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the type is registered, as it is after `import ray.data`."""
    if request.param:
        register()
    else:
        _unregister()
    assert is_registered() == request.param
    yield request.param
    _unregister()


def _unregister() -> None:
    if is_registered():
        pa.unregister_extension_type("ray.data.arrow_pickled_object")


def write_parquet(path: Path, table: Any) -> None:
    pq.write_table(table, path)


def write_arrow(path: Path, table: Any) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)


def table_of(nested: str, trace: Path) -> Any:
    child, field = pickled(trace, ROWS), pickled_field("value")
    if nested == "column":
        return pa.table([pa.array(range(ROWS)), child], schema=pa.schema([pa.field("n", pa.int64()), field]))
    array = NESTED[nested](child, field)
    return pa.table([pa.array(range(ROWS)), array], names=["n", "value"])


@pytest.mark.parametrize("nested", ["column", *NESTED])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_an_extension_type_at_any_depth_is_refused_before_a_value_is_read(
    tmp_path: Path, registered: bool, kind: str, nested: str
) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / f"file.{kind}"
    _unregister()
    table = table_of(nested, trace)
    write_parquet(path, table) if kind == "parquet" else write_arrow(path, table)
    if registered:
        register()
    with pytest.raises(DatasetError, match=r"file\.\w+: column value.* \(ray\.data\.arrow_pickled_object\)") as caught:
        open_parquet(path, DatasetError) if kind == "parquet" else open_arrow(path, DatasetError)
    assert "\n" not in str(caught.value)
    if kind == "parquet":
        with pytest.raises(DatasetError, match="may run code"):  # Not even beside it
            read_parquet(path, ["n"], DatasetError)
    assert not trace.exists()


@pytest.mark.parametrize("wrap", [run_ends, union, as_opaque_storage])
def test_types_that_only_arrow_files_hold(tmp_path: Path, registered: bool, wrap: Any) -> None:
    if not registered:
        register()  # pyarrow itself makes these types of values, not of fields.
    trace = tmp_path / "it-ran"
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    child = ArrowPythonObjectType().wrap_array(pickled(trace, ROWS))
    write_arrow(tmp_path / "x.arrow", pa.table({"value": wrap(child, pa.field("0", child.type))}))
    indices = pa.array([0, 1, 2], pa.int8())
    write_arrow(tmp_path / "y.arrow", pa.table({"value": pa.DictionaryArray.from_arrays(indices, child)}))
    if not registered:
        _unregister()
    for name in ("x.arrow", "y.arrow"):
        if name == "x.arrow" and wrap is run_ends and not registered:
            # Such a schema has no place for the name of a type that is not registered: the values are plain bytes.
            assert open_arrow(tmp_path / name).schema.field("value").type.value_type == pa.large_binary()
            continue
        with pytest.raises(UserError, match=r"column value\S* \((ray\.data\.arrow_pickled_object|arrow\.opaque)\)"):
            open_arrow(tmp_path / name)
    assert not trace.exists()


def test_the_types_of_arrow_itself_are_refused_alike(tmp_path: Path) -> None:
    for name, kind in {"uuid": pa.uuid(), "json": pa.json_()}.items():
        values = pa.array([None] * ROWS, kind.storage_type)
        pq.write_table(pa.table({"value": pa.ExtensionArray.from_storage(kind, values)}), tmp_path / name)
        with pytest.raises(UserError, match=rf"column value \(arrow\.{name}\)"):
            open_parquet(tmp_path / name)


def test_what_is_no_file_of_the_kind_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PAR1" + b"\0" * 40 + b"PAR1")
    for open_file in (open_parquet, open_arrow):
        with pytest.raises(UserError, match=r"x: not a whole \w+ file \(48 bytes; .*\); copy it back") as caught:
            open_file(tmp_path / "x")
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match=r"y: no such file; copy it back"):
            open_file(tmp_path / "y")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "z")
    with pytest.raises(UserError, match=r"z: has no column b; copy the file back"):
        read_parquet(tmp_path / "z", ["a", "b"])


@pytest.mark.parametrize("depth", [3, 1000, 16_000, 500_000])
def test_a_schema_of_any_depth_ends_no_process(tmp_path: Path, depth: int) -> None:
    (tmp_path / "x.parquet").write_bytes(nested_table(depth))
    program = (
        "import sys; from pathlib import Path; from glo_core.common.arrow_files import read_parquet\n"
        "try: print(read_parquet(Path(sys.argv[1])).num_rows)\nexcept Exception as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.parquet")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout == "0\n" if depth < 2000 else "x.parquet: not a whole Parquet file" in result.stdout


@pytest.mark.parametrize("depth", [50, 5000])
def test_an_arrow_schema_of_any_depth_is_one_line_at_worst(tmp_path: Path, depth: int) -> None:
    kind: Any = pa.int8()
    for _ in range(depth):
        kind = pa.struct([("a", kind)])
    with pa.ipc.new_file(tmp_path / "x.arrow", pa.schema([("a", kind)])):
        pass
    if depth < 64:
        assert open_arrow(tmp_path / "x.arrow").num_record_batches == 0
        return
    with pytest.raises(UserError, match="not a whole Arrow file"):
        open_arrow(tmp_path / "x.arrow")


def test_integers_with_nulls_stay_integers() -> None:
    column = pa.chunked_array([[1, None], [(1 << 62) + 1]], pa.int64())
    assert int64_values(column).tolist() == [1, -1, (1 << 62) + 1]
    assert int64_values(pa.chunked_array([], pa.int32())).tolist() == []


READERS = re.compile(
    r"\b(ParquetFile|ParquetDataset|read_table|read_pandas|read_schema|read_metadata|open_file|open_stream|read_feather"
    r"|read_message|read_record_batch|RecordBatchFileReader|RecordBatchStreamReader|read_parquet)\b"
)


def test_nothing_goes_past_the_gate() -> None:
    """Calls of pyarrow's readers stand in one file."""
    folders = ("glo_core", "pipelines", "jobs", "benchmarks", "examples")
    calls = [
        (str(path.relative_to(ROOT)), node.func.attr)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert sorted({call for call in calls if READERS.fullmatch(call[1])}) == [
        ("glo_core/common/arrow_files.py", "ParquetFile"),
        ("glo_core/common/arrow_files.py", "open_file"),
    ]


@pytest.mark.parametrize("read", [open_parquet, open_arrow, read_parquet])
def test_an_error_of_the_disk_is_no_error_of_the_file(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_disk(place: Location) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(place))

    monkeypatch.setattr(Location, "open", broken_disk)
    with pytest.raises(OSError, match="Input/output error"):
        read(tmp_path / "part.parquet")
