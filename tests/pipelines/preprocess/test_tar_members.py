"""Tars of every kind: which images they hold, and what became of a damaged one."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.containers import contents, member, members_of, png, rejected, write
from tests.helpers.paths import ROOT

FAULTS = ROOT / "tests" / "faults"


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
