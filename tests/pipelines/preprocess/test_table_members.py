"""Parquet tables of every kind: which images they hold, and what became of a damaged one."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glo_core.common.location import Location
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.containers import list_members, read_members
from tests.helpers.containers import contents, members_of, png, rejected, write
from tests.helpers.nested_table import nested_table
from tests.helpers.paths import ROOT
from tests.helpers.pickled_objects import pickled, pickled_field, register

FAULTS = ROOT / "tests" / "faults"


def write_table(path: Path, columns: dict[str, Any], features: Any = None, **options: Any) -> Path:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": features})
    pq.write_table(table, path, **options)
    return path


IMAGES = [png(n) for n in range(5)]
HASHES = [bytes([n]) * 16 for n in range(5)]
AS_NUMBERS = {str(n): image for n, image in enumerate(IMAGES)}


def declared(name: str) -> str:
    return json.dumps({"info": {"features": {"text": {"dtype": "string"}, name: {"_type": "Image"}}}})


def test_a_hash_before_the_images() -> None:
    read = contents(FAULTS / "parquet_hash_before_image.parquet")
    assert len(read) == 6 and all(isinstance(data, bytes) and data.startswith(b"\x89PNG") for data in read.values())


THUMBNAILS = [png(100 + n) for n in range(5)]
STRUCTS = [{"bytes": image, "path": f"{n}.png"} for n, image in enumerate(IMAGES)]
CHOICES: dict[str, tuple[dict[str, Any], Any]] = {
    "declared, and not the usual name": ({"image": THUMBNAILS, "x": IMAGES}, declared("x")),
    "declared struct": ({"jpg": THUMBNAILS, "x": STRUCTS}, declared("x")),
    "declared, and not there": ({"md5": HASHES, "jpg": IMAGES}, declared("gone")),
    "usual name before another image": ({"thumbnail": THUMBNAILS, "IMG": IMAGES}, None),
    "usual names, of which one holds something else": ({"data": HASHES, "content": IMAGES}, None),
    "no usual name, by the bytes": ({"md5": HASHES, "sha": HASHES, "x": IMAGES}, None),
    "struct before bytes": ({"a": THUMBNAILS, "x": STRUCTS}, None),
    "struct in a struct": ({"sample": [{"img": {"bytes": i, "path": ""}, "key": b"k"} for i in IMAGES]}, None),
    "struct of another name": ({"sample": [{"key": b"k", "jpg": i} for i in IMAGES]}, None),
    "a name with a dot": ({"a.b": IMAGES, "a": [{"b": b"x"}] * 5}, None),
    "name in another script": ({"画像": IMAGES, "md5": HASHES}, None),
}


@pytest.mark.parametrize("case", CHOICES)
def test_which_column_holds_the_images(tmp_path: Path, case: str) -> None:
    columns, features = CHOICES[case]
    assert contents(write_table(tmp_path / "x.parquet", columns, features)) == AS_NUMBERS


@pytest.mark.parametrize(
    "features",
    [
        *(
            "",
            "[]",
            "3",
            "null",
            "[" * 100_000,
            "\xff{",
            '{"info": null}',
            '{"info": []}',
            '{"info": {"features": []}}',
        ),
        *('{"info": {"features": {"a": null, "jpg": []}}}', '{"info": {"features": {"jpg": {"_type": ["Image"]}}}}'),
    ],
    ids=lambda text: text[:30],
)
def test_odd_metadata_of_hugging_face(tmp_path: Path, features: str) -> None:
    columns = {"md5": HASHES, "jpg": IMAGES}
    assert contents(write_table(tmp_path / "x.parquet", columns, features.encode("latin-1"))) == AS_NUMBERS


PADDED = [image.ljust(max(map(len, IMAGES)), b"\0") for image in IMAGES]
TYPES: dict[str, Callable[[], Any]] = {
    "binary": lambda: pa.array(IMAGES, pa.binary()),
    "large": lambda: pa.array(IMAGES, pa.large_binary()),
    "view": lambda: pa.array(IMAGES, pa.binary_view()),
    "dictionary": lambda: pa.array(IMAGES, pa.binary()).dictionary_encode(),
    "struct": lambda: pa.array(STRUCTS, pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])),
    "fixed size": lambda: pa.array(PADDED, pa.binary(len(PADDED[0]))),
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("options", [{}, {"row_group_size": 2, "store_schema": False, "compression": "zstd"}], ids=str)
def test_every_type_of_bytes(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    if kind == "view" and options:
        pytest.skip("pyarrow does not write views in several row groups")
    place = write_table(tmp_path / "x.parquet", {"md5": HASHES, "image": TYPES[kind]()}, **options)
    images = PADDED if kind == "fixed size" else IMAGES
    assert contents(place) == {str(n): image for n, image in enumerate(images)}


def test_a_struct_of_views(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])
    assert contents(write_table(tmp_path / "x.parquet", {"image": pa.array(STRUCTS, kind)})) == AS_NUMBERS


def test_rows_without_an_image(tmp_path: Path) -> None:
    values = [None, IMAGES[1], b"", None, IMAGES[4]]
    expected = {"0": b"", "1": IMAGES[1], "2": b"", "3": b"", "4": IMAGES[4]}
    assert contents(write_table(tmp_path / "x.parquet", {"jpg": values})) == expected
    structs = [None, STRUCTS[1], {"bytes": b"", "path": None}, {"bytes": None, "path": "x"}, STRUCTS[4]]
    assert contents(write_table(tmp_path / "x.parquet", {"image": structs}, row_group_size=2)) == expected
    empty = write_table(tmp_path / "x.parquet", {"jpg": pa.array([], pa.binary())})
    assert rejected(empty) == "no image inside"


LABELS: dict[str, tuple[Any, list[str | None]]] = {
    "integers": (pa.array([0, 1, None, 3, 4], pa.int64()), ["0", "1", None, "3", "4"]),
    "text": (["a", None, "é", "", "x" * 500], ["a", None, "é", "", "x" * 256]),
    "bytes": ([b"a", b"\xff", None, b"", b"e"], ["a", "\ufffd", None, "", "e"]),
    "classes": (pa.array(list("abcab")).dictionary_encode(), list("abcab")),
    "views": (pa.array(list("abcde"), pa.string_view()), list("abcde")),
    "lists": ([[1]] * 5, [None] * 5),
    "structs": ([{"a": b"x"}] * 5, [None] * 5),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_become_text(tmp_path: Path, kind: str) -> None:
    values, expected = LABELS[kind]
    place = write_table(tmp_path / "x.parquet", {"jpg": IMAGES, "label": values}, row_group_size=2)
    assert members_of(place).labels == expected


def test_columns_of_extension_types(tmp_path: Path) -> None:
    """One that would be read makes a `broken container`; others are not read."""
    register()
    try:
        trace = tmp_path / "it-ran"
        spoiled, plain = pickled(trace, 5), pa.array(IMAGES)

        def table(**columns: tuple[Any, Any]) -> Path:
            schema = pa.schema([field for field, _ in columns.values()])
            pq.write_table(pa.table([values for _, values in columns.values()], schema=schema), tmp_path / "x.parquet")
            return tmp_path / "x.parquet"

        image, struct_type = pa.field("image", pa.binary()), pa.struct([pickled_field("bytes")])
        path_type = pa.struct([pa.field("bytes", pa.binary()), pickled_field("path")])
        spoiled_struct = pa.StructArray.from_arrays([spoiled], fields=list(struct_type))
        spoiled_path = pa.StructArray.from_arrays([plain, spoiled], fields=list(path_type))
        for columns in (
            {"a": (pickled_field("image"), spoiled)},
            {"a": (pickled_field("anything"), spoiled)},
            {"a": (pickled_field("image"), spoiled), "b": (pa.field("jpg", pa.binary()), plain)},
            {"a": (pa.field("image", struct_type), spoiled_struct)},
            {"a": (pa.field("image", path_type), spoiled_path)},
            {"a": (image, plain), "b": (pickled_field("label"), spoiled)},
        ):
            assert "is of an Arrow extension type" in rejected(table(**columns))
            assert "broken container" in rejected(table(**columns))
        honest = table(a=(pickled_field("meta"), spoiled), b=(image, plain), c=(pa.field("id", pa.uuid()), _uuids()))
        assert contents(honest) == AS_NUMBERS
        assert not trace.exists()
    finally:
        pa.unregister_extension_type("ray.data.arrow_pickled_object")


def _uuids() -> Any:
    return pa.ExtensionArray.from_storage(pa.uuid(), pa.array(HASHES, pa.binary(16)))


def test_one_damaged_row_group_costs_no_other(tmp_path: Path) -> None:
    place = write_table(
        tmp_path / "x.parquet", {"jpg": IMAGES}, row_group_size=1, compression="none", use_dictionary=False
    )
    data = bytearray(place.read_bytes())
    at = pq.read_metadata(place).row_group(2).column(0).data_page_offset
    data[at : at + 30] = b"\xff" * 30
    read = contents(write(place, bytes(data)))
    assert read == AS_NUMBERS | {"2": "broken container"}


def test_a_footer_that_lies_about_its_rows(tmp_path: Path) -> None:
    place = write_table(tmp_path / "x.parquet", {"jpg": IMAGES})
    data = place.read_bytes()
    length = struct.unpack("<I", data[-8:-4])[0]
    footer = data[-8 - length : -8]
    for count in (1 << 20, (1 << 40) - 1):
        value, number = b"", 2 * count
        while number:
            value, number = value + bytes([number & 127 | (128 if number > 127 else 0)]), number >> 7
        # A thrift field of the type i64 (6): 5 rows is the varint 10.
        longer = footer.replace(b"\x16\x0a", b"\x16" + value)
        assert longer != footer
        lie = data[: -8 - length] + longer + struct.pack("<I", len(longer)) + b"PAR1"
        try:
            read = contents(write(place, lie))
        except RejectedImageError as error:
            assert error.reason == "broken container"
        else:
            assert len(read) <= (1 << 20) + len(data)


@pytest.mark.parametrize("depth", [3, 1000, 30_000, 500_000])
def test_a_schema_of_any_depth_ends_no_process(tmp_path: Path, depth: int) -> None:
    place = write(tmp_path / "x.parquet", nested_table(depth))
    program = (
        "import sys; from glo_core.common.location import Location\n"
        "from pipelines.preprocess.containers import list_members\n"
        "try: list_members(Location(sys.argv[1]))\nexcept Exception as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(place)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith(
        "no image inside" if depth < 2000 else "broken container: Couldn't deserialize thrift"
    )


def test_a_row_group_is_not_read_whole(tmp_path: Path) -> None:
    """What Arrow holds while 256 MB of images in one row group are read, whose pages are small."""
    random = np.random.default_rng(0)
    image = png(0) + random.bytes(1 << 20)
    schema, options = pa.schema([("jpg", pa.binary())]), {"use_dictionary": False, "write_batch_size": 1}
    with pq.ParquetWriter(tmp_path / "x.parquet", schema, compression="none", **options) as file:
        file.write_table(pa.table({"jpg": [image + bytes([n]) for n in range(256)]}), row_group_size=256)
    members = members_of(tmp_path / "x.parquet")
    before = pa.total_allocated_bytes()
    most, count = 0, 0
    for _, data in read_members(Location(tmp_path / "x.parquet"), members.starts, members.lengths):
        assert isinstance(data, bytes) and data[:-1] == image
        count += 1
        most = max(most, pa.total_allocated_bytes() - before)
    assert count == 256
    assert most < 100 << 20, f"{most >> 20} MiB of 256"


def test_what_is_no_table_says_why(tmp_path: Path) -> None:
    assert rejected(write_table(tmp_path / "x.parquet", {"text": ["a"]})).startswith("no image inside")
    assert rejected(write(tmp_path / "x.parquet", b"PAR1" * 9)).startswith("broken container")
    assert rejected(write(tmp_path / "x.parquet", b"")) == "empty"
    assert rejected(tmp_path / "none.parquet") == "missing"


PEAK_OF_TABLE = """
import resource, sys
from glo_core.common.location import Location
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.containers import list_members, read_members
import pyarrow.compute, pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
place, reasons = Location(sys.argv[1]), set()
members = list_members(place)
listed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _, content in read_members(place, members.starts, members.lengths):
    reasons.add(content.reason if isinstance(content, RejectedImageError) else str(len(content)))
read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(members.names), listed - before >> 10, read - before >> 10, *sorted(reasons))
"""


def _large_label() -> Any:
    label = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array(["x" * 20_000_000]))
    return pa.table({"image": [png(seed) for seed in range(64)], "label": label})


def _one_image_of_500_mb() -> Any:
    return pa.table({"image": [png(0) + bytes(500_000_000)], "mask": [b"0"]})


def _one_image_of_200_mb() -> Any:
    return pa.table({"image": [png(0) + bytes(200_000_000)], "mask": [b"0"]})


def _rows_that_share_an_image() -> Any:
    image = pa.DictionaryArray.from_arrays(pa.array([0] * 32, pa.int32()), pa.array([png(0) + bytes(20_000_000)]))
    return pa.table({"image": image, "other": [b"0"] * 32})


def test_hundreds_of_photos_in_one_page_are_read(tmp_path: Path) -> None:
    """Of row groups of 100 to 1,000 large photos, as published tables have them: pyarrow puts them into one page."""
    noise = np.random.default_rng(0).bytes(1 << 20)
    images = [png(seed) + noise for seed in range(250)]
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet", use_dictionary=False)
    place = Location(tmp_path / "x.parquet")
    members = list_members(place)
    sizes = [len(content) for _, content in read_members(place, members.starts, members.lengths)]  # type: ignore[arg-type]
    assert sizes == [len(image) for image in images]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "rows", "listing", "reading", "gives"),
    [
        (_large_label, 64, 100, 100, ""),
        (_one_image_of_500_mb, 1, 100, 100, "too large"),
        (_one_image_of_200_mb, 1, 900, 900, "200000"),
        (_rows_that_share_an_image, 32, 200, 200, "20000"),
    ],
)
def test_a_small_table_of_large_values_stays_within_memory(
    tmp_path: Path, table: Any, rows: int, listing: int, reading: int, gives: str
) -> None:
    pq.write_table(table(), tmp_path / "x.parquet", compression="zstd")
    command = [sys.executable, "-c", PEAK_OF_TABLE, str(tmp_path / "x.parquet")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    count, listed, read = result.stdout.split()[:3]
    assert int(count) == rows
    assert int(listed) < listing and int(read) < reading, result.stdout
    assert gives in result.stdout, result.stdout
