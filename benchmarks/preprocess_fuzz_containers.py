"""Mutated tars and Parquet tables beside images: one row for each image or container, no crash, no hang, 1 GiB at most.

    python -m benchmarks.preprocess_fuzz_containers --input DIR --mutations 2000

Each container is made of images of the input: old, POSIX, GNU, pax and sparse tars, and tables with columns of bytes,
structs, views and dictionaries, compressed and not. Some bytes of each are changed, cut, repeated or exchanged, or a
number in it is set to an extreme, half of the time where the headers are. They are listed and read one by one in child
processes, each with limits of time and memory, and then go beside images through one preprocessing job. Anything wrong
is printed with the seed of its mutation and ends the run with exit status 1.
"""

import argparse
import collections
import io
import json
import multiprocessing
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.environment import describe, describe_config
from benchmarks.preprocess_fuzz import COMMON_DAMAGES, damage
from benchmarks.preprocess_speed import quietly
from glo_core.common.location import Location
from glo_core.dataset_format.image_decoding import SUFFIXES
from glo_core.dataset_format.manifest import read_parts
from glo_core.dataset_format.rejection import REASONS, RejectedImageError
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.containers import list_members, read_members
from pipelines.preprocess.job import preprocess

LIMIT_S, LIMIT_BYTES = 10.0, 1 << 30
IMAGES = 6
"""Images of each container"""


# ---------------------------------------------------------------- containers


def make_tar(images: Sequence[bytes], random: np.random.Generator) -> bytes:
    """A tar of `images` with long names, labels, a link, pax records, or another archive behind it."""
    buffer = io.BytesIO()
    for _ in range(random.integers(1, 3)):
        tar_format = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[random.integers(3)]
        with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
            for number, data in enumerate(images):
                folder = "folder/" * int(random.integers(0, 12 if tar_format == tarfile.USTAR_FORMAT else 40))
                info = tarfile.TarInfo(f"{folder}{number}.jpg")
                info.size = len(data)
                if tar_format == tarfile.PAX_FORMAT and random.integers(2):
                    info.pax_headers = {"comment": "x" * int(random.integers(1, 2000)), "size": str(len(data))}
                archive.addfile(info, io.BytesIO(data))
                label = tarfile.TarInfo(f"{folder}{number}.cls")
                label.size = 1
                archive.addfile(label, io.BytesIO(b"7"))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = (tarfile.LNKTYPE, tarfile.SYMTYPE)[random.integers(2)], f"{folder}0.jpg"
            archive.addfile(link)
    return buffer.getvalue()


def make_sparse_tar(images: Sequence[bytes], random: np.random.Generator) -> bytes:
    """A tar of GNU's old format whose members are stored as sparse files of one piece."""
    buffer = io.BytesIO()
    for number, data in enumerate(images):
        info = tarfile.TarInfo(f"{number}.bmp")
        info.size, info.type = len(data), tarfile.GNUTYPE_SPARSE
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        block[386:410] = b"%011o\0%011o\0" % (0, len(data))
        block[483:495] = b"%011o\0" % len(data)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        buffer.write(bytes(block) + data + bytes(-len(data) % 512))
    return buffer.getvalue() + bytes(1024 * int(random.integers(0, 3)))


def make_table(images: Sequence[bytes], random: np.random.Generator) -> bytes:
    """A Parquet table of `images` in one of several layouts."""
    plain = pa.array(images, pa.binary())
    structs = pa.StructArray.from_arrays([plain, pa.array(["x"] * len(images))], ["bytes", "path"])
    column = (plain, plain.cast(pa.large_binary()), plain.cast(pa.binary_view()), plain.dictionary_encode(), structs)
    table = pa.table(
        {
            "md5": pa.array([bytes(16)] * len(images)),
            "image": column[random.integers(len(column))],
            "label": pa.array([str(number) for number in range(len(images))]),
        }
    )
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    if random.integers(2):
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=int(random.integers(1, 7)),
        compression=("none", "snappy", "zstd", "gzip")[random.integers(4)],
        use_dictionary=bool(random.integers(2)),
        data_page_version=("1.0", "2.0")[random.integers(2)],
        write_page_checksum=bool(random.integers(2)),
    )
    return buffer.getvalue()


MAKERS: dict[str, tuple[Callable[..., bytes], ...]] = {
    "tar": (make_tar, make_tar, make_sparse_tar),
    "parquet": (make_table,),
}


def mutated(kind: str, images: Sequence[bytes], seed: int) -> bytes:
    """A container of some of `images` with one to three damages."""
    random = np.random.default_rng([seed, len(kind)])
    chosen = [images[i] for i in random.integers(len(images), size=IMAGES)]
    maker = MAKERS[kind][random.integers(len(MAKERS[kind]))]
    data = bytearray(maker(chosen, random))
    for _ in range(random.integers(1, 4)):
        _damage(data, kind, random)
    return bytes(data)


def _damage(data: bytearray, kind: str, random: np.random.Generator) -> None:
    at, size = int(random.integers(len(data) or 1)), int(random.integers(1, 64))
    if random.integers(2):  # Where the headers are: of a table at its end, of a tar in its blocks
        at = max(0, len(data) - 1 - at % 1500) if kind == "parquet" else at // 512 * 512 + at % 500 % 160
    damage_kind = int(random.integers(8))
    if damage_kind <= COMMON_DAMAGES:  # A flipped bit twice as often as another damage
        damage(data, damage_kind, at, size, random)
    elif kind == "tar":
        _new_tar_number(data, at // 512 * 512, random)
    else:
        data.extend(random.bytes(size))


def _new_tar_number(data: bytearray, block: int, random: np.random.Generator) -> None:
    """Another size or type in the header at `block`, under a checksum that fits."""
    if block + 512 > len(data):
        return
    field = (slice(124, 136), slice(156, 157), slice(345, 500), slice(257, 265))[random.integers(4)]
    values = (b"00000000000\0", b"77777777777\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11, random.bytes(12))
    value = values[random.integers(len(values))] if field.start == 124 else b"LKxXgS1235M0"[random.integers(12) :][:1]
    start, length = block + field.start, field.stop - field.start
    data[start : start + length] = (value * length)[:length]
    data[block + 148 : block + 156] = b" " * 8
    data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])


# ---------------------------------------------------------------- one by one


def read_whole(place: Location) -> str:
    """List a container and read every member: what became of it, in a word."""
    try:
        members = list_members(place)
    except RejectedImageError as error:
        return error.reason
    assert len(members.names) < 100_000, f"{len(members.names)} members"
    np.array([*members.starts, *members.lengths], np.int64)  # As a plan holds them
    contents = dict(read_members(place, members.starts, members.lengths))
    assert sorted(contents) == list(range(len(members.names))), "not one content for each member"
    return "damaged" if members.damage else "whole"


def read_some(images: Sequence[bytes], kind: str, seeds: Sequence[int], folder: Path, now: Any, out: Any) -> None:
    """Read mutations in this process, saying before each one which it is."""
    path = folder / f"{os.getpid()}.{kind}"
    for seed in seeds:
        now.value = seed
        path.write_bytes(mutated(kind, images, seed))
        started = time.perf_counter()
        try:
            outcome = read_whole(Location(path))
        except BaseException as error:
            outcome = f"wrong: {type(error).__name__}: {error}"
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        out.put((seed, outcome, time.perf_counter() - started, memory))
    out.put(None)


def read_all(images: Sequence[bytes], kind: str, count: int) -> tuple[collections.Counter[str], float, int, list[str]]:
    """Outcomes, the longest time of one in seconds, the most memory of a process in bytes, and what went wrong."""
    context = multiprocessing.get_context("spawn")
    outcomes, longest, most, wrong, seeds = collections.Counter[str](), 0.0, 0, list[str](), list(range(count))
    with tempfile.TemporaryDirectory(prefix="glo-fuzz-") as scratch:
        while seeds:
            now, out = context.Value("q", -1), context.Queue()
            arguments = (images, kind, seeds, Path(scratch), now, out)
            process, last, finished = context.Process(target=read_some, args=arguments), time.perf_counter(), False
            process.start()
            while not finished and (process.is_alive() or not out.empty()):
                while not out.empty():
                    if (item := out.get()) is None:
                        finished = True
                        break
                    seed, outcome, seconds, memory = item
                    outcomes[outcome.split(":")[0]] += 1
                    longest, most, last = max(longest, seconds), max(most, memory), time.perf_counter()
                    if outcome.startswith("wrong"):
                        wrong.append(f"{kind} {seed}: {outcome}")
                if time.perf_counter() - last > 60:
                    process.kill()
                time.sleep(0.02)
            process.join()
            if not finished:
                wrong.append(f"{kind} {now.value}: the process ended with status {process.exitcode}")
            seeds = [] if finished else seeds[seeds.index(now.value) + 1 :]
    return outcomes, longest, most, wrong


# ---------------------------------------------------------------- the job


def run_job(images: Sequence[bytes], count: int) -> tuple[collections.Counter[str], list[str]]:
    """Preprocess `count` tars and `count` tables beside as many images: what became of the rows, and what is wrong."""
    with tempfile.TemporaryDirectory(prefix="glo-fuzz-") as scratch:
        folder, dataset = Path(scratch) / "input", Path(scratch) / "dataset"
        names = set[bytes]()
        for seed in range(count):
            place = folder / f"{seed % 50:02d}"
            place.mkdir(parents=True, exist_ok=True)
            files = {f"{seed}.{kind}": mutated(kind, images, seed) for kind in MAKERS}
            for name, data in (files | {f"{seed}.jpg": images[seed % len(images)]}).items():
                (place / name).write_bytes(data)
                names.add(os.fsencode(f"{place.name}/{name}"))
        quietly(preprocess, PreprocessJob(input=(Location(folder),), dataset=Location(dataset), resolution=32))
        parts = read_parts(Location(dataset), ["path", "member", "status", "reason"])
        rows = [row for part in parts for row in part.to_pylist()]
        keys = [(row["path"], row["member"]) for row in rows]
        wrong = [f"{key}: more than one row" for key, times in collections.Counter(keys).items() if times > 1]
        wrong += [f"{name!r}: no row" for name in sorted(names - {row["path"] for row in rows})]
        wrong += [f"{row['path']!r}: {row['reason']}" for row in rows if row["reason"] not in (None, *REASONS)]
        wrong += [f"{row['path']!r}: {row}" for row in rows if row["path"].endswith(b".jpg") and row["reason"]]
        return collections.Counter(row["reason"] or row["status"] for row in rows), wrong


def main() -> None:
    """Read damaged containers, and say what became of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="folders of image files")
    parser.add_argument("--mutations", type=int, default=2000, help="of each kind of container")
    options = parser.parse_args()
    paths = sorted(p for folder in options.input for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    images = [path.read_bytes() for path in paths[:: max(1, len(paths) // 100)]]
    print(
        f"{describe()}; {options.mutations} mutations of each kind, of {len(images)} images\n{describe_config(options)}"
    )
    wrong: list[str] = []
    for kind in MAKERS:
        outcomes, longest, most, more = read_all(images, kind, options.mutations)
        print(f"{kind}: {dict(outcomes)}; the slowest took {longest:.2f} s; {most / 2**20:.0f} MiB at most", flush=True)
        wrong += more + ([f"{kind}: took {longest:.1f} s"] if longest > LIMIT_S else [])
        wrong += [f"{kind}: took {most} bytes of memory"] if most > LIMIT_BYTES else []
    statuses, more = run_job(images, options.mutations)
    print(f"job: {dict(statuses)}")
    for line in wrong + more:
        print(f"wrong: {line}")
    print(json.dumps({"mutations": options.mutations, "wrong": len(wrong + more)}))
    sys.exit(1 if wrong or more else 0)


if __name__ == "__main__":
    main()
