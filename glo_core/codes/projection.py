"""The maps that keep a code on the unit sphere or in the unit ball."""

from collections.abc import Callable

import torch

from glo_core.common.shapes import Float, Tensor


def to_sphere(codes: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Scale each code `[..., dim]` to norm 1: z / |z|; a zero code stays zero."""
    return torch.nn.functional.normalize(codes, dim=-1)


def to_ball(codes: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Scale codes `[..., dim]` of a norm above 1 to norm 1: z / max(1, |z|) (arXiv 1707.05776, section 3.3)."""
    return codes / codes.norm(dim=-1, keepdim=True).clamp_min(1)


PROJECTIONS: dict[str, Callable[[Tensor], Tensor]] = {"sphere": to_sphere, "ball": to_ball}
"""By the name in a recipe; each maps codes `[..., dim]` to codes of the same shape"""
