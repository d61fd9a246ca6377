"""The perceptual loss: images compared by what a network that was trained elsewhere sees in them."""

import importlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from glo_core.common.errors import UserError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours in [0, 1], which torchvision's networks expect removed"""
_VGG16_LAYERS = (3, 8, 15, 22)
"""relu1_2, relu2_2, relu3_3 and relu4_3 (Johnson, Alahi and Li, arXiv 1603.08155)"""


def feature_network(
    name: str, resolution: int, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss sum_k mean |f_k(prediction) - f_k(target)| of each image, `[b]`, over the feature maps f_k.

    Args:
        name: vgg16, with torchvision's weights for ImageNet, or package.module:function, which returns a module that
            maps `[b, 3, h, w]`, with ImageNet's mean and deviation removed, to a sequence of feature maps `[b, ...]`.
        resolution: of the images, h and w.

    Raises:
        UserError: if it cannot be had, or makes something else.
    """
    network = (_vgg16() if name == "vgg16" else _imported(name, resolution)).to(device).eval().requires_grad_(False)
    mean = torch.tensor(_MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(_STD, device=device).view(3, 1, 1)

    def features(images: torch.Tensor) -> Sequence[torch.Tensor]:
        colours = images.expand(-1, 3, -1, -1).add(1).div(2).float()  # Grey is a colour too.
        found: Sequence[torch.Tensor] = network((colours - mean) / std)
        return found

    def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            expected = features(target)
        pairs = zip(features(prediction), expected, strict=True)
        distances = [(ours - theirs).abs().flatten(1).mean(dim=1) for ours, theirs in pairs]
        return torch.stack(distances).sum(0).to(prediction)

    return loss


class _Features(nn.Module):
    """What `layers` of a sequence of layers put out."""

    def __init__(self, sequence: nn.Sequential, layers: Sequence[int]) -> None:
        super().__init__()
        self.sequence, self.layers = sequence[: max(layers) + 1], layers

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for number, layer in enumerate(self.sequence.children()):
            images = layer(images)
            if number in self.layers:
                found.append(images)
        return found


def _vgg16() -> nn.Module:
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError:
        raise UserError(
            "`perceptual_network` (=vgg16) needs torchvision, which is not installed; pip install torchvision, "
            "or name a network of your own as package.module:function"
        ) from None
    try:
        whole = models.vgg16(weights=models.VGG16_Weights.IMAGENET1K_V1)
    except Exception as error:  # No network, or a file that is not whole, in whatever way torchvision says it.
        raise UserError(
            f"`perceptual_network` (=vgg16): torchvision could not load its weights ({_on_one_line(error)}); put "
            f"them into {torch.hub.get_dir()}/checkpoints, or name a network of your own as package.module:function"
        ) from None
    return _Features(whole.features, _VGG16_LAYERS)


def _imported(name: str, resolution: int) -> nn.Module:
    module_name, _, function = name.partition(":")
    try:
        network: nn.Module = getattr(importlib.import_module(module_name), function)()
        with torch.no_grad():
            made = network.eval()(torch.zeros(2, 3, resolution, resolution))
        # A bare tensor would pass for a sequence of as many maps as there are images.
        whole = not isinstance(made, torch.Tensor) and all(len(one) == 2 and one.is_floating_point() for one in made)
    except Exception as error:  # Whatever the user's code raises.
        raise UserError(f"`perceptual_network` (={name}): {type(error).__name__}: {_on_one_line(error)}") from error
    if not whole:
        raise UserError(
            f"`perceptual_network` (={name}): makes {type(made).__name__} of two images where a list or tuple of "
            "feature maps is needed, each with a row per image"
        )
    return network


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
