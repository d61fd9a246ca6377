"""Tar shards in WebDataset's layout: the files of a sample share what stands before the first dot of the last part."""

import io
import posixpath
import tarfile
from typing import Any

from glo_core.dataset_format.image_decoding import SUFFIXES
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.members import MAX_MEMBER_BYTES, Members
from pipelines.preprocess.tar_headers import READ_AHEAD, DamagedTarError, Entry, ReadAt, tar_entries

LABEL_BYTES = 256
"""Bytes of a label that are read"""
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"(\xb5/\xfd": "zstd",
    b"PK\3\4": "zip",
}
"""How compressed files begin"""


def list_tar(file: Any) -> Members:
    """The images of an uncompressed tar: of one name twice the last counts, and a hard link is what it leads to.

    Args:
        file: a seekable `pyarrow.NativeFile`.

    Raises:
        RejectedImageError: if it holds no entry that can be read.
    """
    entries: dict[bytes, Entry] = {}
    labels: dict[bytes, str] = {}
    damage = ""
    try:
        for entry in tar_entries(file):
            _enter(entries, entry)
            if entry.kind == "file" and entry.name.lower().endswith(b".cls") and not entry.sparse:
                content = bytes(file.read_at(min(entry.size, LABEL_BYTES), entry.start))
                labels[_sample(entry.name)] = content.decode(errors="replace").strip()
    except DamagedTarError as error:
        if not entries:
            raise RejectedImageError("broken container", _compression(file) or str(error)) from None
        damage = f"damaged at {error}"
    images = [entry for entry in entries.values() if _is_image(entry.name)]
    return Members(
        [entry.name for entry in images],
        [entry.header if entry.sparse else entry.start for entry in images],
        [-1 if entry.sparse else entry.size for entry in images],
        [labels.get(_sample(entry.name)) for entry in images],
        damage,
    )


def _enter(entries: dict[bytes, Entry], entry: Entry) -> None:
    """Do to `entries`, by name, what extracting `entry` does to a folder."""
    if entry.kind == "folder":
        return
    name = _extracted_name(entry.name)
    content = entries.get(_extracted_name(entry.target)) if entry.kind == "hard link" else entry
    entries.pop(name, None)
    if content is not None and entry.kind != "other":
        entries[name] = content._replace(name=entry.name)


def _extracted_name(name: bytes) -> bytes:
    """One name for all that extract to the same file, such as `a.jpg` and `./a.jpg`."""
    return posixpath.normpath(b"/" + name).lstrip(b"/")


def _is_image(name: bytes) -> bool:
    last = name.rpartition(b"/")[2]
    return not last.startswith(b".") and posixpath.splitext(last)[1].lower().decode(errors="replace") in SUFFIXES


def _sample(name: bytes) -> bytes:
    """What the files of one sample share: the name up to the first dot of its last part."""
    folder, _, last = name.rpartition(b"/")
    return folder + b"/" + last.split(b".", 1)[0]


def _compression(file: Any) -> str:
    """One line about a compressed file, or ""."""
    beginning = bytes(file.read_at(8, 0))
    for signature, name in COMPRESSED.items():
        if beginning.startswith(signature):
            return f"compressed with {name}: decompress it first"
    return "" if beginning else "no bytes"


def read_tar_member(file: Any, start: int, length: int) -> bytes:
    """The content of a member, as `Members` has its start and length.

    Raises:
        RejectedImageError: if it is larger than `MAX_MEMBER_BYTES`.
        Exception: what `tarfile` raises of a sparse member that is damaged.
    """
    if length < 0:
        return _read_sparse(file, start)
    _require_size(length)
    return bytes(file.read_at(length, start))


def _read_sparse(file: Any, header: int) -> bytes:
    """The content of the sparse member whose first header begins at byte `header`, with its holes."""
    reader = io.BufferedReader(ReadAt(file), READ_AHEAD)
    reader.seek(header)
    with tarfile.open(fileobj=reader, mode="r:") as archive:
        member = archive.next()
        content = archive.extractfile(member) if member is not None else None
        if member is None or content is None:
            raise RejectedImageError("broken container", f"byte {header}: no sparse member")
        _require_size(member.size)
        return content.read()


def _require_size(size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise RejectedImageError("too large", f"{size} bytes")
