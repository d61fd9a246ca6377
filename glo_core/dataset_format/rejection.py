"""Why a file is no image of the dataset: the reasons, and the exception that carries one."""

from typing import Literal, get_args

Reason = Literal[
    "missing",
    "unreadable",
    "irregular",
    "empty",
    "unknown format",
    "broken",
    "truncated",
    "kills its decoder",
    "too large",
    "too many pixels",
    "too small",
    "broken container",
    "no image inside",
]
"""Why a file is no image of the dataset: see `docs/format.md`."""
REASONS: tuple[Reason, ...] = get_args(Reason)


class RejectedImageError(Exception):
    """The bytes are no image that the dataset takes."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        """Give a reason of the list, and what the library said."""
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: Reason = reason
        self.detail = " ".join(detail.split())[:160]
