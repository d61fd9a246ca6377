"""Modules by their place in a decoder, with their class."""

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def submodule(module: nn.Module, path: str, kind: type[M]) -> M:
    """The module at `path` (such as "norms.0") of `module`, which must be of class `kind`."""
    child = module.get_submodule(path)
    assert isinstance(child, kind), f"{path} is a {type(child).__name__}"
    return child
