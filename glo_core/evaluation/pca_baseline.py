"""Principal components of images at full resolution: what a linear decoder with as many dimensions would make."""

from collections.abc import Iterator
from pathlib import Path

import torch

from glo_core.common.files import write_bytes
from glo_core.common.in_step import InStep, in_chunks
from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Float, Tensor, UInt8
from glo_core.common.tensor_files import read_tensors, tensor_bytes
from glo_core.data.image_source import ImageSource
from glo_core.losses.pixel_ranges import unit_bytes

_CHUNK = 512
"""Images in memory at once."""


class PcaBaseline:
    """A mean image and unit components.

    Attributes:
        mean: float32 `[pixels]`, of values in [0, 1] in the order H, W, C.
        components: float32 `[pixels, k]`, in columns.
    """

    def __init__(self, mean: Float[Tensor, " pixels"], components: Float[Tensor, "pixels k"]) -> None:
        self.mean, self.components = mean, components

    @classmethod
    def fit(
        cls, images: ImageSource, components: int, runtime: Runtime, *, passes: int = 12, images_seen: int = 0
    ) -> "PcaBaseline":
        """The leading `components` of the images of all ranks.

        By subspace iteration with as much oversampling as components (Halko et al., SIAM Review 2011, algorithm 4.4):
        no matrix of pixels by pixels or images by images is formed. Ends early once the captured variance stands
        still to 1e-6. Every rank calls this; `images_seen` is where training stands, for reports.

        Raises:
            StopRequestedError: on every rank, if somebody asked to stop.
        """
        work = InStep(runtime, "pca", images_seen, passes=passes + 1)
        pixels = images.resolution**2 * images.channels
        device = runtime.device
        total = torch.zeros(pixels + 1, dtype=torch.float64, device=device)
        for chunk in _unit_chunks(images, device, work):
            total += torch.cat([chunk.sum(0, dtype=torch.float64), total.new_tensor([len(chunk)])])
        runtime.all_reduce_sum(total)
        mean = (total[:-1] / total[-1].clamp_min(1)).float()
        width = min(2 * components + 8, pixels)
        basis = torch.randn(pixels, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
        basis = torch.linalg.qr(basis)[0]
        captured = torch.zeros((), dtype=torch.float64, device=device)
        for _ in range(passes):
            product = torch.zeros_like(basis)
            narrow = basis.float()
            for chunk in _unit_chunks(images, device, work):
                centred = chunk - mean
                product += (centred.T @ (centred @ narrow)).double()
            runtime.all_reduce_sum(product)
            # Rayleigh-Ritz: the leading eigenvectors of the covariance within the subspace.
            values, rotation = torch.linalg.eigh(basis.T @ product)
            leading = values[-components:].sum()
            ritz = basis @ rotation[:, -components:]
            basis = torch.linalg.qr(product)[0].contiguous()
            for tensor in (leading, ritz, basis):
                runtime.broadcast(tensor)  # Ranks on other hardware may round otherwise, and would end at another pass.
            if leading - captured <= 1e-6 * leading:
                break
            captured = leading
        return cls(mean, ritz.float())

    def save(self, path: Path) -> None:
        """Write mean and components as a safetensors file."""
        write_bytes(path, tensor_bytes({"mean": self.mean.cpu(), "components": self.components.cpu().contiguous()}))

    @classmethod
    def load(cls, path: Path) -> "PcaBaseline":
        """Read what `save` wrote.

        Raises:
            UserError: if the file is missing or not whole.
        """
        return cls(**read_tensors(path, ("mean", "components")))

    def to(self, device: torch.device) -> "PcaBaseline":
        """The same on `device`."""
        return PcaBaseline(self.mean.to(device), self.components.to(device))

    def reconstruct(self, images: UInt8[Tensor, "n height width channels"]) -> Float[Tensor, "n channels height width"]:
        """`images` uint8 `[n, H, W, C]` projected on the components and back, clamped to [0, 1], `[n, C, H, W]`."""
        centred = unit_bytes(images).flatten(1) - self.mean
        back = (centred @ self.components) @ self.components.T + self.mean
        return back.clamp(0, 1).reshape(images.shape).permute(0, 3, 1, 2)


def _unit_chunks(images: ImageSource, device: torch.device, work: InStep) -> Iterator[torch.Tensor]:
    """All images in [0, 1], float32 `[<= _CHUNK, pixels]`, in one pass of `work`."""
    for rows in in_chunks(len(images.ids), _CHUNK, work):
        yield unit_bytes(images.take(rows).to(device)).flatten(1)
