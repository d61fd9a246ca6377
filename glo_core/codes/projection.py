"""The maps that keep a code on the unit sphere or in the unit ball."""

from collections.abc import Callable

import torch

from glo_core.common.shapes import Float, Tensor


def to_sphere(codes: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """z / |z|, for codes `[..., dim]`."""
    return torch.nn.functional.normalize(codes, dim=-1)


def to_ball(codes: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """z / max(1, |z|), for codes `[..., dim]` (arXiv 1707.05776, section 3.3)."""
    return codes / codes.norm(dim=-1, keepdim=True).clamp_min(1)


PROJECTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"sphere": to_sphere, "ball": to_ball}
