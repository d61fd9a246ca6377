"""What the training loop asks of the world around it: a rank, three collectives, and somebody to report to."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from PIL import Image

Metrics = dict[str, float]


@runtime_checkable
class Runtime(Protocol):
    """A rank, its device, and its way to the others."""

    rank: int
    world_size: int
    device: torch.device

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all ranks, in place."""
        ...

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's `tensor`, in place."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """Small picklable `value`s of all ranks, in the order of ranks; waits for every rank."""
        ...

    def report(self, images_seen: int, metrics: Metrics) -> None:
        """Hand metrics to whoever tracks the run; called on rank 0."""
        ...

    shows_pictures: bool
    """Whether anybody looks at pictures; the same on every rank"""

    def picture(self, images_seen: int, name: str, picture: Image.Image) -> None:
        """Hand over one picture of the series `name`; called on rank 0."""
        ...

    def stop_requested(self) -> bool:
        """True once somebody asked this rank to end with a checkpoint."""
        ...

    def preempted(self) -> bool:
        """Whether a rank's machine is about to be taken away: the same on every rank, which all call it together."""
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
        self.on_report, self.on_picture = on_report, on_picture
        self.shows_pictures = on_picture is not None
        self.stop = False

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all ranks, in place."""
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's `tensor`, in place."""
        return tensor

    def all_gather(self, value: Any) -> list[Any]:
        """The `value`s of all ranks, in the order of ranks."""
        return [value]

    def report(self, images_seen: int, metrics: Metrics) -> None:
        """Hand metrics on; called on rank 0."""
        if self.on_report:
            self.on_report(images_seen, metrics)

    def picture(self, images_seen: int, name: str, picture: Image.Image) -> None:
        """Hand a picture of the series `name` on; called on rank 0."""
        if self.on_picture:
            self.on_picture(images_seen, name, picture)

    def stop_requested(self) -> bool:
        """Whether somebody asked to end with a checkpoint."""
        return self.stop

    def preempted(self) -> bool:
        """Whether a machine is about to be taken away."""
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

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's `tensor`, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def all_gather(self, value: Any) -> list[Any]:
        """The `value`s of all ranks, in the order of ranks."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


class AllReduceSum(torch.autograd.Function):
    """Sum over ranks that gradients flow through: the adjoint of a sum over ranks is a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, runtime: Runtime) -> torch.Tensor:
        """The sum of `tensor` over all ranks."""
        ctx.runtime = runtime
        return runtime.all_reduce_sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The sum of the gradient over all ranks."""
        return ctx.runtime.all_reduce_sum(grads[0].clone()), None
