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
MAX_LINKS = 40
"""Symbolic links in a row that are followed, as Linux does"""
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"(\xb5/\xfd": "zstd",
    b"PK\3\4": "zip",
}
"""How compressed files begin"""


def list_tar(file: Any) -> Members:
    """The images of an uncompressed tar: of one name twice the last counts, and a link is what it leads to.

    A link that leads to nothing, or out of the archive, is listed too; reading it says so.

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
    images = [_linked(entries, entry) for entry in entries.values() if _is_image(entry.name)]
    return Members(
        [entry.name for entry in images],
        [entry.start if _is_plain(entry) else entry.header for entry in images],
        [entry.size if _is_plain(entry) else -1 for entry in images],
        [labels.get(_sample(entry.name)) for entry in images],
        damage,
    )


def _enter(entries: dict[bytes, Entry], entry: Entry) -> None:
    """Do to `entries`, by name, what extracting `entry` does to a folder."""
    if entry.kind == "folder":
        return
    name = _extracted_name(entry.name)
    content = entries.get(_extracted_name(entry.target), entry) if entry.kind == "hard link" else entry
    entries.pop(name, None)
    if entry.kind != "other":
        entries[name] = content._replace(name=entry.name)


def _linked(entries: dict[bytes, Entry], entry: Entry) -> Entry:
    """The content that a symbolic link leads to, under the link's name; `entry` itself if it is none or leads nowhere.

    Links are followed when all is extracted: what they lead to may come later in the archive.
    """
    content = entry
    for _ in range(MAX_LINKS):
        if content.kind != "symbolic link":
            return content._replace(name=entry.name)
        folder = posixpath.dirname(_extracted_name(content.name))
        place = posixpath.normpath(posixpath.join(folder, content.target))
        if place.startswith((b"/", b"../")) or place not in entries:
            break
        content = entries[place]
    return entry


def _is_plain(entry: Entry) -> bool:
    return entry.kind == "file" and not entry.sparse


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
        return _read_by_header(file, start)
    _require_size(length)
    return bytes(file.read_at(length, start))


def _read_by_header(file: Any, header: int) -> bytes:
    """The content of the sparse member whose first header begins at byte `header`, with its holes.

    Raises:
        RejectedImageError: if it is none but a link, which was listed because it leads nowhere.
    """
    reader = io.BufferedReader(ReadAt(file), READ_AHEAD)
    reader.seek(header)
    with tarfile.open(fileobj=reader, mode="r:") as archive:
        member = archive.next()
        if member is not None and (member.issym() or member.islnk()):
            raise RejectedImageError("irregular", f"a link to {member.linkname}, which is not in the archive")
        content = archive.extractfile(member) if member is not None else None
        if member is None or content is None:
            raise RejectedImageError("broken container", f"byte {header}: no sparse member")
        _require_size(member.size)
        return content.read()


def _require_size(size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise RejectedImageError("too large", f"{size} bytes")
