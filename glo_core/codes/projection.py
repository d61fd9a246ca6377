"""The maps that keep a code on the unit sphere or in the unit ball."""

from collections.abc import Callable

import torch


def to_sphere(codes: torch.Tensor) -> torch.Tensor:
    """z / |z|, for codes `[..., dim]`."""
    return torch.nn.functional.normalize(codes, dim=-1)


def to_ball(codes: torch.Tensor) -> torch.Tensor:
    """z / max(1, |z|), for codes `[..., dim]` (arXiv 1707.05776, section 3.3)."""
    return codes / codes.norm(dim=-1, keepdim=True).clamp_min(1)


PROJECTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"sphere": to_sphere, "ball": to_ball}
