"""Tars and Parquet tables of every kind: which images they hold, and what became of a damaged one."""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glo_core.common.location import Location
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.containers import list_members, read_members
from pipelines.preprocess.members import Members
from tests.helpers.nested_table import nested_table
from tests.helpers.paths import ROOT
from tests.helpers.pickled_objects import pickled, pickled_field, register

FAULTS = ROOT / "tests" / "faults"


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def contents(place: Path) -> dict[str, bytes | str]:
    """By name, each member's bytes, or the reason of its rejection."""
    members = list_members(Location(place))
    read: dict[str, bytes | str] = {}
    for index, content in read_members(Location(place), members.starts, members.lengths):
        name = members.names[index].decode(errors="replace")
        read[name] = content if isinstance(content, bytes) else content.reason
    assert len(read) == len(members.names)
    return read


def members_of(place: Path) -> Members:
    return list_members(Location(place))


def rejected(place: Path) -> str:
    with pytest.raises(RejectedImageError) as caught:
        contents(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- tar


def entry(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def pax_header(records: dict[str, str], kind: bytes = b"x") -> bytes:
    parts = []
    for key, value in records.items():
        record = f" {key}={value}\n".encode()
        length = len(record) + 1
        while len(str(length)) + len(record) != length:
            length += 1
        parts.append(str(length).encode() + record)
    body = b"".join(parts)
    info = tarfile.TarInfo("./PaxHeaders/x")
    info.size, info.type = len(body), kind
    return info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)


def member(name: str, data: bytes, size: int | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def test_sparse_members_are_read_as_tar_extracts_them() -> None:
    read = contents(FAULTS / "tar_sparse_members.tar")
    black, following = read["1_black_with_red_square.bmp"], read["2_next.bmp"]
    assert isinstance(black, bytes) and isinstance(following, bytes)
    with Image.open(io.BytesIO(black)) as image:
        assert image.size == (300, 300)
        pixels = np.asarray(image.convert("RGB"))
    assert pixels[0, 0].tolist() == [0, 0, 0] and pixels.max(axis=(0, 1)).tolist() != [0, 0, 0]
    with tarfile.open(FAULTS / "tar_sparse_members.tar") as archive:
        for name, content in read.items():
            file = archive.extractfile(name)
            assert file is not None and file.read() == content


HOLE = bytes(4096)
PIECES = [png(1), png(2)]
EXPANDED = PIECES[0] + bytes(4096 - len(PIECES[0])) + HOLE + PIECES[1]
"""Two pieces of data with a hole between them"""
MAP = [(0, len(PIECES[0])), (8192, len(PIECES[1]))]
DATA = b"".join(PIECES)


def pax_sparse(version: str) -> bytes:
    """A member as GNU tar writes it with `--sparse-version`."""
    flat = ",".join(f"{offset},{size}" for offset, size in MAP)
    if version == "0.1":
        records = {"GNU.sparse.size": str(len(EXPANDED)), "GNU.sparse.numblocks": "2", "GNU.sparse.map": flat}
        records |= {"GNU.sparse.name": "sparse.png"}
        return pax_header(records) + member("GNUSparseFile.1/sparse.png", DATA)
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse.png"}
    records |= {"GNU.sparse.realsize": str(len(EXPANDED))}
    numbers = "\n".join(["2", *(str(number) for piece in MAP for number in piece), ""]).encode()
    return pax_header(records) + member("GNUSparseFile.1/sparse.png", numbers + bytes(-len(numbers) % 512) + DATA)


def old_gnu_sparse() -> bytes:
    """A member of GNU's old format, whose map goes on in a block of its own."""
    info = tarfile.TarInfo("sparse.png")
    info.size, info.type = len(DATA), tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    number = b"%011o\0".__mod__
    for slot, (offset, size) in enumerate([MAP[0], *[(8192, 0)] * 3]):  # The header has room for four pieces.
        block[386 + 24 * slot : 410 + 24 * slot] = number(offset) + number(size)
    block[482] = 1
    block[483:495] = number(len(EXPANDED))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more = number(MAP[1][0]) + number(MAP[1][1])
    return bytes(block) + more.ljust(512, b"\0") + DATA + bytes(-len(DATA) % 512)


@pytest.mark.parametrize("sparse", [pax_sparse("0.1"), pax_sparse("1.0"), old_gnu_sparse()], ids=["0.1", "1.0", "old"])
def test_every_way_to_store_a_sparse_member(tmp_path: Path, sparse: bytes) -> None:
    place = write(tmp_path / "x.tar", member("a.png", png(3)) + sparse + member("b.png", png(4)) + bytes(1024))
    assert contents(place) == {"a.png": png(3), "sparse.png": EXPANDED, "b.png": png(4)}


def test_a_sparse_member_of_a_terabyte_is_not_expanded(tmp_path: Path) -> None:
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.png"}
    header = pax_header(records | {"GNU.sparse.realsize": str(1 << 40)})
    place = write(tmp_path / "x.tar", header + member("s.png", b"0\n".ljust(512, b"\0")) + bytes(1024))
    assert contents(place) == {"s.png": "too large"}


def test_concatenated_tars_give_all_their_images(tmp_path: Path) -> None:
    assert len(contents(FAULTS / "tar_two_concatenated.tar")) == 6
    parts = [tar(entry(f"{n}.png", png(n))) for n in range(3)]
    place = write(tmp_path / "x.tar", parts[0] + bytes(512 * 4099) + parts[1] + parts[2])
    assert contents(place) == {f"{n}.png": png(n) for n in range(3)}
    assert not members_of(place).damage
    place = write(tmp_path / "y.tar", parts[0] + b"what is this" * 100)
    assert contents(place) == {"0.png": png(0)}
    assert "no tar header" in members_of(place).damage


def test_of_one_name_twice_the_last_counts_as_tar_extracts_it(tmp_path: Path) -> None:
    twice = tar(entry("a/x.png", png(1)), entry("b.png", png(2)), entry("./a//x.png", png(3)))
    assert contents(write(tmp_path / "x.tar", twice)) == {"b.png": png(2), "./a//x.png": png(3)}
    # A link takes the place of a file; a folder does not.
    gone = tar(
        entry("a.png", png(1)),
        entry("b.png", png(2)),
        entry("a.png", type=tarfile.SYMTYPE, linkname="b.png"),
        entry("b.png", type=tarfile.DIRTYPE),
    )
    assert contents(write(tmp_path / "y.tar", gone)) == {"a.png": png(2), "b.png": png(2)}
    labels = tar(entry("a.png", png(1)), entry("a.cls", b"1"), entry("a.cls", b"2"))
    assert members_of(write(tmp_path / "z.tar", labels)).labels == ["2"]


def test_a_hard_link_is_what_it_leads_to(tmp_path: Path) -> None:
    data = tar(
        entry("blob", png(1)),
        entry("a.png", type=tarfile.LNKTYPE, linkname="blob"),
        entry("blob", png(2)),
        entry("b.png", type=tarfile.LNKTYPE, linkname="./blob"),
        entry("b.png", type=tarfile.LNKTYPE, linkname="b.png"),  # As GNU tar stores a file that is named twice
        entry("c.png", type=tarfile.LNKTYPE, linkname="nowhere"),
    )
    assert contents(write(tmp_path / "x.tar", data)) == {"a.png": png(1), "b.png": png(2), "c.png": "irregular"}


def test_a_symbolic_link_is_what_it_leads_to_within_the_archive(tmp_path: Path) -> None:
    def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
        return entry(name, type=tarfile.SYMTYPE, linkname=target)

    chain = [link(f"c/{number}.png", f"{number + 1}.png") for number in range(60)]
    data = tar(
        link("b.png", "a.png"),
        link("d/up.png", "../e/../a.png"),
        link("d/beside.png", "./deep/x.png"),
        entry("d/deep/x.png", png(2)),
        entry("a.png", png(1)),
        entry("a.png", png(3)),
        link("two.png", "b.png"),
        entry("hard.png", type=tarfile.LNKTYPE, linkname="b.png"),
        link("outside.png", "../a.png"),
        link("absolute.png", "/etc/passwd"),
        link("nowhere.png", "nothing/here.png"),
        link("self.png", "self.png"),
        link("l" * 150 + ".png", "n" * 150),
        *chain,
        entry("c/60.png", png(4)),
    )
    read = contents(write(tmp_path / "x.tar", data))
    of_chain = {name: read.pop(name) for name in list(read) if name.startswith("c/")}
    assert [of_chain[f"c/{number}.png"] for number in (0, 20, 21, 60)] == ["irregular", "irregular", png(4), png(4)]
    images = ["b.png", "d/up.png", "a.png", "two.png", "hard.png"]
    lost = ["outside.png", "absolute.png", "nowhere.png", "self.png", "l" * 150 + ".png"]
    deep = ["d/beside.png", "d/deep/x.png"]
    assert read == dict.fromkeys(images, png(3)) | dict.fromkeys(deep, png(2)) | dict.fromkeys(lost, "irregular")


def test_a_large_global_header_costs_each_entry_nothing(tmp_path: Path) -> None:
    records = {f"SCHILY.xattr.{number}": "x" for number in range(300_000)} | {"GNU.sparse.x": "1"}
    data = pax_header(records | {"path": "p" * 100_000}, b"g") * 2 + tar(entry("a.png", png(1)))[:1536]
    names = [f"{number}.txt" for number in range(3000)]
    place = write(tmp_path / "x.tar", data + tar(*map(entry, names)))
    program = "import sys; from pipelines.preprocess.containers import list_members\n"
    program += "from glo_core.common.location import Location; print(list_members(Location(sys.argv[1])).names)"
    command = [sys.executable, "-c", program, str(place)]
    # Each entry cost 20 ms before: a minute.
    result = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert result.stdout == "[b'a.png']\n"


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, tar_format: int) -> None:
    names = ["folder/" * 50 + f"{n}é.png" for n in range(3)]
    place = write(tmp_path / "x.tar", tar(*(entry(n, png(0)) for n in names), tar_format=tar_format))
    assert contents(place) == dict.fromkeys(names, png(0))


def test_any_number_of_extension_headers(tmp_path: Path) -> None:
    long_name = tar(entry("n" * 200, b""))[:1024]  # The header `L` and its block
    data = member("a.png", png(1)) + 1500 * long_name + member("b.png", png(2))
    place = write(tmp_path / "x.tar", data + bytes(1024))
    assert contents(place)["a.png"] == png(1)
    records = pax_header({"comment": "x"})
    place = write(tmp_path / "y.tar", 1500 * records + member("b.png", png(2)) + bytes(1024))
    assert contents(place) == {"b.png": png(2)}
    # Followed by nothing, they are damage behind the images.
    place = write(tmp_path / "z.tar", member("a.png", png(1)) + 1500 * long_name)
    assert contents(place) == {"a.png": png(1)} and "without its entry" in members_of(place).damage


@pytest.mark.parametrize(
    "records",
    [{"size": "1e3"}, {"size": "-512"}, {"mtime": "never"}, {"path": ""}, {"hdrcharset": "?"}, {"GNU.volume": "x"}],
    ids=str,
)
def test_odd_pax_records_cost_no_image(tmp_path: Path, records: dict[str, str]) -> None:
    data = pax_header(records, b"g") + pax_header(records) + member("a.png", png(1)) + member("b.png", png(2))
    assert contents(write(tmp_path / "x.tar", data + bytes(1024))) == {"a.png": png(1), "b.png": png(2)}


def test_pax_records_that_are_none(tmp_path: Path) -> None:
    for body in (b"x", b"99999999999999999999 a=b\n", b"5 a=b", b"0 =\n", b"\xff" * 600):
        info = tarfile.TarInfo("x")
        info.size, info.type = len(body), b"x"
        header = info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)
        assert contents(write(tmp_path / "x.tar", header + member("a.png", png(1)))) == {"a.png": png(1)}


def with_size(size: bytes) -> bytes:
    """A header whose size is `size`, as it stands."""
    block = bytearray(tarfile.TarInfo("b.png").tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"\xff" * 11 + b"\0", b"\x80" + b"\xff" * 11, b"77777777777", b"-1", b"zzz"], ids=repr
)
def test_impossible_sizes_end_the_listing_behind_whole_images(tmp_path: Path, size: bytes) -> None:
    place = write(tmp_path / "x.tar", member("a.png", png(1)) + with_size(size) + png(2).ljust(1024, b"\0"))
    read = contents(place)
    assert read["a.png"] == png(1)
    assert members_of(place).damage.startswith("damaged at byte ")
    assert all(start + length < 1 << 63 for start, length in zip(*members_of(place)[1:3], strict=True))


def test_a_tar_that_is_cut_keeps_its_whole_images(tmp_path: Path) -> None:
    data = tar(*(entry(f"{n}.png", png(n)) for n in range(4)))
    for length in range(512, len(data), 700):
        place = write(tmp_path / "x.tar", data[:length])
        read = contents(place)
        whole = [n for n in range(4) if 1024 * (n + 1) <= length and len(png(n)) <= 512]
        assert all(read[f"{n}.png"] == png(n) for n in whole)


def test_what_is_no_plain_tar_says_why(tmp_path: Path) -> None:
    import bz2
    import gzip
    import lzma

    data = tar(entry("a.png", png(1)))
    compressed = {"gzip": gzip.compress(data), "bzip2": bz2.compress(data), "xz": lzma.compress(data)}
    for name, content in compressed.items():
        assert rejected(write(tmp_path / "x.tar", content)) == (
            f"broken container: compressed with {name}: decompress it first"
        )
    assert rejected(write(tmp_path / "x.tar", b"")) == "empty"
    assert rejected(write(tmp_path / "x.tar", bytes(10240))) == "no image inside"
    assert rejected(write(tmp_path / "x.tar", b"no tar" * 200)).startswith("broken container: byte 0: no tar header")
    assert rejected(tmp_path / "none.tar") == "missing"
    os.mkfifo(tmp_path / "pipe.tar")
    assert rejected(tmp_path / "pipe.tar") == "irregular"


# ---------------------------------------------------------------- Parquet


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
