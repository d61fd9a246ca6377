"""Where images lie while a rank trains."""

from typing import Literal

Cache = Literal["auto", "device", "host", "disk"]
