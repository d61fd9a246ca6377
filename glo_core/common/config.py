"""What every configuration is: a frozen, keyword-only dataclass beside its owner, documented field by field."""

from typing import Any, ClassVar


class Config:
    """Base of all configurations.

    Read from a recipe or a command line, unknown keys are refused, and the line below a field is its help.
    (Pydantic reads this attribute by its name; nothing here imports Pydantic.)
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}
