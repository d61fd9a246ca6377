"""The images that a container holds, as its listing gives them."""

from typing import NamedTuple

from glo_core.dataset_format.rejection import RejectedImageError

MAX_MEMBER_BYTES = 1 << 30
"""Bytes of a member that are read at most"""

Content = bytes | RejectedImageError
"""What reading a member gave"""


class Members(NamedTuple):
    """The images of a container, column by column."""

    names: list[bytes]
    """Of a tar member its name, of a table's row its number"""
    starts: list[int]
    """Byte at which a tar member's content begins, or the header of a sparse one; a table's row number"""
    lengths: list[int]
    """Bytes of a tar member; -1 of a sparse one and in a table, where only reading tells"""
    labels: list[str | None]
    damage: str = ""
    """What cannot be read beside these, if anything"""
