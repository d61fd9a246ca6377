"""What a notebook sees of a training: its own callables, called by the loop, and a progress bar."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from glo_core.common.runtime import Metrics, Runtime

OnReport = Callable[[int, Metrics], None]
"""Called with the images seen and the metrics of a report, on rank 0"""
OnPreview = Callable[[int, str, Image.Image], None]
"""Called with the images seen, the name of a series of pictures, and a picture of it, on rank 0"""


class RuntimeWithHooks:
    """A runtime that also calls a notebook's callables."""

    def __init__(
        self,
        runtime: Runtime,
        on_reports: list[OnReport],
        on_preview: OnPreview | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.rank, self.world_size, self.device = runtime.rank, runtime.world_size, runtime.device
        self.shows_pictures = runtime.shows_pictures or on_preview is not None
        self._runtime, self._on_reports = runtime, on_reports
        self._on_preview, self._should_stop = on_preview, should_stop

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all ranks, in place."""
        return self._runtime.all_reduce_sum(tensor)

    def start_all_reduce_sum(self, tensor: torch.Tensor) -> Callable[[], object]:
        """Begin the sum of `tensor` over all ranks, in place; the result ends it."""
        return self._runtime.start_all_reduce_sum(tensor)

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's `tensor`, in place."""
        return self._runtime.broadcast(tensor)

    def all_gather(self, value: Any) -> list[Any]:
        """The `value`s of all ranks, in the order of ranks."""
        return self._runtime.all_gather(value)

    def report(self, images_seen: int, metrics: Metrics) -> None:
        """Hand metrics on; called on rank 0."""
        self._runtime.report(images_seen, metrics)
        for on_report in self._on_reports:
            on_report(images_seen, metrics)

    def picture(self, images_seen: int, name: str, picture: Image.Image) -> None:
        """Hand a picture of the series `name` on; called on rank 0."""
        self._runtime.picture(images_seen, name, picture)
        if self._on_preview is not None:
            self._on_preview(images_seen, name, picture)

    def stop_requested(self) -> bool:
        """Whether somebody asked to end with a checkpoint."""
        return self._runtime.stop_requested() or (self._should_stop is not None and self._should_stop())

    def preempted(self) -> bool:
        """Whether this rank was told that a machine is about to be taken away."""
        return self._runtime.preempted()


class ProgressBar:
    """A bar of the images seen, with the PSNR of the last report; nothing if the package tqdm is not installed."""

    def __init__(self, shown: bool) -> None:
        self._shown, self._bar = shown, None

    def begin(self, images_seen: int, target: int) -> None:
        """Show the bar from `images_seen` of `target` on."""
        try:
            tqdm: Any = importlib.import_module("tqdm.auto").tqdm if self._shown else None
        except ImportError:
            return
        if tqdm is not None:
            self._bar = tqdm(desc="train", total=target, initial=images_seen, unit=" images", unit_scale=True)

    def step(self, images_seen: int) -> None:
        """Move the bar to `images_seen`."""
        if self._bar is not None:
            self._bar.update(min(images_seen, self._bar.total) - self._bar.n)

    def report(self, images_seen: int, metrics: Metrics) -> None:
        """Hand metrics on; called on rank 0."""
        if self._bar is not None and "train_psnr" in metrics:
            self._bar.set_postfix_str(f"PSNR {metrics['train_psnr']:.1f} dB")

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
