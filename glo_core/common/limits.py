"""The largest numbers that a setting may have."""

from collections.abc import Sequence
from typing import Any

MANY = 10**15
"""More images, rows or pixels than there will be: a count above it is a slip"""
LARGEST_SEED = 2**63 - 1
LARGEST_RATE = 1e6
"""Of learning rates, and of other factors that no training survives"""


def require_at_most(config: Any, **limits: float) -> None:
    """Check numbers of `config` after their own checks: each must be finite, and at most its limit in size.

    Args:
        config: has the fields that `limits` names: a number, several, or None.
        limits: the largest value by field.

    Raises:
        ValueError: which names the field, its value and its limit.
    """
    for name, most in limits.items():
        value = getattr(config, name)
        for number in value if isinstance(value, Sequence) else [value]:
            if number is not None and not -most <= number <= most:
                raise ValueError(f"`{name}` (={number}) must be at most {most:,.15g}")
