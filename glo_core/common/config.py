"""What every configuration is: a frozen, keyword-only dataclass, documented field by field.

The line below a field is its help. Nothing here imports a command-line library.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar


class Config:
    """Base of all configurations."""

    common_flags: ClassVar[tuple[str, ...]] = ()
    """Of a job: the optional settings that `--help` shows; `--help-all` shows every one"""
    example: ClassVar[str] = ""
    """Of a job: a command that works, as `--help` prints it"""


@dataclass(frozen=True)
class NoneWord:
    """Marks a setting whose None is written as a word: auto, off or all."""

    word: str


class MustExist:
    """Marks a folder or file that has to be there before the job starts."""


AutoInt = Annotated[int | None, NoneWord("auto")]
AutoInts = Annotated[tuple[int, ...] | None, NoneWord("auto")]
AutoFloat = Annotated[float | None, NoneWord("auto")]
AutoText = Annotated[str | None, NoneWord("auto")]
AutoPath = Annotated[Path | None, NoneWord("auto")]
OffInt = Annotated[int | None, NoneWord("off")]
OffFloat = Annotated[float | None, NoneWord("off")]
OffText = Annotated[str | None, NoneWord("off")]
AllInt = Annotated[int | None, NoneWord("all")]
