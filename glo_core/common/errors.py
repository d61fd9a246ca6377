"""Errors that a user can act on, and how their messages name settings."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says where a disk, a quota or a limit of a file's size is exhausted"""


class UserError(Exception):
    """A mistake or a limit that the user can act on: one line with the thing, its value and the remedy.

    The message writes a setting by its field's name in backticks: "`window` (=5) must be ...". The command
    line shows such a name as the flag that sets it.
    """


class ConfigError(UserError):
    """A setting has a wrong value, or does not go with another one."""


class DatasetError(UserError):
    """A dataset is missing, damaged, in use, or not the one that is needed."""


class CheckpointError(UserError):
    """A run or its checkpoint is missing, damaged, in use, or of another recipe."""


class DivergedError(UserError):
    """The loss is no longer finite; every rank raises it at the same step."""


_SETTING = re.compile(r"`([a-z_]\w*(?:\.\w+)*)`")


def rename_settings(message: str, new_name: Callable[[str], str | None]) -> str:
    """Replace each setting that `message` names in backticks; where `new_name` gives None, the name stays."""
    return _SETTING.sub(lambda match: new_name(match[1]) or match[0], message)


@contextlib.contextmanager
def settings_of_stage(section: str, **elsewhere: str) -> Iterator[None]:
    """Let errors of a stage inside the pipeline name the pipeline's settings.

    Args:
        section: the stage's part of the pipeline's config: `holdout` becomes `preprocess.holdout`.
        elsewhere: settings that the pipeline has under another name, such as run="root".
    """
    try:
        yield
    except UserError as error:
        new_name = {name: f"`{other}`" for name, other in elsewhere.items()}
        message = rename_settings(str(error), lambda name: new_name.get(name, f"`{section}.{name}`"))
        raise type(error)(message) from error


def one_line(error: BaseException) -> str:
    """An error of foreign code as one line: its type and its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
