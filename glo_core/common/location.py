"""A place that files lie in: a local path, or a URI that pyarrow's file systems understand (s3://, gs://, hdfs://)."""

import contextlib
import functools
import io
import os
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from glo_core.common.credentials import require_no_credentials
from glo_core.common.errors import ConfigError

OPTIONS = frozenset({
    "access_key", "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "background_writes",
    "blob_storage_authority", "client_id", "client_secret", "dfs_storage_authority", "enable_tls",
    "endpoint_override", "kerb_ticket", "location", "project_id", "region", "replication", "retry_limit_seconds",
    "scheme", "secret_key", "session_token", "smart_defaults", "tenant_id", "tls_ca_dir_path", "tls_ca_file_path",
    "tls_verify_certificates", "user",
})  # fmt: skip
"""Names of options that may follow the last `?` of a URI; with any other name, `?` is a letter of the path."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_uri(text: str) -> bool:
    """Whether `text` begins with a scheme: `s3://bucket/key` does, and `/photos/a://b.png` is a path."""
    return _URI.match(text) is not None


class _Uri(NamedTuple):
    """The parts of a URI as they are written: nothing is percent-decoded, since `%20` may stand in a key."""

    scheme: str
    store: str
    """Bucket or host"""
    path: str
    """From its slash on"""
    options: str
    """`name=value` pairs joined by `&`, or "" """

    @property
    def text(self) -> str:
        path = f"{self.scheme}://{self.store}{self.path}"
        # A path that ends like options is followed by none, or else it would be read as those.
        return f"{path}?{self.options}" if self.options or _ends_in_options(path) else path


def _ends_in_options(text: str) -> bool:
    """Whether what follows the last `?` of a URI is no part of its path: options, or nothing where it parts these."""
    path, mark, options = text.rpartition("?")
    if not options:
        return bool(mark) and _ends_in_options(path)
    return bool(mark) and all("=" in pair and pair.split("=", 1)[0] in OPTIONS for pair in options.split("&"))


def _parse_uri(text: str) -> _Uri:
    """The parts of a URI; `#`, and `?` before anything but options, are letters of its path."""
    path, _, options = text.rpartition("?") if _ends_in_options(text) else (text, "", "")
    scheme, _, rest = path.partition("://")
    store, slash, path = rest.partition("/")
    return _Uri(scheme, store, slash + path, options)


def _path_of_file_uri(text: str) -> Path:
    """The path that a `file://` URI names, percent-decoded.

    Raises:
        ConfigError: if it names another host.
    """
    host, slash, path = text.partition("://")[2].partition("/")
    if host.lower() not in ("", "localhost"):
        raise ConfigError(
            f"{text}: names the host {host!r}, and files are read on this one; write file:///path, or give the path"
        )
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(slash + path))))


class Location:
    """A local path or a URI, with the words of `pathlib`.

    A local location has a `path`, through which it can be mapped and renamed. A remote one is read and written whole;
    an object appears when its upload is complete.
    """

    __slots__ = ("_path", "_uri")
    _path: Path | None
    _uri: _Uri | None

    def __init__(self, place: "str | Path | Location") -> None:
        """Take a path, the text of one, a URI or another location; `file://` URIs are local paths.

        Raises:
            ConfigError: if a URI holds a key or a password, or a `file://` URI names another host.
        """
        if isinstance(place, Location):
            self._path, self._uri = place._path, place._uri
            return
        self._path, self._uri = None, None
        if isinstance(place, Path) or not is_uri(place):
            self._path = Path(place)
        elif place.lower().startswith("file://"):
            self._path = _path_of_file_uri(place)
        else:
            require_no_credentials(place)
            self._uri = _parse_uri(place)

    @property
    def path(self) -> Path | None:
        """The local path; None of a remote location."""
        return self._path

    @property
    def remote(self) -> bool:
        """Whether this is a URI of an object store."""
        return self._uri is not None

    @property
    def store(self) -> str | None:
        """The URI of the store alone, with its options, such as s3://bucket?region=eu; None of a local location."""
        return self._uri._replace(path="").text if self._uri else None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._path.name if self._path else self._text_path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        """The directory that this lies in."""
        return Location(self._path.parent) if self._path else self._at(self._text_path.rpartition("/")[0])

    def __truediv__(self, name: str) -> "Location":
        return Location(self._path / name) if self._path else self._at(f"{self._text_path}/{name}")

    def __str__(self) -> str:
        return self._uri.text if self._uri else str(self._path)

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Location) and str(self) == str(other))

    def __hash__(self) -> int:
        return hash(self._path or self._uri)

    def __getstate__(self) -> tuple[Path | None, _Uri | None]:
        return self._path, self._uri

    def __setstate__(self, state: tuple[Path | None, _Uri | None]) -> None:
        self._path, self._uri = state

    def absolute(self) -> "Location":
        """A local path from the root on; a remote location as it is."""
        return Location(self._path.absolute()) if self._path else self

    # ---------------------------------------------------------------- reading

    def info(self) -> Any:
        """A `pyarrow.fs.FileInfo`: type, size in bytes, mtime_ns.

        Raises:
            OSError: if the file system does not answer.
        """
        fs, path = self.file_system()
        return fs.get_file_info(path)

    def exists(self) -> bool:
        """Whether there is a file or directory here."""
        return self._path.exists() if self._path else self.info().type.name != "NotFound"

    def is_dir(self) -> bool:
        """Whether there is a directory here."""
        return self._path.is_dir() if self._path else self.info().type.name == "Directory"

    def size(self) -> int:
        """The file's length in bytes."""
        return self._path.stat().st_size if self._path else int(self.info().size)

    def read_bytes(self) -> bytes:
        """The whole file.

        Raises:
            OSError: FileNotFoundError and others, as `pathlib` does.
        """
        if self._path:
            return self._path.read_bytes()
        fs, path = self.file_system()
        with fs.open_input_stream(path) as file:
            return bytes(file.read())

    def open(self) -> Any:
        """A seekable `pyarrow.NativeFile`; of a local file, mapped."""
        import pyarrow as pa

        if self._path:
            # A file of no bytes cannot be mapped.
            return pa.memory_map(bytes(self._path)) if self._path.stat().st_size else pa.BufferReader(b"")
        fs, path = self.file_system()
        return fs.open_input_file(path)

    def names(self) -> list[str]:
        """Names of the files directly below, sorted; none if there is no such directory."""
        if self._path:  # Which need not be UTF-8, as pyarrow's paths are.
            with contextlib.suppress(FileNotFoundError), os.scandir(self._path) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
            return []
        fs, path = self.file_system()
        import pyarrow.fs as pafs

        infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.File)

    # ---------------------------------------------------------------- writing

    def put(self, data: bytes | Path) -> None:
        """Write a remote object: bytes, or a local file's, visible only when it is whole."""
        fs, path = self.file_system()
        # pyarrow publishes what a stream holds when the stream is dropped, even after an error; so a name that no
        # reader looks at comes first, and the store itself copies it.
        temporary = f"{path.rpartition('/')[0]}/.{self.name}.tmp-{secrets.token_hex(8)}"
        with (
            io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as source,
            fs.open_output_stream(temporary) as sink,
        ):
            while chunk := source.read(16 << 20):
                sink.write(chunk)
        fs.move(temporary, path)

    def unlink(self) -> None:
        """Delete the file; one that is not there is no error."""
        if self._path:
            self._path.unlink(missing_ok=True)
        elif self.exists():
            fs, path = self.file_system()
            with contextlib.suppress(FileNotFoundError):  # Somebody else has deleted it since.
                fs.delete_file(path)

    # ---------------------------------------------------------------- file systems

    def file_system(self) -> tuple[Any, str]:
        """The `pyarrow.fs.FileSystem` and the path in it.

        Raises:
            OSError: if the URI's scheme is unknown or its store does not answer.
        """
        if self._uri is None:
            import pyarrow.fs as pafs

            return pafs.LocalFileSystem(), str(self._path)
        fs, base = _connected(self._uri.scheme, self._uri.store, self._uri.options)
        return fs, base + self._text_path

    @property
    def _text_path(self) -> str:
        assert self._uri is not None
        return self._uri.path.rstrip("/")

    def _at(self, path: str) -> "Location":
        """Another path of the same store."""
        assert self._uri is not None
        location = object.__new__(Location)
        location._path, location._uri = None, self._uri._replace(path=path)
        return location


@functools.cache
def _connected(scheme: str, host: str, options: str) -> tuple[Any, str]:
    """One file system, with its connections, for each store in a process; and its name of the root."""
    import pyarrow.fs as pafs  # Here: a command line that is only read does not wait for it.

    try:
        fs, base = pafs.FileSystem.from_uri(f"{scheme}://{host}/" + (f"?{options}" if options else ""))
    except ValueError as error:  # pyarrow.ArrowInvalid: a scheme that it does not know, or a bad option
        raise OSError(f"{scheme}://{host}: {str(error).splitlines()[0]}") from None
    return fs, base.rstrip("/")
