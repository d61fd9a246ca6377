"""What the training loop needs of its surroundings: a rank, three collectives, and a receiver of reports."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from PIL import Image

from glo_core.common.shapes import Shaped, Tensor

Metrics = dict[str, float]


@runtime_checkable
class Runtime(Protocol):
    """One rank and its connection to the other ranks. Every rank calls each collective at the same step."""

    rank: int
    """From 0 to `world_size` - 1"""
    world_size: int
    """Number of ranks"""
    device: torch.device
    """Where this rank computes, and where tensors of the collectives lie"""

    def all_reduce_sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Replace `tensor` by its sum over all ranks, and return it; any shape, the same on every rank."""
        ...

    def start_all_reduce_sum(self, tensor: Shaped[Tensor, "*shape"]) -> Callable[[], object]:
        """Begin to replace `tensor` by its sum over all ranks; it is whole after a call of what this returns."""
        ...

    def broadcast(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Replace `tensor` by that of rank 0, and return it; any shape, the same on every rank."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, in the order of ranks; `value` is small and can be pickled."""
        ...

    def report(self, images_seen: int, metrics: Metrics) -> None:
        """Hand `metrics` at `images_seen` images to the tracker of the run; called on rank 0."""
        ...

    shows_pictures: bool
    """Whether pictures are wanted; the same on every rank"""

    def picture(self, images_seen: int, name: str, picture: Image.Image) -> None:
        """Hand over a picture of the series `name` at `images_seen` images; called on rank 0."""
        ...

    def stop_requested(self) -> bool:
        """Whether this rank was asked to end training with a checkpoint."""
        ...

    def preempted(self) -> bool:
        """Whether this rank was told that the machine of any rank is about to be taken away; it waits for no rank."""
        ...


class SingleProcess:
    """One process, no communication."""

    rank, world_size = 0, 1

    def __init__(
        self,
        device: str | torch.device = "cpu",
        on_report: Callable[[int, Metrics], None] | None = None,
        on_picture: Callable[[int, str, Image.Image], None] | None = None,
    ) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":  # Streams, events and pinned memory then belong to the same GPU.
            torch.cuda.set_device(self.device)
        self.on_report, self.on_picture = on_report, on_picture
        self.shows_pictures = on_picture is not None
        self.stop = False

    def all_reduce_sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return `tensor` as it is: there is one rank."""
        return tensor

    def start_all_reduce_sum(self, tensor: Shaped[Tensor, "*shape"]) -> Callable[[], object]:
        """Nothing is to be waited for: `tensor` is the sum."""
        return lambda: None

    def broadcast(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return `tensor` as it is."""
        return tensor

    def all_gather(self, value: Any) -> list[Any]:
        """Return `[value]`."""
        return [value]

    def report(self, images_seen: int, metrics: Metrics) -> None:
        """Call `on_report`."""
        if self.on_report:
            self.on_report(images_seen, metrics)

    def picture(self, images_seen: int, name: str, picture: Image.Image) -> None:
        """Call `on_picture`."""
        if self.on_picture:
            self.on_picture(images_seen, name, picture)

    def stop_requested(self) -> bool:
        """Whether `stop` was set."""
        return self.stop

    def preempted(self) -> bool:
        """False: nobody tells a single process."""
        return False


class TorchDistributed(SingleProcess):
    """Ranks of the initialized default process group of `torch.distributed` (torchrun, Ray Train)."""

    def __init__(
        self,
        device: str | torch.device = "cpu",
        on_report: Callable[[int, Metrics], None] | None = None,
        on_picture: Callable[[int, str, Image.Image], None] | None = None,
    ) -> None:
        super().__init__(device, on_report, on_picture)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def all_reduce_sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Replace `tensor` by its sum over all ranks, and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_all_reduce_sum(self, tensor: Shaped[Tensor, "*shape"]) -> Callable[[], object]:
        """Begin to replace `tensor` by its sum over all ranks; the work's own `wait` ends it."""
        if self.world_size == 1:
            return lambda: None
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None
        wait: Callable[[], object] = work.wait
        return wait

    def broadcast(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Replace `tensor` by that of rank 0, and return it."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def all_gather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, in the order of ranks."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


class AllReduceSum(torch.autograd.Function):
    """A sum over ranks that gradients flow through: the adjoint of a sum over ranks is a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Shaped[Tensor, "*shape"], runtime: Runtime) -> Shaped[Tensor, "*shape"]:
        """Sum a copy of `tensor` over the ranks of `runtime`."""
        ctx.runtime = runtime
        return runtime.all_reduce_sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Sum a copy of the gradient over the same ranks."""
        return ctx.runtime.all_reduce_sum(grads[0].clone()), None
