"""The perceptual loss: images compared by the feature maps of a network that was trained elsewhere."""

import importlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from glo_core.common.errors import UserError, one_line
from glo_core.common.shapes import Float, Tensor
from glo_core.losses.config import VGG16
from glo_core.losses.pixel_ranges import to_unit

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colors in [0, 1], which torchvision's networks expect removed"""
_VGG16_LAYERS = (3, 8, 15, 22)
"""relu1_2, relu2_2, relu3_3 and relu4_3 (Johnson, Alahi and Li, arXiv 1603.08155)"""


def feature_network(
    name: str, resolution: int, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss sum_k mean |f_k(prediction) - f_k(target)| of each image, over the feature maps f_k.

    It takes images `[b, 1 or 3, h, w]` in [-1, 1] and returns `[b]`, of the type of the prediction. The maps of vgg16
    are those of Johnson, Alahi and Li (arXiv 1603.08155); the distance is L1.

    Args:
        name: vgg16, with torchvision's weights for ImageNet, or package.module:function, which returns a module that
            maps float32 `[b, 3, h, w]`, with ImageNet's mean and deviation removed, to a sequence of feature maps
            `[b, ...]`.
        resolution: of the images, h and w.

    Raises:
        UserError: if the network cannot be loaded, or its output is something else.
    """
    network = (_vgg16() if name == VGG16 else _imported(name, resolution)).to(device).eval().requires_grad_(False)
    mean = torch.tensor(_MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(_STD, device=device).view(3, 1, 1)

    def features(images: Float[Tensor, "b channels h w"]) -> Sequence[torch.Tensor]:
        colors = to_unit(images.expand(-1, 3, -1, -1), clamp=False).float()  # Gray images have three equal channels.
        maps: Sequence[torch.Tensor] = network((colors - mean) / std)
        return maps

    def loss(
        prediction: Float[Tensor, "b channels h w"], target: Float[Tensor, "b channels h w"]
    ) -> Float[Tensor, " b"]:
        with torch.no_grad():
            expected = features(target)
        pairs = zip(features(prediction), expected, strict=True)
        distances = [(of_prediction - of_target).abs().flatten(1).mean(dim=1) for of_prediction, of_target in pairs]
        return torch.stack(distances).sum(0).to(prediction)

    return loss


class _Features(nn.Module):
    """The outputs of some `layers` of a sequence."""

    def __init__(self, sequence: nn.Sequential, layers: Sequence[int]) -> None:
        super().__init__()
        self.sequence, self.layers = sequence[: max(layers) + 1], layers

    def forward(self, images: Float[Tensor, "b channels h w"]) -> list[torch.Tensor]:
        maps = []
        for number, layer in enumerate(self.sequence.children()):
            images = layer(images)
            if number in self.layers:
                maps.append(images)
        return maps


def _vgg16() -> nn.Module:
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError:
        raise UserError(
            "`perceptual_network` (=vgg16) needs torchvision, which is not installed; pip install torchvision, "
            "or name a network of your own as package.module:function"
        ) from None
    try:
        vgg16 = models.vgg16(weights=models.VGG16_Weights.IMAGENET1K_V1)
    except Exception as error:  # torchvision raises many types: no network, a file cut short.
        raise UserError(
            f"`perceptual_network` (=vgg16): torchvision could not load its weights ({one_line(error)}); put "
            f"them into {torch.hub.get_dir()}/checkpoints, or name a network of your own as package.module:function"
        ) from None
    return _Features(vgg16.features, _VGG16_LAYERS)


def _imported(name: str, resolution: int) -> nn.Module:
    module_name, _, function = name.partition(":")
    try:
        network: nn.Module = getattr(importlib.import_module(module_name), function)()
        with torch.no_grad():
            maps = network.eval()(torch.zeros(2, 3, resolution, resolution))
        # A bare tensor would pass for a sequence of as many maps as there are images.
        valid = not isinstance(maps, torch.Tensor) and all(len(item) == 2 and item.is_floating_point() for item in maps)
    except Exception as error:  # Whatever the user's code raises.
        raise UserError(f"`perceptual_network` (={name}): {one_line(error)}") from error
    if not valid:
        raise UserError(
            f"`perceptual_network` (={name}): makes {type(maps).__name__} of two images where a list or tuple of "
            "feature maps is needed, each with a row per image"
        )
    return network
