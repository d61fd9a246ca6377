"""Types of tensors with their shapes: `Float[Tensor, "b dim"]`.

The tests check every annotated signature when it is called (jaxtyping and beartype, `tests/conftest.py`). Elsewhere the
annotations are for readers alone: jaxtyping is no dependency of the core.
"""

from typing import TYPE_CHECKING, Any

import torch

Tensor = torch.Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt8
    except ImportError:

        class _Unchecked:
            """Stands in for a type of jaxtyping: `Float[Tensor, "b dim"]` is then `Tensor`."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = Integer = Shaped = UInt8 = _Unchecked

__all__ = ["Bool", "Float", "Int", "Integer", "Shaped", "Tensor", "UInt8"]
